"""Stage the site: `python docs/convert.py FOLDER` writes there what Sphinx reads, from the notebooks as they are stored.

Nothing is executed. nbdev's own `proc_nbs` runs every exported cell and then hides it behind its signature; in this
book the definition is what the reader came for, so the few directives are applied here. `--colab FOLDER` writes the
same notebooks for Colab instead: unchanged, behind one cell that installs.
"""

import argparse
import re
import shutil
from collections.abc import Iterable
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from urllib.parse import quote

import nbformat

import kdnotes

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ConfigParser()
SETTINGS.read(ROOT / "settings.ini")
REPOSITORY = SETTINGS["DEFAULT"]["git_url"]
FRONT = Path("nbs/index.ipynb")
TOUR = Path("nbs/tour.ipynb")

# The groups of the book in order: a folder of `nbs/`, and of `kdnotes/`, and its title; "" is the root itself, but for its tour.
GROUPS = {
    "tour": "Start here",
    "core": "Ground: hashes, store, metrics",
    "data": "Tasks and worlds",
    "models": "Models",
    "learning": "Learning",
    "baselines": "Baselines",
    "adabert": "AdaBERT",
    "l2a": "L2A",
    "metakd": "Meta-KD",
    "": "The front door",
    "experiments": "Experiments",
    "figures": "The talk's figures",
    "guides": "Guides",
}
# What a directive of a cell asks of myst-nb; `hide` and `default_exp` leave the whole cell out.
TAGS = {"echo: false": "remove-input", "output: false": "remove-output", "code-fold: true": "hide-input"}
DIRECTIVE = re.compile(r"^#\|[ \t]*([\w-]+)(:?)[ \t]*(.*)\n?", re.M)
PAGE = re.compile(r"(?<!\[)`((?:\w+/)?\d\d_\w+|(?:figures|guides)/\w+)`")  # `learning/01_losses`, `02_cli`, `figures/fig05`
EQUATION = re.compile(r"(\$\$.+?\$\$)([ \t]*\([\w-]+\))?", re.S)
FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)
INSTALL = """\
# Once per Colab session: the repository with its stored runs, and the package. It takes a minute or two.
!git clone -q --depth 1 {repository}
%cd {name}
%pip install -q ".[reproduce]"\
"""


def notebooks() -> list[Path]:
    """Every notebook, relative to the root, in order of folder and name."""
    found = (path.relative_to(ROOT) for path in (ROOT / "nbs").rglob("*.ipynb"))
    return sorted(path for path in found if not any(part.startswith((".", "_")) for part in path.parts))


def group(path: Path) -> str:
    """The folder that a notebook or a module lies in: `learning`, or nothing for the root; the tour is a group of its own.

    Raises
    ------
    ValueError
        The folder has no title.
    """
    root = "tour" if path == TOUR else ""
    folder = path.parts[1] if len(path.parts) > 2 else root
    if folder not in GROUPS:
        raise ValueError(f"{path}: the folder {folder!r} needs a title, see GROUPS")
    return folder


