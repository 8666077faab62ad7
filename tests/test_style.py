"""The notebooks keep the house style of CONTRIBUTING.md: what can be counted is counted here.

That they are clean (no execution counts), in step with their modules, and import only floors below, is in
`test_project.py`; that they run, in `test_notebooks.py`.
"""

import ast
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1] / "nbs"
LONGEST_CELL = 40
MOST_EXPORTED = 300

ALL = sorted(path for path in NBS.rglob("*.ipynb") if not any(p[0] in "._" for p in path.relative_to(NBS).parts))
FIGURES = [path for path in ALL if path.parent == NBS / "figures"]
BOOK = [path for path in ALL if path not in FIGURES]
MODULE_NOTEBOOKS = [
    path for path in ALL if any("default_exp" in "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
]


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(NBS).as_posix())


def cells(path: Path, kind: str | None = None) -> list[dict]:
    found = json.loads(path.read_text())["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if kind in (None, cell["cell_type"])]


def exported(path: Path) -> list[str]:
    return [cell["source"] for cell in cells(path, "code") if re.match(r"#\|\s*exports?\b", cell["source"])]


def lines(source: str) -> list[str]:
    """The lines of a cell that are neither blank nor directives."""
    return [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]


def is_one_sentence(text: str) -> bool:
    return text.endswith(".") and not re.search(r"(?<!e\.g)(?<!i\.e)(?<!vs)(?<!et al)[.!?]\s+[A-Z]", text)


def public_definitions(source: str) -> list[ast.AST]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.parse(source).body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_there_is_a_book():
    assert MODULE_NOTEBOOKS


@each(ALL)
def test_first_cell_is_a_title_and_one_line_about_it(path):
    first = cells(path)[0]
    assert first["cell_type"] == "markdown"
    title, about = lines(first["source"])[:2]
    assert re.match(r"# \S", title), f"expected '# Title', got {title!r}"
    assert re.match(r"> \S", about), f"expected '> one line about it', got {about!r}"


@each(MODULE_NOTEBOOKS)
def test_names_its_module_once(path):
    directives = re.findall(r"(?m)^#\|\s*default_exp\s+\S+", "\n".join(cell["source"] for cell in cells(path, "code")))
    assert len(directives) == 1, f"expected one '#| default_exp module', got {directives}"


@each(ALL)
def test_cells_are_short(path):
    bodies = [lines(cell["source"]) for cell in cells(path, "code")]
    long = [(body[0], len(body)) for body in bodies if len(body) > LONGEST_CELL]
    assert not long, f"cells of more than {LONGEST_CELL} lines, by their first line: {long}"


@each(MODULE_NOTEBOOKS)
def test_exports_little(path):
    count = sum(len(lines(source)) for source in exported(path))
    assert count < MOST_EXPORTED, f"{count} exported lines: split the notebook"


@each(MODULE_NOTEBOOKS)
def test_public_definitions_say_in_one_sentence_what_they_do(path):
    for source in exported(path):
        for node in public_definitions(source):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            assert is_one_sentence(summary), f"{node.name}: its docstring must open with one sentence, got {summary!r}"


@each(ALL)
def test_nothing_is_left_to_do(path):
    assert not [cell["source"] for cell in cells(path) if re.search(r"\b(TODO|FIXME|XXX)\b", cell["source"])]


@each(FIGURES)
def test_figure_has_one_cell_of_parameters(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"papermill needs exactly one cell tagged 'parameters', got {len(tagged)}"


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("Mean squared difference of the logits (BiLSTM-SOFT, arXiv 1903.12136).", True),
        ("The gradient, as in Hinton et al. 2015.", True),
        ("Load a task, e.g. SST-2.", True),
        ("Load a task. Then split it.", False),
        ("Load a task", False),
        ("", False),
    ],
)
def test_one_sentence_is_recognised(summary, expected):
    assert is_one_sentence(summary) is expected


def test_only_public_exported_definitions_are_counted():
    source = "def a(): ...\ndef _b(): ...\nclass C:\n    def d(self): ...\n"
    assert [node.name for node in public_definitions(source)] == ["a", "C"]
    assert lines("#| export\n\nx = 1\n# why\n") == ["x = 1", "# why"]
