"""Stage the site: `python docs/convert.py FOLDER` writes there what Sphinx reads, from the notebooks as they are stored.

Nothing is executed. nbdev's own `proc_nbs` runs every exported cell and then hides it behind its signature; in this
book the definition is what the reader came for, so the few directives are applied here. `--colab FOLDER` writes the
same notebooks for Colab instead: unchanged, behind one cell that installs.
"""

import argparse
import json
import re
import shutil
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from urllib.parse import quote

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ConfigParser()
SETTINGS.read(ROOT / "settings.ini")
REPOSITORY = SETTINGS["DEFAULT"]["git_url"]

# The groups of the book by the number of a notebook; one that has no notebook yet is left out.
GROUPS = {
    range(0, 5): "Tasks and worlds",
    range(5, 20): "Teachers, students, training",
    range(20, 30): "AdaBERT",
    range(30, 40): "L2A",
    range(40, 50): "Meta-KD",
    range(50, 60): "The landscape",
    range(60, 100): "Methods and experiments",
}
# What a directive of a cell asks of myst-nb; `hide` and `default_exp` leave the whole cell out.
TAGS = {"echo: false": "remove-input", "output: false": "remove-output", "code-fold: true": "hide-input"}
DIRECTIVE = re.compile(r"^#\|[ \t]*([\w-]+)(:?)[ \t]*(.*)\n?", re.M)
EQUATION = re.compile(r"(\$\$.+?\$\$)([ \t]*\([\w-]+\))?", re.S)
FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)
INSTALL = """\
# Once per Colab session: the repository with its stored runs, and the package. It takes a minute or two.
!git clone -q --depth 1 {repository}
%cd {name}
%pip install -q ".[reproduce]"\
"""


def notebooks(folder: str = "") -> list[Path]:
    """The notebooks of `nbs/<folder>`, relative to the root, in order of their names."""
    found = (ROOT / "nbs" / folder).glob("*.ipynb")
    return sorted(path.relative_to(ROOT) for path in found)


def book() -> dict[str, list[Path]]:
    """Group -> its notebooks; the number that a name begins with decides.

    Raises
    ------
    ValueError
        A notebook without a number, or with one that no group holds.
    """
    groups = {title: [] for title in GROUPS.values()}
    for path in notebooks():
        if path.stem == "index":
            continue
        number = re.match(r"\d+", path.stem)
        title = next((title for numbers, title in GROUPS.items() if number and int(number[0]) in numbers), None)
        if title is None:
            raise ValueError(f"{path}: its name must begin with a number that a group holds, see GROUPS")
        groups[title].append(path)
    return {title: paths for title, paths in groups.items() if paths}


def modules() -> dict[str, Path | None]:
    """Public module -> the notebook it is exported from."""
    found = {}
    for path in sorted((ROOT / "kdnotes").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            source = re.search(r"File to edit: (?:\.\./)+(nbs/\S+\.ipynb)", path.read_text())
            found[".".join(parts)] = Path(source[1]) if source else None
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
        part = re.sub(r"(?<!\[)`(\d\d_\w+)`", lambda m: f"[`{m[1]}`](/nbs/{m[1]}.ipynb)" if here(m[1]) else m[0], part)
        return link_names(part, "{{{}}}")

    return outside_code(change, text)


def here(stem: str) -> bool:
    return (ROOT / "nbs" / f"{stem}.ipynb").exists()


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


def committed(path: Path) -> str:
    """What a figure notebook last drew, for its page: it is run in batch, and stored without outputs."""
    shown = ""
    for found in sorted((ROOT / "figures").glob("*/*/provenance.json"), reverse=True):
        if json.loads(found.read_text()).get("notebook") == path.as_posix():
            folder, profile = found.parent.relative_to(ROOT).as_posix(), found.parent.name
            table = f"{{ref}}`the table <{found.parent.parent.name}-{profile}>`"
            shown += f"```{{figure}} /{folder}/figure.png\nCommitted, profile `{profile}`; with {table}.\n```\n\n"
    return shown


def convert(path: Path) -> nbformat.NotebookNode:
    """A notebook as myst-nb is to render it."""
    notebook = nbformat.read(ROOT / path, 4)
    count = iter(range(1, 1000))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = prose(cell.source, path.stem, count)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or apply_directives(cell)]
    first = notebook.cells[0]
    head = re.match(r"# .*\n*(?:>.*\n?)*", first.source)
    if head is None:
        raise ValueError(f"{path}: its first cell must begin with a title, '# ...', got {first.source[:40]!r}")
    code = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    if code:
        first.source = f"{head[0].rstrip()}\n\n{links(path)}\n{first.source[head.end() :]}"
    if pictures := committed(path):
        notebook.cells.insert(code[0], nbformat.v4.new_markdown_cell(pictures))
    return notebook


