"""The house: folders that mirror each other, imports that go one way, and no name of a method in the machinery."""

import ast
import importlib
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import tiny

import kdnotes
from kdnotes import figures
from kdnotes.cli import artefacts
from kdnotes.experiments.reproduce import reproduce
from kdnotes.learning.registry import Declaration, declared, describe
from kdnotes.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NBS = ROOT / "kdnotes", ROOT / "nbs"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "_modidx.py"))

# A module imports from its own floor or one below, never from one above; the folders of one floor do not import each other.
FLOORS = (
    ("core",),
    ("data",),
    ("models",),
    ("learning",),
    ("baselines", "adabert", "l2a", "metakd"),
    ("methods",),
    ("experiments",),
    ("figures",),
    ("cli",),
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
METHOD_FOLDERS = FLOORS[4]


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(PACKAGE).as_posix())


# --- folders ----------------------------------------------------------------------------------------------------------


def test_every_module_comes_from_the_notebook_of_its_name_in_the_folder_of_its_name():
    for path in MODULES:
        source = re.search(r"File to edit: (?:\.\./)+nbs/(\S+)\.ipynb", path.read_text())
        folder, _, stem = source[1].rpartition("/")
        assert (folder, re.sub(r"^\d\d_", "", stem)) == (path.parent.relative_to(PACKAGE).as_posix().replace(".", ""), path.stem)


def test_a_folder_holds_what_its_numbers_order():
    for folder in FLOOR:
        numbers = [match[0] for path in sorted((NBS / folder).glob("*.ipynb")) if (match := re.match(r"\d\d(?=_)", path.stem))]
        assert len(set(numbers)) == len(numbers), f"two notebooks of nbs/{folder} have one number"


# --- imports ----------------------------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """Dotted names `kdnotes.x...` that a module imports: at its top, inside a function, or by `import_module`."""
    module, found = [kdnotes.__name__, *path.relative_to(PACKAGE).with_suffix("").parts], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names} if source == kdnotes.__name__ else {source}
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
            found |= {"computed"} if not all(isinstance(argument, ast.Constant) for argument in node.args) else set()
    return {name for name in found if name.startswith(f"{kdnotes.__name__}.") or name == "computed"}


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


FINDERS = ("methods.py", "cli.py")  # they import what declares itself: methods below them, figures below them


@each(MODULES)
def test_imports_go_one_way(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert room in FLOOR, f"{room} stands on no floor: add it to FLOORS and to CONTRIBUTING.md"
    for name in imported(path):
        assert name != "computed" or path.name in FINDERS, f"{path.name} imports a module that it computes the name of"
        other = name.partition(".")[2].partition(".")[0]
        if name == "computed" or other not in FLOOR:
            continue
        assert FLOOR[other] <= FLOOR[room], f"{path.name} imports {name} from a floor above"
        assert other == room or FLOOR[other] < FLOOR[room], f"{path.name} imports {name}, which stands on the same floor"


def test_the_finders_import_only_what_stands_below_them():
    assert {module.split(".")[1] for module in declared()} <= set(METHOD_FOLDERS)
    assert all(FLOOR["figures"] < FLOOR["cli"] for _ in artefacts())


def test_an_import_inside_a_function_and_a_computed_one_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "core").mkdir()
    module = tmp_path / "core" / "store.py"
    module.write_text(
        "def f(name):\n    from ..methods import distill\n    importlib.import_module(name)\n    __import__('kdnotes.cli')\n"
    )
    assert imported(module) == {"kdnotes.methods", "kdnotes.cli", "computed"}


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = set(METHODS)
ENCODERS = {"models/pretrained.py": {"minilm"}}  # an encoder of that name, which is older than the method


