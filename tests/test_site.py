"""The site: built once from the notebooks as they are stored, read page by page, and opened in Chromium where there is one."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest

pytest.importorskip("sphinx", reason="the site needs the extra `docs`: pip install '.[docs]'")
from bs4 import BeautifulSoup  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
BOOK = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
sys.path.insert(0, str(ROOT / "docs"))
from convert import GROUPS, apply_directives, book, for_colab, group, link_names, modules, names, packages, prose  # noqa: E402


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built site, and what Sphinx warned of."""
    folder = tmp_path_factory.mktemp("site")
    stage, html = folder / "stage", folder / "html"
    subprocess.run([sys.executable, "docs/convert.py", str(stage)], cwd=ROOT, check=True)
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-c", "docs", "-d", str(folder / "doctrees"), str(stage), str(html)]
    run = subprocess.run(sphinx, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return html, run.stderr


@pytest.fixture(scope="module")
def site(built):
    return built[0]


@pytest.fixture(scope="module")
def pages(site):
    """Address -> the page, read."""
    found = {path.relative_to(site).as_posix(): path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    return {name: BeautifulSoup(path.read_text(), "html.parser") for name, path in found.items()}


def docname(module: str) -> str:
    """The page that explains a module, whatever its number: `nbs/learning/01_losses`."""
    return modules()[f"kdnotes.{module}"].with_suffix("").as_posix()


def titles() -> list[str]:
    return [GROUPS[folder] for folder in book()]


def plain(tag) -> str:
    return tag.text.strip().replace("’", "'")


def stored(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def article(page):
    return page.select_one("article")


# --- the converter ----------------------------------------------------------------------------------------------------


def test_directives_are_done_and_taken_out():
    import nbformat

    def shown(source):
        cell = nbformat.v4.new_code_cell(source)
        return apply_directives(cell) and cell

    assert not shown("#| hide\nx = 1") and not shown("#| default_exp losses")
    assert shown("#| export\nx = 1").source == "x = 1"
    assert shown("#| echo: false\nx").metadata.tags == ["remove-input"]
    assert shown("#| echo: true\nx").metadata.tags == []
    assert shown("#| code-fold: true\nx").metadata.tags == ["hide-input"]
    captioned = shown('#| fig-cap: "Depth: one to six."\nplot()')
    assert captioned.metadata.mystnb.figure.caption == "Depth: one to six." and captioned.source == "plot()"


def test_names_that_can_mean_something_else_are_not_linked():
    assert "train" not in names() and "kd_loss" in names() and "from_pretrained" not in names()
    assert link_names("`kd_loss` on `train`", "{{{}}}") == "{py:obj}`kd_loss <kdnotes.learning.losses.kd_loss>` on `train`"


def test_equations_are_numbered_but_not_in_code():
    text = "$$ a $$\n\n```\n$$ b $$ and `kd_loss`\n```\n\n$$ c $$ (mine)\n\n$$ d $$"
    wanted = "$$ a $$ (p-1)\n\n```\n$$ b $$ and `kd_loss`\n```\n\n$$ c $$ (mine)\n\n$$ d $$ (p-2)"
    assert prose(text, "p", iter(range(1, 9))) == wanted


def test_pages_in_backticks_become_links():
    text = "`learning/01_losses`, `02_cli`, `figures/fig05`, `guides/your_own_data`"
    wanted = [
        f"[`{page}`](/nbs/{page}.ipynb)" for page in ("learning/01_losses", "02_cli", "figures/fig05", "guides/your_own_data")
    ]
    assert prose(text, "p", iter(())) == ", ".join(wanted)
    left = "`task/domain`, `nbs/figures`, `fig05`, [`02_cli`](https://example.org)\n\n```\n`02_cli`\n```"
    assert prose(left, "p", iter(())) == left


def test_colab_gets_every_notebook_behind_an_install_cell(tmp_path):
    for_colab(tmp_path)
    for path in BOOK:
        install, *cells = stored(tmp_path / path.relative_to(ROOT))
        assert "pip install" in "".join(install["source"]) and not install["outputs"]
        assert [cell["source"] for cell in cells] == [cell["source"] for cell in stored(path)]


def test_a_folder_is_a_group():
    assert group(Path("nbs/learning/99_new.ipynb")) == group(Path("kdnotes/learning/deep/new.py")) == "learning"
    assert group(Path("nbs/tour.ipynb")) == next(iter(GROUPS)) == "tour"
    assert group(Path("nbs/03_new.ipynb")) == group(Path("kdnotes/new.py")) == ""
    with pytest.raises(ValueError, match="nbs/elsewhere/01_new.ipynb: the folder 'elsewhere' needs a title"):
        group(Path("nbs/elsewhere/01_new.ipynb"))


def test_book_and_package_mirror_each_other():
    without_module = {"guides", "tour"}
    assert list(book()) == [folder for folder in GROUPS if folder in book()]
    assert list(packages()) == [f"kdnotes.{folder}".rstrip(".") for folder in book() if folder not in without_module]
    for module, source in modules().items():
        assert source, f"{module} comes from no notebook"
        assert module == ".".join(["kdnotes", *source.parts[1:-1], re.sub(r"^\d+_", "", source.stem)])


# --- the built pages --------------------------------------------------------------------------------------------------


def test_build_warns_of_nothing(built):
    assert not built[1], built[1]


@pytest.mark.parametrize("path", BOOK, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_notebook_has_its_page(path, pages):
    page = article(pages[path.relative_to(ROOT).with_suffix(".html").as_posix()])
    cells = stored(path)
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert len(page.select(".cell_output img")) == pictures
    captioned = sum("#| fig-cap" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert len(page.select(".cell_output figcaption")) == captioned
    equations = sum("".join(cell["source"]).count("$$") // 2 for cell in cells if cell["cell_type"] == "markdown")
    assert len(page.select(".eqno")) == equations
    code = sum(cell["cell_type"] == "code" and "default_exp" not in "".join(cell["source"]) for cell in cells)
    assert len(page.select("div.cell")) == code
    assert not code or {link.text for link in page.select(".where a")} >= {"Binder", "Colab"}


def test_book_is_in_order(pages):
    contents = [unquote(link["href"]) for link in article(pages["book.html"]).select("li a.reference.internal")]
    shown = [href.removesuffix(".html") for href in contents if href.startswith("nbs/")]
    assert shown == [path.with_suffix("").as_posix() for paths in book().values() for path in paths]
    assert all(paths == sorted(paths) for paths in book().values())
    assert [plain(heading).rstrip("#") for heading in article(pages["book.html"]).select("h2")] == titles()
    every = {path.relative_to(ROOT).with_suffix("").as_posix() for path in BOOK}
    assert set(shown) == every - {"nbs/index"} and len(shown) == len(set(shown))


def test_sidebar_shows_the_groups_and_opens_one(pages):
    page = pages[f"{docname('learning.losses')}.html"]
    entries = page.select(".bd-sidebar-primary .bd-links .toctree-l1")
    assert [plain(entry.select_one("a")) for entry in entries] == titles()
    assert [plain(entry.select_one("a")) for entry in entries if entry.select("details[open]")] == [GROUPS["learning"]]


def test_modules_are_grouped_by_package(pages):
    page = article(pages["api/index.html"])
    linked = [link.text for link in page.select("li a") if link.text in modules()]
    assert linked == list(modules())
    for package, members in packages().items():
        listed = [link.text for link in article(pages[f"api/{package}.html"]).select("li a") if link.text in modules()]
        assert listed == members


def test_page_and_module_link_to_each_other(pages):
    for path in BOOK:
        where = path.relative_to(ROOT)
        exported = [module for module, source in modules().items() if source == where]
        named = article(pages[where.with_suffix(".html").as_posix()]).select(".where a[href*='api/']")
        assert [link.text for link in named] == exported
        for module in exported:
            back = article(pages[f"api/{module}.html"]).select_one("p a.reference.internal")
            assert unquote(back["href"]).endswith(where.with_suffix(".html").as_posix())


def words(page: Path, *without: str) -> str:
    """What a page says, its tags and the content of these elements left out."""
    html = page.read_text()
    for tag in ("script", "style", "head", *without):
        html = re.sub(rf"<{tag}\b.*?</{tag.split()[0]}>", "", html, flags=re.S)
    return re.sub(r"<[^>]*>", "", html)


def test_no_directive_is_left(pages, site):
    for name in pages:
        said = words(site / name, "code")
        found = re.search(r"^\s*(#\||:::|```\{).*|\{py:\w+|:py:\w+", said, re.M)
        assert not found, f"{name}: {found[0]}"


def test_no_mathematics_is_left_as_text(pages, site):
    for name in pages:
        said = words(site / name, "code", "pre", 'span class="math', 'div class="math')
        found = re.search(r"\$[^$\n]+\$|\\\(|\\frac|\\mathcal", said)
        assert not found, f"{name}: {found[0]}"


def test_links_and_pictures_lead_somewhere(pages, site):
    dead = []
    ids = {name: {tag["id"] for tag in page.select("[id]")} for name, page in pages.items()}
    for name, page in pages.items():
        for tag in page.select("a[href], img[src], script[src], link[href]"):
            address = tag.get("href") or tag.get("src")
            parts = urlparse(address)
            if parts.scheme or parts.netloc:
                if tag.name != "a" and parts.scheme != "data":
                    dead.append(f"{name} loads {address} from elsewhere")
                continue
            target = urljoin(name, unquote(parts.path)) if parts.path else name
            target = target + "index.html" if target.endswith("/") or not target else target
            if not (site / target).is_file():
                dead.append(f"{name} -> {address}")
            elif parts.fragment and target in ids and unquote(parts.fragment) not in ids[target] and not address == "#":
                dead.append(f"{name} -> {address}: no such place on the page")
    assert not dead, "\n".join(sorted(set(dead)))


def test_every_module_has_its_page(pages):
    index = {}
    exec((ROOT / "kdnotes" / "_modidx.py").read_text(), index)
    for module in modules():
        described = {tag["id"] for tag in pages[f"api/{module}.html"].select("dt[id]")}
        source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
        exported = re.search(r"^__all__ = \[(.*?)\]", source, re.M | re.S)
        for name in re.findall(r"'(\w+)'", exported[1] if exported else ""):
            documented = re.search(rf'^(?:def|class) {name}\b[^"\']*?:\n +"""', source, re.M)
            assert not documented or f"{module}.{name}" in described, f"{module}.{name} is not on its page"


def test_docstring_parameters_are_not_taken_for_types(pages):
    described = (
        pages["api/kdnotes.learning.losses.html"]
        .select_one("dt[id='kdnotes.learning.losses.cross_entropy']")
        .find_next_sibling("dd")
    )
    first = described.select_one("dd li")
    assert first.select_one("strong").text == "logits" and "token task" in first.text and not first.select("em")


def test_figures_page_shows_every_committed_artefact(pages):
    page = article(pages["figures/README.html"])
    committed = sorted(found.parent for found in (ROOT / "figures").glob("*/*/provenance.json"))
    assert committed and len(page.select("img")) == len(committed)
    assert len(page.select("table")) == len(committed) and page.get_text().count("Made by: kdnotes reproduce") == len(committed)
    for path in book()["figures"]:
        assert any(link["href"].endswith(f"/{path.with_suffix('.html').as_posix()}") for link in page.select("a[href]"))


def test_figure_shows_its_code_and_what_was_committed(pages):
    for path in book()["figures"]:
        page = article(pages[path.with_suffix(".html").as_posix()])
        assert any("profile = " in cell.text for cell in page.select("div.cell_input")), "its parameters are shown"
        exported = [cell for cell in stored(ROOT / path) if "#| export" in "".join(cell["source"])]
        assert exported and len(page.select("div.cell_input")) > len(exported)
        committed = len(list((ROOT / "figures" / path.stem).glob("*/provenance.json")))
        assert len(page.select("img")) >= committed


def test_search_knows_the_book(site, pages):
    index = (site / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    known = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    assert {docname("baselines.tinybert"), "api/kdnotes.learning.losses", "figures/README"} <= set(known["docnames"])
    assert known["terms"]["temperatur"] and "kdnotes.learning.losses" in known["objects"]


# --- in a browser -----------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def tab():
    """A page of headless Chromium, with a list of what went wrong in it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="driving Chromium needs playwright: pip install '.[dev]'")
    quiet = [f"--disable-{what}" for what in ("quic", "background-networking", "component-update", "sync")]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *quiet])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.wrong = []
        tab.on("console", lambda message: message.type == "error" and tab.wrong.append(message.text))
        tab.on("pageerror", lambda error: tab.wrong.append(str(error)))
        lost = lambda request: request.failure != "net::ERR_ABORTED" and tab.wrong.append(f"failed: {request.url}")  # noqa: E731
        tab.on("requestfailed", lost)  # what is aborted was left over when the next page was opened
        tab.on("response", lambda reply: reply.status >= 400 and tab.wrong.append(f"{reply.status}: {reply.url}"))
        yield tab
        browser.close()


LOOK = """async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    const wrong = [], count = (what) => document.querySelectorAll(what).length;
    for (const picture of document.images) {
        picture.loading = 'eager';
        await picture.decode().catch(() => wrong.push('no picture: ' + picture.src.slice(0, 80)));
    }
    for (const math of document.querySelectorAll('.math'))
        if (!math.querySelector('mjx-container')) wrong.push('not rendered: ' + math.textContent.trim().slice(0, 80));
    for (const math of document.querySelectorAll('div.math mjx-container'))
        if (innerWidth > 1200 && math.scrollWidth > math.clientWidth + 1) wrong.push('cut off: ' + math.closest('div').id);
    if (count('[data-mjx-error], mjx-merror')) wrong.push('MathJax reports an error');
    const over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    if (over > 0) wrong.push('the page is ' + over + ' pixels too wide');
    return wrong;
}"""


@pytest.mark.slow
def test_every_page_in_a_browser(pages, address, tab):
    wrong = {}
    for name in pages:
        tab.wrong.clear()
        tab.goto(f"{address}/{name}", wait_until="load")
        if found := tab.evaluate(LOOK) + tab.wrong:
            wrong[name] = list(found)
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["index", "book", docname("baselines.tinybert"), "figures/README", "api/kdnotes.learning.losses"]
)
def test_page_fits_a_phone(name, address, tab):
    tab.wrong.clear()
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.goto(f"{address}/{name}.html")
    found = tab.evaluate(LOOK) + tab.wrong
    tab.set_viewport_size({"width": 1280, "height": 900})
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked, page",
    [("temperature", docname("learning.losses")), ("kd_loss", "kdnotes.learning.losses"), ("patient", docname("baselines.pkd"))],
)
def test_search_finds(asked, page, address, tab):
    tab.wrong.clear()
    tab.goto(f"{address}/search.html?q={asked}")
    tab.wait_for_function("document.querySelector('#search-results p')?.textContent.includes('found')")
    hits = tab.eval_on_selector_all("ul.search li a", "links => links.map(link => link.href)")
    assert any(page in hit for hit in hits) and not tab.wrong