def heading(path: Path) -> tuple[str, str]:
    """Title and one-line summary of a notebook."""
    source = nbformat.read(ROOT / path, 4).cells[0].source
    summary = re.search(r"^> (.*)", source, re.M)
    return re.match(r"# (.*)", source)[1], summary[1] if summary else ""


def toctree(pages, caption: str = "") -> str:
    entries = "\n".join(page if "<" in page else f"/{page}" for page in pages)
    return f"```{{toctree}}\n:hidden:\n{caption and f':caption: {caption}'}\n\n{entries}\n```\n"


def listing(paths: list[Path]) -> str:
    return "".join(f"- [{title}](/{path.as_posix()}): {summary}\n" for path in paths for title, summary in [heading(path)])


def stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def stage(out: Path) -> None:
    """Write the whole source of the site into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "api").mkdir(parents=True)
    guides = [Path("nbs/index.ipynb"), *notebooks("guides")]
    for path in (*guides, *notebooks("figures"), *sum(book().values(), [])):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(convert(path), out / path)

    for page in ("CONTRIBUTING.md", "CHANGELOG.md", "docs/index.md"):
        shutil.copy(ROOT / page, out)
    shutil.copytree(ROOT / "figures", out / "figures", ignore=shutil.ignore_patterns("*.jsonl", "*.svg"))
    figures = re.sub(r"^(?=## (\w+), profile `(\w+)`$)", r"(\1-\2)=\n", (out / "figures" / "README.md").read_text(), flags=re.M)
    (out / "figures" / "README.md").write_text(figures + "\n" + toctree(map(stem, notebooks("figures"))))

    (out / "guides.md").write_text(guides_page(guides))
    (out / "book.md").write_text(book_page())
    (out / "api" / "index.md").write_text(api_page())
    for module, source in modules().items():
        (out / "api" / f"{module}.md").write_text(module_page(module, source))


def guides_page(guides: list[Path]) -> str:
    contents = toctree(["Overview </nbs/index>", *map(stem, guides[1:])])
    return f"# Guides\n\nShort ways in.\n\n{listing(guides)}\n{contents}"


def book_page() -> str:
    text = "# The book\n\nOne notebook, one idea, one module: each runs from top to bottom in seconds per cell.\n"
    for title, paths in book().items():
        text += f"\n## {title}\n\n{listing(paths)}\n{toctree(map(stem, paths), title)}"
    return text


def api_page() -> str:
    front = "".join(f".. autofunction:: kdnotes.{name}\n" for name in ("fine_tune", "distill", "run", "load_task"))
    listed = "".join(f"- {{py:mod}}`{module}`\n" for module in modules())
    contents = toctree(f"{module.removeprefix('kdnotes.')} </api/{module}>" for module in modules())
    return f"""# API

What each module exports. `import kdnotes` itself offers the front door:

```{{eval-rst}}
.. module:: kdnotes

{front}```

## Modules

{listed}
{contents}"""


def module_page(module: str, source: Path | None) -> str:
    where = f"Explained, step by step and at work, in [{heading(source)[0]}](/{source.as_posix()}).\n\n" if source else ""
    return f"# {module}\n\n{where}```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"


def for_colab(out: Path) -> None:
    """Write every notebook behind a cell that installs what it needs."""
    install = INSTALL.format(repository=REPOSITORY, name=SETTINGS["DEFAULT"]["repo"])
    for path in (*notebooks(), *notebooks("guides"), *notebooks("figures")):
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
