"""Many runs side by side: the same records as one after the other, through kills too, and a time left that is honest."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from kdnotes.core.store import Store
from kdnotes.experiments.batch import Pace, Piece, clock, compute_all, known_seconds, rounds
from kdnotes.experiments.runs import at_work
from kdnotes.experiments.specs import make_spec

ROOT = Path(__file__).parents[1]
DOMAINS = dict(sources=("amazon/dvd",), source_rows=60, budget=48, domain="books")
KINDS = [
    ("kd", "sst2", {}), ("bag_of_words", "mrpc", {}), ("adabert", "sst2", tiny.SEARCH), ("kd", "snips_slots", {}),
    ("l2a", "amazon", DOMAINS | tiny.SCARCE), ("meta_distillation", "amazon", DOMAINS), ("qbert_8bit", "sst2", {}),
]  # fmt: skip
SEEDS = {method: (0, 1) if method == "l2a" else (0,) for method, _, _ in KINDS}  # two seeds of one that has a teacher of its own


def specs_of_all_kinds():
    return [make_spec(method, task, seed, **tiny.usual(method) | more) for method, task, more in KINDS for seed in SEEDS[method]]


def same(a, b):
    return all(a[name] == b[name] for name in a.keys() - {"seconds", "teacher_seconds", "environment"})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return compute_all(specs_of_all_kinds(), Store(tmp_path_factory.mktemp("alone") / "store"), say=lambda line: None)


@pytest.mark.slow
def test_two_processes_make_the_records_that_one_makes(alone, tmp_path):
    lines = []
    together = compute_all(specs_of_all_kinds(), Store(tmp_path / "store"), say=lines.append, jobs=2)
    assert len(together) == len(alone) and all(map(same, together, alone))
    assert (tmp_path / "log.txt").exists() and len(lines) == len(set(lines))


KILLED = """
import sys; sys.path.insert(0, "tests")
import test_batch
from kdnotes.core.store import Store
from kdnotes.experiments.batch import compute_all
compute_all(test_batch.specs_of_all_kinds(), Store(sys.argv[1]), jobs=2)
"""


@pytest.mark.slow
def test_a_batch_of_two_processes_killed_at_random_gives_the_same_records(alone, tmp_path):
    """The process that hands out the work is killed, and with it those that do it; then it is started again."""
    place, chance = tmp_path / "store", random.Random(0)
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(place)], cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        before = len(list(place.glob("runs/*/*.json")))
        while process.poll() is None and len(list(place.glob("runs/*/*.json"))) < before + 2:
            time.sleep(0.05)
        time.sleep(chance.random())
        subprocess.run(["pkill", "-KILL", "-g", str(process.pid)], check=False)
        assert process.wait() == -signal.SIGKILL
    until = time.monotonic() + 20
    while at_work(Store(place)) and time.monotonic() < until:  # the system takes a moment to bury them
        time.sleep(0.1)
    assert not at_work(Store(place))
    assert all(map(same, compute_all(specs_of_all_kinds(), Store(place), say=lambda line: None), alone))


def test_what_runs_share_is_made_first_and_once(tmp_path):
    encoders, teachers, runs = rounds(specs_of_all_kinds(), Store(tmp_path))
    assert len(encoders) == 1 and len(runs) == len(KINDS) + 1
    assert sorted(piece.name for piece in teachers) == [
        "teacher of amazon books, 48 rows, seed 0", "teacher of amazon books, 48 rows, seed 1",
        "teacher of snips_slots", "teacher of sst2",
    ]  # fmt: skip


def pieces(count):
    return [Piece("run", make_spec("kd", "sst2", seed)) for seed in range(count)]


@pytest.mark.parametrize("slower", [0.3, 1.0, 4.0])
def test_the_time_left_is_soon_right_on_any_machine(slower):
    work = pieces(60)
    pace = Pace(work, {("run",): 10.0}, jobs=2)
    for done, piece in enumerate(work[:-1], 1):
        pace.finished(piece, 10.0 * slower)
        if done >= 12:  # 120 seconds of work elsewhere: a minute of it on two cores
            true = max((60 - done) / 2, 1) * 10.0 * slower  # the last piece has nothing beside it
            assert true / 1.5 < pace.seconds_left < true * 1.5


def test_committed_seconds_are_known_by_method_task_and_setting():
    made = [dict(spec=piece.spec, seconds=4.0 + i, teacher_seconds=50.0) for i, piece in enumerate(pieces(3))]
    known = known_seconds(made)
    assert known["run", "kd", "sst2", "", ""] == 5.0 and known["fine-tuning", "", "sst2"] == 50.0
    other = Piece("run", make_spec("kd", "mrpc"))
    assert Pace([other], known, 1).seconds_left == 5.0  # the same method elsewhere


def test_nothing_is_known_of_a_first_batch():
    assert 0 < Pace(pieces(2), {}, 1).seconds_left < 100 and clock(59) == "59 s"