def compared_names(text: str) -> list[str]:
    """Names of methods that a module compares something with: by an operator, by `in`, by `isin`, by `match`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        parts = []
        if isinstance(node, ast.Compare) and not any(
            ast.unparse(part).endswith("role") for part in (node.left, *node.comparators)
        ):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and called(node) in ("isin", "startswith", "endswith", "eq", "ne"):
            parts = node.args
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        literals = [inner for part in parts for inner in ([part] if isinstance(part, ast.Constant) else literal_items(part))]
        found += [one.value for one in literals if one.value in NAMES]
    return found


def literal_items(node: ast.AST) -> list[ast.Constant]:
    items = getattr(node, "elts", []) if not isinstance(node, ast.Dict) else node.keys
    return [item for item in items if isinstance(item, ast.Constant)]


def plan_functions(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "runs"}


@each([path for path in MODULES if path.relative_to(PACKAGE).parts[0] not in METHOD_FOLDERS])
def test_no_module_outside_a_methods_folder_compares_with_its_name(path):
    tree = ast.parse(path.read_text())
    plans = plan_functions(tree) if path.parent.name == "figures" else set()
    outside = [node for node in tree.body if getattr(node, "name", "") not in plans]
    found = {name for node in outside for name in compared_names(ast.unparse(node))}
    found -= ENCODERS.get(path.relative_to(PACKAGE).as_posix(), set())
    assert not found, f"{path.name} compares with {found}: let the method say it when it registers"


def test_comparisons_with_names_are_seen():
    text = "a == 'kd'\nb in ('teacher', 'x')\nc.isin(['l2a'])\nd['majority'] = 1\ne.role == 'teacher'\n"
    assert sorted(compared_names(text)) == ["kd", "l2a", "teacher"]


@each([path for path in MODULES if path.relative_to(PACKAGE).parts[0] in ("methods", "experiments", "cli")])
def test_no_module_looks_for_a_setting_by_name(path):
    """What a method needs it declares; nobody asks whether it has a keyword `warm` or `leave_out`."""
    looked = re.findall(r"(?:in|&) \{?\(?['\"]\w+['\"][^\n]*\.settings|['\"]\w+['\"] in [\w.]*settings", path.read_text())
    assert not looked


# --- declarations -----------------------------------------------------------------------------------------------------


def test_what_is_read_from_the_text_is_what_registers():
    read = {one.name: one for some in declared().values() for one in some}
    assert read.keys() == METHODS.keys()
    for name, method in METHODS.items():
        assert read[name] == Declaration(**{field.name: getattr(method, field.name) for field in fields(Declaration)})
        assert method.title and method.summary and method.family != "other", f"{name} says too little of itself"
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_there_is_one_teacher_and_one_majority():
    roles = [method.role for method in METHODS.values()]
    assert all(roles.count(role) == 1 for role in ("teacher", "majority", "bag of words", "undistilled"))
    assert describe("nobody").family == "other" and not describe("nobody").is_reference


# --- the three recipes: each touches one file, or none ----------------------------------------------------------------

METHOD = '''
from kdnotes import register_method
from kdnotes.learning.problem import Problem


@register_method("toy", "the teacher after a nap", title="Toy", family="distillation", seeded=False)
def fit_toy(problem: Problem, nap: float = 1.0):
    """The teacher, unchanged."""
    return problem.teacher
'''
FIGURE = '''
from kdnotes.experiments.landscape import draw_landscape
from kdnotes.experiments.claims import Claim, above
from kdnotes.experiments.plans import Plan, Run


def runs(size, seed):
    """A teacher, a student and the toy."""
    return [Run(method, "shop") for method in ("majority", "teacher", "undistilled", "toy")]


CLAIMS = (Claim("T1", "A toy beats labels alone", "this test", above("toy", "undistilled"), student=("toy", "")),)
PLAN = Plan("toy_figure", "A toy among students", CLAIMS, runs)
draw = draw_landscape
'''


def notebook(module: str, *cells: str) -> nbformat.NotebookNode:
    """A notebook that exports these cells and runs its plan, as the figures do."""
    new = nbformat.v4.new_code_cell
    parameters = 'profile = "world"\nseeds = 0\nstore = ""\noutput = ""\nbegan = 0.0\noverrides = {}'
    work = "from kdnotes.experiments.opened import open_artefact\n"
    work += "opened = open_artefact(PLAN, profile, seeds, store, output, began, overrides)"
    made = nbformat.v4.new_notebook(cells=[new(f"#| default_exp {module}"), *(new(f"#| export\n{cell}") for cell in cells)])
    made.cells[1:1] = [new(parameters, metadata=dict(tags=["parameters"]))]
    made.cells += [new(work), new("opened.save(draw)")]
    made.metadata.kernelspec = dict(name="python3", display_name="python3", language="python")
    return made


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder of reviews, as somebody has them; the registry of tasks is as before afterwards."""
    rows = pd.DataFrame(
        [dict(review=f"a {word} thing number {i}", stars=int(word == "good")) for i in range(150) for word in ("good", "bad")]
    )
    (tmp_path / "shop").mkdir()
    rows[:200].to_parquet(tmp_path / "shop" / "train.parquet")
    rows[200:].to_parquet(tmp_path / "shop" / "test.parquet")
    from kdnotes.data import tasks

    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    return tmp_path / "shop"


