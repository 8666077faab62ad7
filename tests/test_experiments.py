import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny
from datasets import Dataset

from kdnotes.cli import artefacts
from kdnotes.core.records import address, unpack
from kdnotes.core.store import Store
from kdnotes.data.tasks import task
from kdnotes.experiments import runs as experiments
from kdnotes.experiments.batch import compute_all
from kdnotes.experiments.plans import grid
from kdnotes.experiments.profiles import PROFILES
from kdnotes.experiments.runs import run_spec, teacher_spec
from kdnotes.experiments.specs import make_spec
from kdnotes.methods import METHODS

TIMED = ("seconds", "teacher_seconds")
PLANS = {name: one.plan for name, one in artefacts().items()}


def same(a, b):
    """Equal but for what the clock says."""
    drop = lambda r: {k: v for k, v in r.items() if k not in TIMED}  # noqa: E731
    return drop(a) == drop(b)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A store with nothing but an encoder and a teacher, made apart from those of `store`."""
    folder = tmp_path_factory.mktemp("begun")
    tiny.run(folder, "teacher", seed=1)  # the teacher is that of every seed, the record is not
    return folder


SETTINGS = {"bilstm_soft": {"hidden_size": 8, "inner": 8, "lstm_steps": 4}, "ladder": {"base": "kd"}, **tiny.SMALL_SEARCH}


@pytest.fixture
def sealed(monkeypatch):
    """A report split of which any row breaks a run, until `distill` has returned; what it holds says whether it has."""
    finished, real_load, real_distill = [], experiments._load, experiments.distill

    class Sealed:
        def __init__(self, data):
            self.data = data

        def __getattr__(self, name):
            assert finished, f"touched report.{name} before the student was finished"
            return getattr(self.data, name)

        def __len__(self):
            assert finished
            return len(self.data)

    def sealed_load(*args):
        data = dict(real_load(*args))
        return data | {"report": Sealed(data["report"])}

    def distill(*args, **kwargs):
        assert "report" not in kwargs
        student = real_distill(*args, **kwargs)
        finished.append(True)
        return student

    monkeypatch.setattr(experiments, "_load", sealed_load)
    monkeypatch.setattr(experiments, "distill", distill)
    return finished


@pytest.mark.parametrize("method", sorted(METHODS))
def test_same_spec_same_result_in_another_store_and_report_sealed(method, store, begun, tmp_path, sealed):
    """Whatever the stores have kept of other runs."""
    settings = SETTINGS.get(method, {})
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    records = []
    for folder in (store, tmp_path):
        sealed.clear()
        records.append(tiny.run(folder, method, **settings))
    first, second = records
    assert sealed and same(first, second) and first["key"] == second["key"]
    assert (unpack(first["predictions"]) == unpack(first["labels"])).mean() == first["metrics"]["accuracy"]


def test_a_found_run_is_not_computed_again(store, monkeypatch):
    first = tiny.run(store)
    monkeypatch.setattr(experiments, "compute", lambda *_: pytest.fail("computed again"))
    assert tiny.run(store) == first


def test_everything_the_result_depends_on_is_in_the_address():
    base = make_spec("kd", "sst2")
    changed = [
        make_spec("undistilled", "sst2"), make_spec("kd", "mrpc"), make_spec("kd", "sst2", 1),
        make_spec("kd", "sst2", alpha=0.5),
        make_spec("kd", "sst2", rows=7), make_spec("kd", "sst2", threads=2), make_spec("kd", "sst2", teacher_steps=7),
        make_spec("kd", "amazon", domain="books"), make_spec("kd", "sst2", layers=1),
    ]  # fmt: skip
    assert len({address(spec) for spec in [base, *changed]}) == 1 + len(changed)
    assert address(make_spec("kd", "sst2")) == address(base)


def test_a_name_is_not_in_the_address(store):
    """What a row is called, and which profile its sizes came from, change no result: it is found, by the asked name."""
    first = tiny.run(store)
    again = tiny.run(store, setting="the same")
    assert again == first | dict(spec=first["spec"] | dict(setting="the same"))
    assert {name: address(base | {name: "x"}) == address(base) for base in [first["spec"]] for name in base} == {
        name: name in ("profile", "source", "setting") for name in first["spec"]
    }


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.reads_teacher])
def test_a_method_that_reads_no_teacher_gives_the_same_with_any(method, tmp_path, monkeypatch):
    """Its spec names no teacher and none is made; with one in its place it would have given the same student."""
    without = tiny.run(tmp_path / "without", method)
    assert not any(name.startswith("teacher_") for name in without["spec"]) and without["teacher_sha256"] == ""
    taught = tiny.run(tmp_path / "with", "kd")  # makes a teacher
    (folder,) = [path.parent for path in (tmp_path / "with").glob("models/*/made.json")]
    kept = experiments.load_teacher(str(folder), "single"), experiments.load_tokenizer(str(folder)), None
    monkeypatch.setattr(experiments, "given_teacher", lambda *_: kept)
    assert tiny.run(tmp_path / "other", method)["predictions"] == without["predictions"] and taught["teacher_sha256"]


def test_one_teacher_for_all_rows_and_seeds_of_a_task():
    teachers = {address(teacher_spec(spec)) for spec in grid(PLANS["fig02"], seeds=3)
                if spec["task"] == "sst2" and METHODS[spec["method"]].reads_teacher}  # fmt: skip
    assert len(teachers) == 1


@pytest.mark.parametrize("wrong, expected", [
    (dict(method="kdd"), "unknown method 'kdd'"), (dict(task_name="sst3"), "sst3"),
    (dict(profile="big"), "unknown profile 'big'"),
    (dict(seed="0"), "seed='0'"), (dict(seed=True), "seed=True"), (dict(rows="5"), "rows='5' should be a whole number from 1"),
    (dict(bf16=1), "bf16=1 should be true or false"), (dict(alpah=0.5), "unknown parameter 'alpah'"),
    (dict(temperature="hot"), "temperature='hot' should be a number above 0"), (dict(source="web"), "web"),
    (dict(looks="often"), "looks='often' should be a whole number from 1"),
])  # fmt: skip
def test_wrong_specs_are_one_line(wrong, expected):
    with pytest.raises((ValueError, KeyError), match=expected) as error:
        make_spec(**dict(method="kd", task_name="sst2") | wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [dict(seeds=0), dict(seeds=1.5), dict(profile="desk"), dict(rows=None)])
def test_wrong_grids_are_one_line(wrong):
    with pytest.raises(ValueError) as error:
        grid(PLANS["fig02"], **wrong)
    assert "\n" not in str(error.value)


def test_local_data_that_is_not_there_is_found_before_any_work(monkeypatch):
    monkeypatch.delenv("KDNOTES_DATA", raising=False)
    with pytest.raises((ValueError, FileNotFoundError), match="KDNOTES_DATA"):
        grid(PLANS["fig02"], "laptop")


def test_every_artefact_names_known_methods_and_tasks():
    for plan in PLANS.values():
        for profile in PROFILES:
            methods = plan.methods(profile)
            assert set(methods) <= METHODS.keys() and plan.baseline in methods
            assert all(claim.student[0] in ("", *methods) for claim in plan.claims)
            assert {"majority", "teacher", "undistilled"} <= set(methods)
            assert all(task(name) for name in plan.tasks(profile))


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_has_no_row_twice(name):
    for profile in PROFILES:
        rows = [(run.method, run.task, run.domain, run.setting) for run in PLANS[name].listed(profile)]
        assert len(set(rows)) == len(rows)


def test_an_interrupted_batch_keeps_what_is_finished(store, monkeypatch):
    specs = [make_spec("kd", "sst2", seed, **tiny.RUN | {"rows": 90}) for seed in (0, 1, 2)]
    rests, real, done = Store(store), experiments.compute, []

    def interrupted(spec, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(spec)
        return real(spec, *rest)

    monkeypatch.setattr(experiments, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute_all(specs, rests, say=lambda line: None)
    assert [spec in rests for spec in specs] == [True, True, False]
    monkeypatch.setattr(experiments, "compute", real)
    lines = []
    records = compute_all(specs, rests, say=lines.append)
    assert lines[0] == "3 runs: 2 found in the store, 1 to compute" and len(records) == 3


def test_token_and_pair_tasks_run(store):
    assert tiny.run(store, "kd", "mrpc")["metrics"].keys() >= {"accuracy", "f1", "mcc"}
    tagged = tiny.run(store, "kd", "snips_slots", rows=200)
    assert 0 <= tagged["metrics"]["entity_f1"] <= 1 and tagged["n_report"] > 100
    assert run_spec(tagged["spec"], Store(store)) == tagged


KILLED = """
import sys; sys.path.insert(0, "tests")
import tiny
tiny.run(sys.argv[1], rows=2000, steps=750, looks=6, batch_size=16)
"""


@pytest.mark.slow
def test_a_run_killed_three_times_gives_the_same_record(tmp_path):
    def start(name):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / name)], stderr=subprocess.DEVNULL)

    assert start("peace").wait() == 0
    for finished in (0, 1, 2):  # while the encoder is made, the teacher, and the student
        process = start("killed")
        while process.poll() is None and not list((tmp_path / "killed").glob("models/*")):
            time.sleep(0.005)
        while process.poll() is None and len(list((tmp_path / "killed").glob("models/*/complete.json"))) < finished:
            time.sleep(0.005)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it was done when {finished} models were"
    assert start("killed").wait() == 0
    (peace,), (killed,) = (Store(tmp_path / name).records() for name in ("peace", "killed"))
    assert same(peace, killed)
    assert not list((tmp_path / "killed").glob("at_work/*"))
    json.dumps(peace)


def test_texts_of_other_tasks_are_none_that_a_run_is_scored_on(monkeypatch):
    """Not one in other letters or with other spaces either; and each is there once."""
    spec = make_spec("kd", "clinc150", transfer=("sst2",), read_data=False)
    own, other = experiments.load(spec), experiments.load(make_spec("kd", "sst2", read_data=False))
    reported, chosen_on = own["report"]["text"][0], own["select"]["text"][0]
    texts = [*other["train"]["sentence"][:3], f" {reported.upper()} ", chosen_on, *other["train"]["sentence"][:3]]
    leaky = {"train": Dataset.from_dict({"sentence": texts})}
    real = experiments._load
    monkeypatch.setattr(experiments, "_load", lambda name, *rest: leaky if name == "sst2" else real(name, *rest))
    assert experiments.load_transfer(spec)["text"][:] == texts[:3]
