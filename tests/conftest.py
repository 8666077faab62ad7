"""What every test may rely on (no network, no window, real data or a skip), and progress with the time left."""

import os
import time
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, hence before any test module
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = "tests/test_notebooks.py"
SECONDS_WORTH_A_LINE = 5


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: file_of(item.nodeid) != NOTEBOOKS)  # the longest file first
    if not os.environ.get("KDNOTES_DATA"):
        skip = pytest.mark.skip(reason="KDNOTES_DATA names no folder with the real data sets")
        for item in items:
            if "data" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def small_reference(request, monkeypatch):
    """Shapes are timed beside that of BERT-base, which takes longer than most tests: two layers stand in for it here."""
    if file_of(request.node.nodeid) != "tests/test_cost.py":
        from kdnotes.models import cost, shapes

        for module in (cost, shapes):
            monkeypatch.setattr(module, "bert_base_shape", small_reference_shape)


@cache
def small_reference_shape():
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        return BertForSequenceClassification(BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=2)).eval()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests share what they make, so one process runs them all; notebooks share little, and go to whichever is free."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if file_of(nodeid) == NOTEBOOKS else file_of(nodeid)

    return Scheduling(config, log)


def pytest_configure(config):
    worker = hasattr(config, "workerinput")  # of pytest-xdist: its results are told by the process that started it
    if not config.option.collectonly and config.option.verbose <= 0 and not worker:
        config.pluginmanager.register(Progress(config), "kdnotes-progress")


class Progress:
    """One line per finished file and per slow test, with the time left judged from the last run's durations."""

    def __init__(self, config):
        self.config = config
        self.last = config.cache.get("kdnotes/seconds", {})
        self.seconds = {}
        self.outcomes = defaultdict(Counter)

    def pytest_collection_finish(self, session):
        self.start([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids):
        self.start(ids)

    def start(self, todo):
        self.todo, self.left, self.started = todo, Counter(map(file_of, todo)), time.monotonic()

    def pytest_report_teststatus(self, report):
        # no dots and letters: our lines stand in for them; the words stand in pytest's list of failures
        if report.failed:
            return ("failed", "", "FAILED") if report.when == "call" else ("error", "", "ERROR")
        if not hasattr(report, "wasxfail") and (report.when == "call" or report.skipped):
            return report.outcome, "", ""

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.outcomes[file_of(report.nodeid)][report.outcome] += 1
        if report.failed:
            self.write(f"  {report.nodeid.partition('::')[2]} failed")
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_runtest_logfinish(self, nodeid):
        file = file_of(nodeid)
        self.left[file] -= 1
        if self.left[file] == 0:
            outcome = ", ".join(f"{count} {name}" for name, count in self.outcomes[file].items())
            self.show(file, outcome, sum(s for test, s in self.seconds.items() if file_of(test) == file))
        elif self.seconds[nodeid] > SECONDS_WORTH_A_LINE:
            self.show(f"  {nodeid.partition('::')[2]}", "", self.seconds[nodeid])

    def show(self, what, outcome, seconds):
        done, total = len(self.seconds), len(self.todo)
        spent = time.monotonic() - self.started
        left = f"{minutes(self.time_left(spent))} left" if done < total else f"{minutes(spent)} in all"
        self.write(f"{what:<46} {outcome:<22} {minutes(seconds):>6}   [{done}/{total}, {left}]")

    def write(self, line):
        self.config.pluginmanager.get_plugin("terminalreporter").write_line(line)

    def time_left(self, spent):
        """Seconds: a coming test takes what it took last time, else the mean of those seen, at today's pace."""
        typical = spent / len(self.seconds)
        known = sum(self.last.get(test, typical) for test in self.seconds)
        coming = sum(self.last.get(test, typical) for test in self.todo if test not in self.seconds)
        return coming * spent / known if known else coming

    def pytest_sessionfinish(self):
        self.config.cache.set("kdnotes/seconds", {**self.last, **{k: round(v, 2) for k, v in self.seconds.items()}})

    def pytest_terminal_summary(self, terminalreporter):
        broken = [report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, [])]
        files = sorted(map(file_to_open, broken)) or ["README.md", "nbs/index.ipynb", "figures/README.md"]
        files = [name for name in dict.fromkeys(files) if (ROOT / name).exists()]
        terminalreporter.write_line(f"Open: {', '.join(files)}")


def file_of(nodeid):
    return nodeid.partition("::")[0]


def file_to_open(nodeid):
    """The notebook that a failing test is about, else the test's own file."""
    name = nodeid.partition("[")[2].rstrip("]")
    return f"nbs/{name}" if name.endswith(".ipynb") else file_of(nodeid)


def minutes(seconds):
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