@pytest.mark.slow
def test_a_method_a_task_and_a_figure_touch_no_other_file(shop, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "kd", METHODS["kd"])  # so that the registry is as before afterwards
    before = dict(METHODS)

    # a method is one notebook: exported into a folder of methods, it is found because it is there
    exec(METHOD, {})
    assert METHODS["toy"].settings == {"nap": 1.0} and describe("toy").title == "Toy"

    # a task is one call
    kdnotes.register_task(kdnotes.folder_task("shop", shop, text="review", label="stars"))

    # a figure is one notebook: planned, run and drawn by the batch, found by walking the figures
    checkout = tmp_path / "checkout"
    (checkout / "nbs" / "figures").mkdir(parents=True)
    cells = [
        METHOD,
        f"import kdnotes\nkdnotes.register_task(kdnotes.folder_task('shop', {str(shop)!r}, text='review', label='stars'))",
    ]
    nbformat.write(notebook("figures.toy_figure", *cells, FIGURE), checkout / "nbs" / "figures" / "toy_figure.ipynb")
    package = tmp_path / "rooms"
    package.mkdir()
    (package / "toy_figure.py").write_text(FIGURE)
    monkeypatch.setattr(figures, "__path__", [str(package)])
    importlib.invalidate_caches()
    monkeypatch.chdir(checkout)
    found = artefacts()
    assert list(found) == ["toy_figure"]
    sizes = {**tiny.RUN, "rows": 80, "teacher_rows": 100, "source": "local", "encoder": "world"}
    (folder,) = reproduce(found, out=tmp_path / "build", say=lambda line: None, seeds=1, **sizes)
    assert {path.name for path in folder.iterdir()} >= {"figure.png", "table.csv", "runs.jsonl"}
    rows = pd.read_csv(folder / "table.csv")
    assert {"toy", "teacher"} <= set(rows.method) and json.loads((folder / "provenance.json").read_text())[
        "artefact"
    ] == "toy_figure"
    for name in METHODS.keys() - before.keys():
        del METHODS[name]
    shutil.rmtree(tmp_path / "build")


@pytest.mark.slow
def test_a_method_that_stands_in_a_folder_is_found(tmp_path):
    """In a copy of the package: one module more, and it is listed, described and loaded."""
    import subprocess
    import sys

    shutil.copytree(PACKAGE, tmp_path / "kdnotes", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "kdnotes" / "baselines" / "toy.py").write_text(
        METHOD.replace("from kdnotes import", "from kdnotes.learning.registry import")
    )
    code = "from kdnotes.cli import app; from typer.testing import CliRunner; import sys;"
    code += "said = CliRunner().invoke(app, ['tasks']).output; assert 'torch' not in sys.modules, 'torch'; print(said);"
    code += "from kdnotes.methods import METHODS; print(METHODS['toy'].title)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "the teacher after a nap" in said.stdout and said.stdout.strip().endswith("Toy")
