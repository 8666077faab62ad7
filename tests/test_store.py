"""The store keeps its promises when writers are killed, collide, or find their files damaged."""

import errno
import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.core import store as module
from kdnotes.core.files import write_atomic
from kdnotes.core.provenance import provenance
from kdnotes.core.records import address, pack, pack_sequences, read_lines, seal, unpack, unpack_sequences, unseal, write_lines
from kdnotes.core.store import Store

ROOT = Path(__file__).resolve().parents[1]
QUICK = settings(max_examples=50, deadline=None)  # a busy machine is no failure
INT16 = st.integers(-(2**15), 2**15 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SPECS = st.dictionaries(st.text(), JSON, max_size=5)


def spec_of(seed=0, **more):
    return {"method": "kd", "task": "sst2", "seed": seed, **more}


def fill(store, *seeds):
    return [store.put(spec_of(seed), {"metrics": {"accuracy": seed / 100}}) for seed in seeds]


def start(code, *arguments):
    """A Python process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


# --- addresses and packing --------------------------------------------------------------------------------------------


@QUICK
@given(SPECS)
def test_address_survives_reordering_and_a_trip_through_json(spec):
    backwards = dict(reversed(spec.items()))
    assert address(spec) == address(backwards) == address(json.loads(json.dumps(spec)))


@QUICK
@given(SPECS, SPECS)
def test_different_specs_have_different_addresses(one, other):
    def text(spec):
        return json.dumps(spec, sort_keys=True)

    assert (address(one) == address(other)) == (text(one) == text(other))


@pytest.mark.parametrize(
    "spec, error, path",
    [
        ({"a": {"b": [0, np.int64(3)]}}, TypeError, r"spec\.a\.b\[1\] is of type int64"),
        ({"a": {3: 4}}, TypeError, r"spec\.a has the key 3 of type int"),
        ({"a": float("-inf")}, ValueError, r"spec\.a is -inf"),
        ({"a": b"x"}, TypeError, r"spec\.a is of type bytes"),
        (["a"], TypeError, "spec is of type list, expected dict"),
    ],
)
def test_address_names_what_it_cannot_hold(spec, error, path):
    with pytest.raises(error, match=path):
        address(spec)


def test_addresses_never_change():
    """Committed runs are found by them."""
    assert address({"method": "kd", "layers": (0, 2), "lr": 5e-5, "note": "ü", "none": None}) == "e78610c273c2ef2cc70f"


@QUICK
@given(st.lists(INT16))
def test_packed_values_come_back(values):
    found = unpack(pack(values))
    assert found.tolist() == values and found.dtype == np.int16 and found.flags.writeable


@QUICK
@given(st.lists(st.lists(INT16.filter(lambda value: value != -100))))
def test_packed_sequences_come_back(rows):
    assert [row.tolist() for row in unpack_sequences(pack_sequences(rows))] == rows


@pytest.mark.parametrize("values", [[2**15], [-(2**15) - 1], [0.5], [[1]], ["a"], 3, [2**70]])
def test_pack_refuses_what_would_not_come_back(values):
    with pytest.raises(ValueError, match="cannot pack"):
        pack(values)


@pytest.mark.parametrize("text", ["", "!", "AAAA", pack([1, 2])[:-4]])
def test_unpack_refuses_other_text(text):
    with pytest.raises(ValueError, match="cannot unpack"):
        unpack(text)


def test_sequences_may_not_hold_the_end_mark():
    with pytest.raises(ValueError, match="row 1 holds -100"):
        pack_sequences([[1], [2, -100]])
    with pytest.raises(ValueError, match="no end mark"):
        unpack_sequences(pack([1, 2]))


# --- damage -----------------------------------------------------------------------------------------------------------


@QUICK
@given(st.data())
def test_a_changed_letter_is_noticed(data):
    record = {"key": address(spec_of()), "spec": spec_of(), "metrics": {"accuracy": 0.5}, "predictions": pack([1, 0])}
    line = seal(record)
    place = data.draw(st.integers(0, len(line) - 1))
    letter = data.draw(st.characters(min_codepoint=32, max_codepoint=126))
    try:
        assert unseal(line[:place] + letter + line[place + 1 :]) == record  # the same letter, or white space
    except ValueError:
        pass


def corrupt_truncated(file):
    file.write_text(file.read_text()[:50])


def corrupt_empty(file):
    file.write_text("")


def corrupt_binary(file):
    file.write_bytes(b"\xff\xfe\x00" * 20)


def corrupt_value(file):
    file.write_text(file.read_text().replace("0.03", "0.93"))


def corrupt_label(file):
    other = {"metrics": {}, "key": address(spec_of(99)), "spec": spec_of(99)}
    file.write_text(seal(other))


def corrupt_key(file):
    file.write_text(seal({**unseal(file.read_text()), "spec": spec_of(99)}))


def corrupt_shape(file):
    file.write_text("[1, 2]")


DAMAGES = [corrupt_truncated, corrupt_empty, corrupt_binary, corrupt_value, corrupt_label, corrupt_key, corrupt_shape]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.removeprefix("corrupt_"))
def test_a_damaged_record_is_set_aside_and_made_again(tmp_path, caplog, damage):
    store = Store(tmp_path)
    kept, _ = fill(store, 2, 3)
    file = next(tmp_path.glob(f"runs/*/{address(spec_of(3))}.json"))
    damage(file)
    assert store.get(spec_of(3)) is None and spec_of(3) not in store
    assert len(caplog.messages) == 1 and "\n" not in caplog.text.strip()
    assert file.with_name(f"{file.name}.corrupt").exists() and not file.exists()
    assert store.records() == [kept]
    fill(store, 3)
    assert store.get(spec_of(3))["metrics"] == {"accuracy": 0.03}


def test_bad_lines_are_left_out_by_number(tmp_path, caplog):
    records = fill(Store(tmp_path / "a"), 1, 2, 3)
    path = write_lines(records, tmp_path / "runs.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "=======", lines[1].replace("0.02", "0.99"), "", lines[2], lines[2][:30]]))
    other = Store(tmp_path / "b")
    assert other.import_lines(path) == 2 and other.records() == [records[0], records[2]]
    assert [message.split(":")[0] for message in caplog.messages] == [f"runs.jsonl, line {n}" for n in (2, 3, 6)]


def test_import_keeps_what_is_there(tmp_path):
    ours = Store(tmp_path / "a").put(spec_of(), {"seconds": 1.0})
    Store(tmp_path / "b").put(spec_of(), {"seconds": 2.0})
    path = Store(tmp_path / "b").export_lines([spec_of()], tmp_path / "runs.jsonl")
    assert Store(tmp_path / "a").import_lines(path) == 0 and Store(tmp_path / "a").get(spec_of()) == ours


def test_lines_are_sorted_whatever_the_order(tmp_path):
    store = Store(tmp_path)
    specs = [spec_of(seed, setting=setting, beta=len(setting)) for seed in (10, 2) for setting in ("", "beta=4")]
    specs.append({"method": "adabert", "task": "rte", "seed": 0})
    for spec in specs:
        store.put(spec, {})
    path = store.export_lines(specs, tmp_path / "runs.jsonl")
    first = path.read_bytes()
    assert store.export_lines([address(spec) for spec in reversed(specs)], path).read_bytes() == first
    order = [(r["spec"]["method"], r["spec"].get("setting"), r["spec"]["seed"]) for r in read_lines(path)]
    beta = "beta=4"
    assert order == [("adabert", None, 0), ("kd", "", 2), ("kd", "", 10), ("kd", beta, 2), ("kd", beta, 10)]
    with pytest.raises(KeyError, match="1 of 2 runs are not in the store"):
        store.export_lines([specs[0], spec_of(77)], path)
    assert path.read_bytes() == first


def test_put_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r"record\.metrics\.mcc is nan"):
        Store(tmp_path).put(spec_of(), {"metrics": {"mcc": float("nan")}})
    with pytest.raises(TypeError, match=r"record\.metrics\.mcc is of type float32"):
        Store(tmp_path).put(spec_of(), {"metrics": {"mcc": np.float32(1)}})
    assert list(tmp_path.iterdir()) == []


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, remedy", [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose a folder")])
def test_disk_errors_say_what_to_do(tmp_path, monkeypatch, code, remedy):
    store = Store(tmp_path)
    (before,) = fill(store, 1)

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"cannot write .*\.json: .*; {remedy}") as caught:
        fill(store, 1)
    assert caught.value.errno == code and "\n" not in str(caught.value)
    assert store.get(spec_of(1)) == before and not list(tmp_path.glob("runs/*/.*"))


def test_a_write_cut_off_by_a_limit_leaves_nothing(tmp_path):
    pytest.importorskip("resource")
    code = """
import resource, sys
from kdnotes.core.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Store(sys.argv[1]).put({"seed": 0}, {"note": "x" * 5000})
except OSError as error:
    sys.exit(0 if "cannot write" in str(error) else f"unclear: {error}")
sys.exit("no error")
"""
    process = start(code, tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_store_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(OSError, match="cannot write .*store"):
        Store(tmp_path / "store").put(spec_of(), {})
    with pytest.raises(OSError, match="cannot write .*store"):
        Store(tmp_path / "store").folder(spec_of(), lambda work: None)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_can_be_read(tmp_path):
    (kept,) = fill(Store(tmp_path), 1)
    made = Store(tmp_path).folder(spec_of(1), lambda work: (work / "a").write_text("a"))
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert Store(tmp_path).records() == [kept] and Store(tmp_path).folder(spec_of(1), None) == made
        with pytest.raises(PermissionError, match="choose a folder that you may write to"):
            fill(Store(tmp_path), 2)
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_old_temporary_files_are_swept_and_fresh_ones_kept(tmp_path):
    fill(Store(tmp_path), 1)
    old, fresh = (next(tmp_path.glob("runs/*")) / f".{name}.json.0.tmp" for name in ("old", "fresh"))
    for file in (old, fresh):
        file.write_text("{")
    os.utime(old, (0, 0))
    assert len(Store(tmp_path).records()) == 1
    assert fresh.exists() and not old.exists()


# --- killed and colliding processes -----------------------------------------------------------------------------------

WRITER = """
import sys
from kdnotes.core.store import Store
store = Store(sys.argv[1])
n = 0
while n < int(sys.argv[2]) or sys.argv[2] == "0":
    seed = n % 40
    store.put({"method": "kd", "task": "sst2", "seed": seed}, {"metrics": {"seed": seed}, "note": "x" * 20000})
    n += 1
"""


def assert_all_intact(store, caplog):
    for file in store.path.glob("runs/*/*.json"):
        record = unseal(file.read_text())
        assert record["key"] == file.stem and record["metrics"]["seed"] == record["spec"]["seed"]
        assert record["note"] == "x" * 20000
    assert not list(store.path.rglob("*.corrupt")) and not caplog.messages


def test_kill_at_any_moment_leaves_only_whole_records(tmp_path, caplog):
    store, chance = Store(tmp_path), random.Random(0)
    for _ in range(6):
        before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/*.json")}
        writer = start(WRITER, tmp_path, 0)
        wait_until(lambda: {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/*.json")} != before)  # noqa: B023
        time.sleep(chance.random() * 0.05)
        writer.kill()
        writer.communicate()
        assert writer.returncode == -9
        assert_all_intact(store, caplog)
    assert store.records()


def test_two_writers_and_a_reader_at_once(tmp_path, caplog):
    writers = [start(WRITER, tmp_path, 200) for _ in range(2)]
    store, reads = Store(tmp_path), 0
    while any(writer.poll() is None for writer in writers):
        reads += sum(record["note"] == "x" * 20000 for record in store.records())
    assert [writer.communicate()[1] for writer in writers] == ["", ""] and [w.returncode for w in writers] == [0, 0]
    assert_all_intact(store, caplog)
    assert len(store.records()) == 40 and not list(tmp_path.rglob("*.tmp")) and reads > 0


def test_a_killed_export_keeps_the_old_lines(tmp_path):
    path = write_lines(fill(Store(tmp_path / "store"), 1, 2), tmp_path / "runs.jsonl")
    before = path.read_bytes()
    code = """
import os, sys
os.fsync = lambda file: os.kill(os.getpid(), 9)
from kdnotes.core.store import Store
store = Store(sys.argv[1])
store.export_lines([r["key"] for r in store.records()][:1], sys.argv[2])
"""
    process = start(code, tmp_path / "store", path)
    process.communicate(timeout=30)
    assert process.returncode == -9 and path.read_bytes() == before


# --- folders ----------------------------------------------------------------------------------------------------------

BUILDER = """
import os, sys, time
from pathlib import Path
from kdnotes.core.store import Store

def build(work):
    with open(work / "steps.txt", "a") as steps:
        for step in range(len((work / "steps.txt").read_text().split()), 6):
            steps.write(f"{os.getpid()}\\n")
            steps.flush()
            time.sleep(float(sys.argv[2]))

Store(sys.argv[1]).folder({"teacher": "tiny"}, build)
"""
TINY = {"teacher": "tiny"}


@pytest.fixture(autouse=True)
def as_in_a_fresh_process(monkeypatch):
    monkeypatch.setattr(module, "_opened", set())


def write_weights(work):
    (work / "sub").mkdir(exist_ok=True)
    (work / "sub" / "weights.bin").write_bytes(b"12345678")


def test_a_killed_build_resumes(tmp_path):
    steps = tmp_path / "models" / f"{address(TINY)}.partial" / "steps.txt"
    for wanted in (2, 4):
        builder = start(BUILDER, tmp_path, 0.05)
        wait_until(lambda: steps.exists() and len(steps.read_text().split()) >= wanted)  # noqa: B023
        builder.kill()
        builder.communicate()
        assert not (tmp_path / "models" / address(TINY)).exists()
    builder = start(BUILDER, tmp_path, 0)
    assert builder.communicate(timeout=30)[1] == "" and builder.returncode == 0
    done = (Store(tmp_path).folder(TINY, None) / "steps.txt").read_text().split()
    assert len(done) == 6 and len(set(done)) == 3, "three processes shared the six steps"


def test_two_processes_build_once(tmp_path):
    builders = [start(BUILDER, tmp_path, 0.1) for _ in range(2)]
    errors = [builder.communicate(timeout=30)[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], errors
    assert sum("waiting for another process" in text for text in errors) == 1
    assert len(set((Store(tmp_path).folder(TINY, None) / "steps.txt").read_text().split())) == 1


@pytest.mark.parametrize("fresh", [True, False], ids=["first", "again"])
@pytest.mark.parametrize("file", ["sub/weights.bin", "complete.json", "spec.json"])
@pytest.mark.parametrize("damage", ["lost", "longer", "altered"])
def test_a_damaged_folder_is_built_again(tmp_path, caplog, monkeypatch, file, damage, fresh):
    folder = Store(tmp_path).folder(TINY, write_weights)
    if fresh:
        module._opened.clear()
    victim = folder / file
    text = victim.read_bytes()
    if damage == "lost":
        victim.unlink()
    else:
        victim.write_bytes(text + b"0" if damage == "longer" else text[:-1] + b"?")
    noticed = fresh or damage != "altered" or file == "complete.json"  # contents are compared once in a process
    built = []
    found = Store(tmp_path).folder(TINY, lambda work: (built.append(work), write_weights(work)))
    assert found == folder and bool(built) == noticed
    if noticed:
        assert (folder / file).read_bytes() == text and "damaged" in caplog.text
        assert folder.with_name(f"{folder.name}.corrupt").exists()


def test_a_folder_under_a_wrong_name_is_not_believed(tmp_path):
    folder = Store(tmp_path).folder(TINY, write_weights)
    folder.rename(folder.with_name(address({"teacher": "other"})))
    built = []
    Store(tmp_path).folder({"teacher": "other"}, built.append)
    assert built


def test_files_added_later_do_no_harm(tmp_path):
    folder = Store(tmp_path).folder(TINY, write_weights)
    (folder / "model.onnx").write_text("export")
    module._opened.clear()
    assert Store(tmp_path).folder(TINY, None) == folder


def test_a_failed_build_raises_and_keeps_its_work(tmp_path):
    def fail(work):
        (work / "checkpoint").write_text("half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Store(tmp_path).folder(TINY, fail)
    seen = []
    Store(tmp_path).folder(TINY, lambda work: seen.append((work / "checkpoint").read_text()))
    assert seen == ["half"]


# --- provenance -------------------------------------------------------------------------------------------------------


def test_provenance_names_neither_folders_nor_the_host():
    command = ["/opt/venv/bin/kdnotes", "reproduce", "--build=/elsewhere/build", "/data/sets", "--only", "fig02"]
    note = provenance(device="cuda", start="2024-05-01T12:00:00", seconds=2.5, command=command)
    assert note["command"] == "kdnotes reproduce --build=build sets --only fig02"
    assert note["device"] == "cuda" and note["seconds"] == 2.5 and note["threads"] >= 1
    assert note["libraries"]["numpy"] == np.__version__
    assert json.loads(json.dumps(note)) == note
    assert "/" not in json.dumps({**note, "commit": ""})


def test_provenance_outside_a_checkout(monkeypatch, tmp_path):
    package = tmp_path / "kdnotes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # a user's own project, which does not track it
    where = type("Spec", (), {"origin": str(package / "__init__.py")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: where)
    assert provenance()["commit"] is None and provenance()["dirty"] is None
    monkeypatch.setenv("PATH", "")
    assert provenance()["commit"] is None


def test_provenance_in_a_checkout(monkeypatch, tmp_path):
    file = tmp_path / "__init__.py"
    file.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: type("Spec", (), {"origin": str(file)}))
    clean = provenance()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    file.write_text("changed = True")
    assert provenance()["dirty"] is True


def test_write_atomic_makes_folders_and_takes_any_text(tmp_path):
    path = write_atomic(tmp_path / "a" / "b.txt", "ü 漢\n")
    assert path.read_text(encoding="utf-8") == "ü 漢\n" and [child.name for child in path.parent.iterdir()] == ["b.txt"]


def test_warnings_are_one_line_on_the_error_stream(tmp_path):
    fill(Store(tmp_path), 1)
    next(tmp_path.glob("runs/*/*.json")).write_text("{")
    reader = start("import sys; from kdnotes.core.store import Store; Store(sys.argv[1]).records()", tmp_path)
    errors = reader.communicate(timeout=30)[1]
    assert errors.count("\n") == 1 and "set aside" in errors, errors
    assert logging.getLogger("kdnotes.core.store").handlers == []