def by_group(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Folder -> its paths, folders in the order of the book; a folder that has none is left out."""
    groups = {folder: [] for folder in GROUPS}
    for path in paths:
        groups[group(path)].append(path)
    return {folder: found for folder, found in groups.items() if found}


def book() -> dict[str, list[Path]]:
    """Folder -> its notebooks; the front page is none of them."""
    return by_group(path for path in notebooks() if path != FRONT)


def modules() -> dict[str, Path | None]:
    """Public module -> the notebook it is exported from."""
    paths = sorted(path.relative_to(ROOT) for path in (ROOT / "kdnotes").rglob("*.py"))
    public = [path for path in paths if not any(part.startswith("_") for part in path.parts)]
    found = {}
    for path in sum(by_group(public).values(), []):
        source = re.search(r"File to edit: (?:\.\./)+(nbs/\S+\.ipynb)", (ROOT / path).read_text())
        found[".".join(path.with_suffix("").parts)] = Path(source[1]) if source else None
    return found


def packages() -> dict[str, list[str]]:
    """Package -> its modules, each in the order of the book: `kdnotes.learning`, and `kdnotes` itself."""
    found = {}
    for module in modules():
        found.setdefault(module.rpartition(".")[0], []).append(module)
    return found


@cache
def names() -> dict[str, str]:
    """Function or class -> its full name, for those whose bare name can mean nothing else: `kd_loss`, `Store`, not `train`."""
    index = {}
    exec((ROOT / "kdnotes" / "_modidx.py").read_text(), index)
    full = [name for module in modules() for name in index["d"]["syms"].get(module, {}) if name.rpartition(".")[0] == module]
    bare = [name.rpartition(".")[2] for name in full]
    telling = re.compile(r"[a-z0-9]+_\w+|[A-Z]\w*[a-z]\w*")
    return {short: name for short, name in zip(bare, full) if telling.fullmatch(short) and bare.count(short) == 1}


def link_names(text: str, role: str) -> str:
    """Our own names in backticks become links to the API; `role` is `{}` in MyST and `:{}:` in reStructuredText."""

    def link(match):
        short = match[1]
        return f"{role.format('py:obj')}`{short} <{names()[short]}>`" if short in names() else match[0]

    return re.sub(r"(?<![\w`\[:}])`(\w+)(?:\(\))?`(?![`\]])", link, text)


def outside_code(change, text: str) -> str:
    """The text with `change` applied everywhere but in fenced blocks of code."""
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(text))


def prose(text: str, page: str, count) -> str:
    """A cell of Markdown with its equations numbered, and notebooks and names in backticks linked."""

    def change(part):
        part = EQUATION.sub(lambda m: m[1] + (m[2] or f" ({page}-{next(count)})"), part)
        part = PAGE.sub(r"[`\1`](/nbs/\1.ipynb)", part)
        return link_names(part, "{{{}}}")

    return outside_code(change, text)


def apply_directives(cell) -> bool:
    """Take the directives out of a code cell and do what they ask; False where the cell is not to be shown."""
    asked = {name: value.strip() for name, _, value in DIRECTIVE.findall(cell.source)}
    cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
    if "hide" in asked or not cell.source and "default_exp" in asked:
        return False
    cell.metadata["tags"] = [tag for text, tag in TAGS.items() if asked.get(text.split(":")[0]) == text.split(": ")[1]]
    if "fig-cap" in asked:
        cell.metadata["mystnb"] = {"figure": {"caption": link_names(asked["fig-cap"].strip("\"'"), "{{{}}}")}}
    return True


def links(path: Path) -> str:
    """The row under a title: where to run this page, and what it exports."""
    where = quote(path.as_posix(), safe="")
    row = [
        f"[Binder](https://mybinder.org/v2/gh/{owner()}/{SETTINGS['DEFAULT']['branch']}?labpath={where})",
        f"[Colab](https://colab.research.google.com/github/{owner()}/blob/colab/{path.as_posix()})",
    ]
    exported = [f"[`{module}`](/api/{module}.md)" for module, source in modules().items() if source == path]
    return "{.where}\nRun it on " + " or ".join(row) + "".join(f", or read its reference: {name}" for name in exported) + "\n"


def owner() -> str:
    return REPOSITORY.removeprefix("https://github.com/")


def committed(path: Path, notebook: nbformat.NotebookNode) -> str:
    """The committed pictures of a figure's notebook, but for the one that it stores itself."""
    stored = any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    shown = ""
    for found in sorted((ROOT / "figures").glob(f"{path.stem}/*/provenance.json"), reverse=True):
        folder, profile = found.parent.relative_to(ROOT).as_posix(), found.parent.name
        if not (stored and profile == "world"):  # opened by hand, a notebook draws `world`
            table = f"{{ref}}`the table <{path.stem}-{profile}>`"
            shown += f"```{{figure}} /{folder}/figure.png\nCommitted, profile `{profile}`; with {table}.\n```\n\n"
    return shown


def convert(path: Path) -> nbformat.NotebookNode:
    """A notebook as myst-nb is to render it."""
    notebook = nbformat.read(ROOT / path, 4)
    count = iter(range(1, 1000))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = prose(cell.source, stem(path.relative_to("nbs")).replace("/", "-"), count)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or apply_directives(cell)]
    first = notebook.cells[0]
    head = re.match(r"# .*\n*(?:>.*\n?)*", first.source)
    if head is None:
        raise ValueError(f"{path}: its first cell must begin with a title, '# ...', got {first.source[:40]!r}")
    code = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    if code:
        first.source = f"{head[0].rstrip()}\n\n{links(path)}\n{first.source[head.end() :]}"
    if group(path) == "figures" and (pictures := committed(path, notebook)):
        notebook.cells.insert(code[0], nbformat.v4.new_markdown_cell(pictures))
    return notebook


