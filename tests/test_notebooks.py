"""Every notebook of the book runs from top to bottom, as `nbdev_test` runs it."""

import os
import sys
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"


def in_the_book(path: Path) -> bool:
    """A folder with a `.notest` file (nbs/figures) is left to `kdnotes reproduce`."""
    hidden = any(part[0] in "._" for part in path.relative_to(NBS).parts)
    return not hidden and not (path.parent / ".notest").exists()


def passes(notebook: Path) -> bool:
    """Run a notebook in a copy of this process: what it registers in the package and in transformers ends with it."""
    from nbdev.config import get_config
    from nbdev.test import test_nb as run_notebook

    import kdnotes.methods  # noqa: F401 (imported once, here, and not by every copy)

    sys.stdout.flush()
    sys.stderr.flush()
    copy = os.fork()
    if copy == 0:
        passed = False
        try:
            passed, _ = run_notebook(notebook, skip_flags=get_config().tst_flags.split())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0 if passed else 1)  # never back into pytest
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook",
    [path for path in sorted(NBS.rglob("*.ipynb")) if in_the_book(path)],
    ids=lambda path: path.relative_to(NBS).as_posix(),
)
def test_notebook_runs(notebook, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    assert passes(notebook), f"{notebook.relative_to(ROOT)} fails: its traceback stands above"
