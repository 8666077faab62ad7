"""Every notebook of the book runs from top to bottom, as `nbdev_test` runs it."""

import gc
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"


def in_the_book(path: Path) -> bool:
    """A folder with a `.notest` file (nbs/figures) is left to `kdnotes reproduce`."""
    hidden = any(part[0] in "._" for part in path.relative_to(NBS).parts)
    return not hidden and not (path.parent / ".notest").exists()


@pytest.fixture
def registries():
    """A page registers its methods and tasks anew, from its own cells: the tests that follow get the package's back."""
    from kdnotes.data.tasks import TASKS
    from kdnotes.methods import METHODS

    before = [(registry, dict(registry)) for registry in (METHODS, TASKS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    "notebook",
    [path for path in sorted(NBS.rglob("*.ipynb")) if in_the_book(path)],
    ids=lambda path: path.relative_to(NBS).as_posix(),
)
def test_notebook_runs(notebook, monkeypatch):
    from nbdev.config import get_config
    from nbdev.test import test_nb as run_notebook

    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    passed, _ = run_notebook(notebook, skip_flags=get_config().tst_flags.split())
    gc.collect()  # one notebook's models must not add up with the next one's
    assert passed, f"{notebook.relative_to(ROOT)} fails: its traceback stands above"