def heading(path: Path) -> tuple[str, str]:
    """Title and one-line summary of a notebook."""
    source = nbformat.read(ROOT / path, 4).cells[0].source
    summary = re.search(r"^> (.*)", source, re.M)
    return re.match(r"# (.*)", source)[1], summary[1] if summary else ""


def toctree(pages: Iterable[str]) -> str:
    entries = "\n".join(page if "<" in page else f"/{page}" for page in pages)
    return f"```{{toctree}}\n:hidden:\n\n{entries}\n```\n"


def listing(paths: list[Path]) -> str:
    return "".join(f"- [{title}](/{path.as_posix()}): {summary}\n" for path in paths for title, summary in [heading(path)])


def stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def stage(out: Path) -> None:
    """Write the whole source of the site into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    for folder in ("api", "book"):
        (out / folder).mkdir(parents=True)
    for path in notebooks():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(convert(path), out / path)

    for page in ("RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "docs/index.md"):
        shutil.copy(ROOT / page, out)
    shutil.copytree(ROOT / "figures", out / "figures", ignore=shutil.ignore_patterns("*.jsonl", "*.svg"))
    (out / "figures" / "README.md").write_text(figures_page((ROOT / "figures" / "README.md").read_text()))

    (out / "book.md").write_text(book_page())
    for folder, paths in book().items():
        (out / f"{group_page(folder)}.md").write_text(f"# {GROUPS[folder]}\n\n{listing(paths)}\n{toctree(map(stem, paths))}")

    (out / "api" / "index.md").write_text(api_page())
    for package, members in packages().items():
        (out / "api" / f"{package}.md").write_text(package_page(package, members))
    for module, source in modules().items():
        (out / "api" / f"{module}.md").write_text(module_page(module, source))


def figures_page(text: str) -> str:
    """The page of all figures; a figure may have been committed when its notebook had another name."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.M)
    for place, section in enumerate(sections):
        artefact, profile = re.match(r"## (\w+), profile `(\w+)`", section).groups()
        notebook = f"Notebook: [{artefact}.ipynb](/nbs/figures/{artefact}.ipynb)"
        sections[place] = f"({artefact}-{profile})=\n" + re.sub(r"^Notebook: .*", notebook, section, flags=re.M)
    return head + "".join(sections)


def book_page() -> str:
    text = "# The book\n\nOne notebook, one idea, one module: each runs from top to bottom in seconds per cell.\n"
    for folder, paths in book().items():
        text += f"\n## {GROUPS[folder]}\n\n{listing(paths)}"
    return f"{text}\n{toctree(map(group_page, book()))}"


def group_page(folder: str) -> str:
    return f"book/{folder or 'front_door'}"


def api_page() -> str:
    text = "# API\n\nWhat each module exports. The front door is {py:mod}`kdnotes` itself.\n"
    for package, members in packages().items():
        text += f"\n## {GROUPS[package.removeprefix('kdnotes').removeprefix('.')]}\n\n{module_list(members)}"
    return f"{text}\n{api_toctree(packages())}"


def package_page(package: str, members: list[str]) -> str:
    """The modules of a package; for `kdnotes` also the functions that it offers itself."""
    offered = [name for name in kdnotes.__all__ if package == "kdnotes" and f"kdnotes.{name}" not in members]
    functions = "".join(f".. autofunction:: {package}.{name}\n" for name in offered)
    head = f"# {package}\n\n{module_list(members)}\n"
    return f"{head}```{{eval-rst}}\n.. module:: {package}\n\n{functions}```\n\n{api_toctree(members)}"


def module_list(members: list[str]) -> str:
    sources = modules()
    return "".join(f"- {{py:mod}}`{name}`: {heading(sources[name])[1] if sources[name] else ''}\n" for name in members)


def api_toctree(names: Iterable[str]) -> str:
    return toctree(f"{name.rpartition('.')[2]} </api/{name}>" for name in names)


def module_page(module: str, source: Path | None) -> str:
    where = f"Explained, step by step and at work, in [{heading(source)[0]}](/{source.as_posix()}).\n\n" if source else ""
    return f"# {module}\n\n{where}```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"


def for_colab(out: Path) -> None:
    """Write every notebook behind a cell that installs what it needs."""
    install = INSTALL.format(repository=REPOSITORY, name=SETTINGS["DEFAULT"]["repo"])
    for path in notebooks():
        notebook = nbformat.read(ROOT / path, 4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(install, id="install"))
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out / path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--colab", action="store_true", help="write notebooks with an install cell instead")
    given = parser.parse_args()
    (for_colab if given.colab else stage)(given.out)
