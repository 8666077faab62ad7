"""Code that computes something else has another version, so that no old result is taken for one of it."""

import json

import pytest
import versions

from kdnotes.core.records import address
from kdnotes.data.splits import PHRASES_VERSION
from kdnotes.experiments.runs import teacher_spec
from kdnotes.experiments.specs import make_spec
from kdnotes.learning.registry import METHODS

THEN, NOW = json.loads(versions.FILE.read_text()), versions.now()


@pytest.mark.parametrize("name", sorted(THEN | NOW))
def test_changed_code_has_another_version(name):
    then, now = THEN.get(name), NOW.get(name)
    if then == now:
        return
    if then and now and then["version"] == now["version"]:
        pytest.fail(
            f"the code of {name} is not that of version {now['version']} any more. Where a run gives another result now, raise "
            "the version and make the runs anew; where every result is the same, bit for bit, leave it. "
            "Then: python tests/versions.py"
        )
    pytest.fail(f"{name} is not written down as it is now: python tests/versions.py")


def test_a_version_is_part_of_the_address(monkeypatch):
    import dataclasses

    before = address(make_spec("kd", "sst2"))
    monkeypatch.setitem(METHODS, "kd", dataclasses.replace(METHODS["kd"], version=METHODS["kd"].version + 1))
    assert address(make_spec("kd", "sst2")) != before


def test_how_phrases_are_dealt_is_part_of_the_address_where_there_are_any():
    real = dict(profile="laptop", read_data=False)
    films, transferred = make_spec("kd", "sst2", **real), make_spec("kd", "clinc150", transfer=("sst2",), **real)
    assert films["phrases"] == transferred["phrases"] == teacher_spec(films)["phrases"] == PHRASES_VERSION
    assert "phrases" not in make_spec("kd", "sst2") | make_spec("kd", "clinc150", **real)


def test_prose_is_no_code_and_code_is(tmp_path):
    file = tmp_path / "some.py"
    hashes = []
    for text in ('def f():\n    """One."""\n    return 1', 'def f():\n    """Two."""\n    return 1', "def f():\n    return 2"):
        file.write_text(text)
        hashes.append(versions.of_files([file]))
    assert hashes[0] == hashes[1] != hashes[2]
