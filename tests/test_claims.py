"""Every verdict follows from the interval and the bound, and nothing that was not run is told as a number."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import cost, run

from kdnotes.cli import artefacts
from kdnotes.core.metrics import Interval
from kdnotes.core.records import read_lines, write_lines
from kdnotes.experiments import specs
from kdnotes.experiments.artefacts import stored_runs
from kdnotes.experiments.claims import (
    Claim,
    Measured,
    above,
    above_all,
    best,
    falls,
    gain_falls,
    judge,
    keeps,
    smaller_and_faster,
)
from kdnotes.experiments.plans import Plan, Run, grid
from kdnotes.experiments.results import accept, answer, claims_markdown, collect, minutes_a_seed, results_markdown
from kdnotes.experiments.tables import read_table, table_markdown

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
PLANS = {name: one.plan for name, one in artefacts().items()}
SKILLS = {"majority": 0.5, "teacher": 0.92, "undistilled": 0.70, "kd": 0.86, "tinybert": 0.80}


def runs(tasks=("sst2", "snips_like"), seeds=2, setting=""):
    return [run(method, where, skill, seed, setting=setting) for where in tasks for method, skill in SKILLS.items()
            for seed in range(1 if method in ("majority", "teacher") else seeds)]  # fmt: skip


RECORDS = runs(("sst2", "imdb"))


def claimed(measure, **fields):
    return Claim("X1", "A sentence", "this test", measure, **fields)


@pytest.mark.parametrize(
    ("found", "bound", "verdict"),
    [((0.1, 0.01, 0.2), 0, "holds"), ((0.1, -0.01, 0.2), 0, "cannot tell"), ((-0.1, -0.2, -0.01), 0, "does not hold"),
     ((0, 0, 0), 0, "cannot tell"), ((-0.01, -0.015, -0.003), -0.02, "holds"), ((0.95, 0.93, 0.96), 0.97, "does not hold")],
)  # fmt: skip
def test_a_verdict_is_where_the_interval_lies(found, bound, verdict):
    assert Measured(Interval(*found), bound).verdict == verdict


def test_one_row_above_another_is_pooled_over_the_places():
    assert judge(claimed(above("kd", "undistilled")), RECORDS).verdict == "holds"
    assert judge(claimed(above("undistilled", "kd")), RECORDS).verdict == "does not hold"
    assert judge(claimed(above("kd", "kd")), RECORDS).measured == Measured(Interval(0, 0, 0))
    both, one = (
        above("kd", "undistilled")([r for r in RECORDS if r["spec"]["task"] in names]) for names in (("sst2", "imdb"), ("sst2",))
    )
    assert both.found.high - both.found.low < one.found.high - one.found.low


def test_a_claim_on_one_task_reads_no_other():
    measured = judge(claimed(above("kd", "undistilled"), on="sst2"), RECORDS).measured
    assert measured == above("kd", "undistilled")([r for r in RECORDS if r["spec"]["task"] == "sst2"])


def test_what_was_not_run_is_not_told_as_a_number():
    assert str(judge(claimed(above("pkd", "kd")), RECORDS)) == "A sentence: not run"
    assert judge(claimed(None), RECORDS).verdict == judge(claimed(above("kd", "teacher")), []).verdict == "not run"


def test_a_place_with_only_one_of_the_two_is_refused():
    partly = [r for r in RECORDS if (r["spec"]["method"], r["spec"]["task"]) != ("undistilled", "imdb")]
    with pytest.raises(ValueError, match="imdb has runs of only the first"):
        judge(claimed(above("kd", "undistilled")), partly)


def test_a_fault_in_a_measure_is_not_hidden():
    with pytest.raises(KeyError):
        judge(claimed(lambda records: records[0]["no such entry"]), RECORDS)


def test_the_best_is_above_each_and_names_the_nearest():
    found = judge(claimed(best("kd", ("undistilled", "tinybert"))), RECORDS)
    assert found.verdict == "holds" and str(found.measured).endswith("to TinyBERT")
    assert judge(claimed(best("kd", ("undistilled", "teacher"))), RECORDS).verdict != "holds"


def test_all_together_is_the_mean_of_the_differences():
    each = [above("kd", name)(RECORDS).found.value for name in ("undistilled", "tinybert")]
    together = above_all("kd", [("undistilled", ""), ("tinybert", "")])(RECORDS).found.value
    assert np.isclose(together, np.mean(each))


def test_a_share_is_the_mean_of_shares_and_is_one_for_the_teacher():
    assert keeps("teacher", 0.99)(RECORDS).found == Interval(1, 1, 1)
    mean = {name: np.mean([np.mean(_right(r)) for r in RECORDS if (r["spec"]["method"], r["spec"]["task"]) == (name, "sst2")])
            for name in ("kd", "teacher")}  # fmt: skip
    only = [r for r in RECORDS if r["spec"]["task"] == "sst2"]
    assert np.isclose(keeps("kd", 0.9)(only).found.value, mean["kd"] / mean["teacher"])


def _right(record):
    from kdnotes.core.records import unpack

    return unpack(record["predictions"]) == unpack(record["labels"])


def test_size_and_speed_hold_only_together():
    priced = [
        run("teacher", "sst2", 0.9, cost=cost(20, 20_000_000) | {"speedup": 1.0}),
        run("kd", "sst2", 0.9, cost=cost(2, 2_000_000)),
    ]
    assert (
        str(judge(claimed(smaller_and_faster("kd", 9, 9)), priced).measured)
        == "10.0 times smaller in parameters, 10.0 times faster"
    )
    assert judge(claimed(smaller_and_faster("kd", 9, 9)), priced).verdict == "holds"
    for smaller, faster in ((11, 9), (9, 11)):
        assert judge(claimed(smaller_and_faster("kd", smaller, faster)), priced).verdict == "does not hold"
    assert judge(claimed(smaller_and_faster("tinybert", 1, 1)), priced).verdict == "not run"


def test_a_direction_is_a_rank_correlation():
    def swept(values):
        return [{"pair": (float(i), float(value)), "spec": {"task": "sst2"}} for i, value in enumerate(values)]

    for values, verdict in (
        ([9, 7, 5, 3, 1, 0], "holds"),
        ([0, 1, 3, 5, 7, 9], "does not hold"),
        ([3, 1, 3, 1, 3, 1, 3, 1], "cannot tell"),
    ):
        assert falls(lambda record: record["pair"])(swept(values)).verdict == verdict
    assert judge(claimed(falls(lambda record: record["pair"])), swept([1])).verdict == "not run"


def test_a_gain_that_is_larger_with_few_rows_falls():
    few, many = (
        [
            run(method, "sst2", skill, seed, setting=setting)
            for seed in range(3)
            for method, skill in {"kd": kd, "undistilled": 0.6}.items()
        ]
        for setting, kd in (("n=16", 0.9), ("n=160", 0.6))
    )
    found = gain_falls("kd", "undistilled", {"n=16": 16, "n=160": 160})
    assert found(few + many).verdict == "holds" and judge(claimed(found), few).verdict == "not run"


def test_a_setting_may_stand_for_the_task():
    own = [run("kd", where, 0.9, setting=f"from {where}") for where in ("sst2", "imdb")]
    assert above("kd", "undistilled", "from {task}")(own + RECORDS).verdict == "holds"


# --- the plans of the talk, on the committed runs ---------------------------------------------------------------------

WANTED = "A1 A2 A3 A4 A5 A6 A7 L1 L2 L3 L4 L5 L6 M1 M2 M3 M4 M5 M6 Q1".split()


def test_every_claim_of_the_talk_is_declared_once():
    names = [claim.name for plan in PLANS.values() for claim in plan.claims]
    assert len(set(names)) == len(names) and set(WANTED) <= set(names)
    assert all(plan.claims[0].measure for plan in PLANS.values()), "a headline must be measured"


@pytest.mark.parametrize("name", sorted(PLANS))
@pytest.mark.parametrize("profile", ["world", "laptop"])
def test_every_claim_can_be_judged_by_the_runs_that_its_plan_asks_for(name, profile, monkeypatch):
    """Found after an hour of runs: a claim that wanted a row where the plan has none."""
    monkeypatch.setattr(specs, "data_sha256", lambda *_: "0" * 64)
    asked = grid(PLANS[name], profile, seeds=1)
    told = dict(details=dict(measures=dict(network_params=1.0)))
    records = [run(spec["method"], spec["task"], 0.8, cost=cost(2.0)) | told | dict(spec=spec) for spec in asked]
    for claim in PLANS[name].claims:
        assert claim.measure is None or judge(claim, records), claim.name


@pytest.fixture(scope="module")
def results():
    return collect(PLANS.values(), FIGURES)


def test_every_measured_claim_has_a_verdict_on_the_embedded_data(results):
    rows = {(run.method, run.setting) for plan in PLANS.values() for run in plan.listed("world")} | {("", "")}
    for result in results:
        answer, made_here = result.answers["world"], result.claim.student in rows  # some students are made on real data alone
        if result.claim.measure is not None and made_here and not answer.old:
            assert answer.judged.verdict in ("holds", "does not hold", "cannot tell"), result.claim.name


def test_the_pages_are_those_of_the_committed_runs(results):
    assert results_markdown(results) == (ROOT / "RESULTS.md").read_text(), "run: kdnotes results"
    captions = (FIGURES / "README.md").read_text()
    for plan in PLANS.values():
        for path in FIGURES.glob(f"{plan.name}/*/runs.jsonl"):
            assert f"{judge(plan.claims[0], stored_runs(path.parent))}." in captions


def test_the_findings_of_the_first_page_are_those_of_the_results(results):
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^- (.+?): ([+-]?[\d.]+ .+?) \(\*\*(.+?)\*\*\)\.$", text, re.M)
    told = {
        (r.claim.sentence, str(r.answers["world"].judged.measured), r.answers["world"].judged.verdict)
        for r in results
        if "world" in r.answers
    }
    assert len(found) == 4 and set(found) <= told
    counted = re.search(r"on the embedded data: (.+?)\.", (ROOT / "RESULTS.md").read_text())[1]
    assert f"on the embedded data: {counted}." in text
    assert "one cannot tell of the first, and the second does not hold" in text
    on_real = {r.claim.sentence: r.answers["laptop"].judged.verdict for r in results if "laptop" in r.answers}
    assert [on_real[sentence] for sentence, *_ in found[:2]] == ["cannot tell", "does not hold"]


@pytest.mark.parametrize("part", ["adabert", "l2a", "metakd"])
def test_an_overview_shows_the_verdicts_of_the_results(part):
    cells = json.loads((ROOT / "nbs" / part / "01_overview.ipynb").read_text())["cells"]
    shown = [output.get("data", {}).get("text/markdown", "") for cell in cells for output in cell.get("outputs", [])]
    rows = [line for text in shown for line in "".join(text).splitlines() if re.match(r"\| [ALM]\d\w* \|", line)]
    told = (ROOT / "RESULTS.md").read_text().splitlines()
    assert rows and set(rows) <= set(told), "run the overview again"


def test_a_real_student_below_the_bag_of_words_says_so():
    records = [run("kd", "sst2", 0.55), run("teacher", "sst2", 0.9), run("undistilled", "sst2", 0.5)]
    records = [r | {"metrics": {"accuracy": 0.55}} for r in records]
    found = answer(claimed(above("kd", "undistilled"), student=("kd", "")), records, {"sst2": 0.75})
    assert "below the bag of words on sst2 (0.550, 0.750)" in str(found)
    assert "below" not in str(answer(claimed(above("kd", "undistilled"), student=("kd", "")), records, {}))


def test_a_claim_that_was_not_run_is_a_line_of_its_own(results):
    assert any(line.startswith("| Q1 ") and "not run" in line for line in claims_markdown(results).splitlines())


# --- what may be committed --------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path):
    """A finished artefact as a batch leaves it."""
    place = tmp_path / "build" / "fig14" / "world"
    shutil.copytree(FIGURES / "fig14" / "world", place)
    made = json.loads((place / "provenance.json").read_text()) | dict(dirty=False, commit="0" * 40)
    (place / "provenance.json").write_text(json.dumps(made))
    (place / "costs.json").write_text("{}")
    return place


def change(place, **entries):
    made = json.loads((place / "provenance.json").read_text()) | entries
    (place / "provenance.json").write_text(json.dumps(made))


def test_a_finished_artefact_is_accepted(built, tmp_path):
    target = accept(PLANS["fig14"], "world", tmp_path / "build", tmp_path / "figures")
    assert {p.name for p in target.iterdir()} == {p.name for p in built.iterdir()}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda place: change(place, dirty=True), "not committed"), (lambda place: change(place, seeds=[0]), "names the seeds"),
     (lambda place: (place / "figure.svg").unlink(), "has no figure.svg")],
)  # fmt: skip
def test_what_could_not_be_made_again_is_refused(spoil, said, built, tmp_path):
    spoil(built)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        accept(PLANS["fig14"], "world", tmp_path / "build", tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_real_student_below_the_bag_of_words_needs_a_reason(tmp_path):
    place = tmp_path / "build" / "toy" / "laptop"
    place.mkdir(parents=True)
    records = [run(method, "sst2", 0.9, profile="laptop") | {"metrics": {"accuracy": score}}
               for method, score in (("bag_of_words", 0.8), ("kd", 0.7))]  # fmt: skip
    write_lines(records, place / "runs.jsonl")
    for name in ("figure.png", "figure.svg", "table.csv", "costs.json"):
        (place / name).write_text("")
    (place / "provenance.json").write_text(json.dumps(dict(dirty=False, commit="0" * 40, seeds=[0])))
    plan = Plan("toy", "A toy", (claimed(above("kd", "bag_of_words")),), lambda size, seed: [Run("kd", "sst2")])
    with pytest.raises(ValueError, match="kd scores 0.700 on sst2, a bag of words 0.800"):
        accept(plan, "laptop", tmp_path / "build", tmp_path / "figures")
    target = accept(plan, "laptop", tmp_path / "build", tmp_path / "figures", "it was trained for one step")
    assert json.loads((target / "provenance.json").read_text())["reason"] == "it was trained for one step"


def test_tables_of_the_committed_runs_are_the_committed_tables():
    from kdnotes.experiments.artefacts import stored_runs
    from kdnotes.experiments.opened import tabulate
    from kdnotes.experiments.tables import table_text

    for path in sorted(FIGURES.glob("*/*/runs.jsonl")):
        frame = tabulate(PLANS[path.parent.parent.name], path.parent.name, stored_runs(path.parent))
        assert table_text(frame) == (path.parent / "table.csv").read_text(), path.parent
        assert isinstance(read_table(path.parent / "table.csv"), pd.DataFrame)


@pytest.mark.parametrize("name", sorted(PLANS))
def test_the_page_of_a_figure_stores_the_committed_tables_and_pictures(name):
    cells = json.loads((ROOT / "nbs" / "figures" / f"{name}.ipynb").read_text())["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    shown = ["".join(data["text/markdown"]) for data in outputs if "text/markdown" in data]
    committed = sorted(FIGURES.glob(f"{name}/*/table.csv"))
    for path in committed:
        assert table_markdown(read_table(path)) in shown, f"{path}: run nbs/figures/{name}.ipynb again"
    assert sum("image/png" in data for data in outputs) >= len(committed)


def test_the_minutes_of_the_first_page_are_those_of_the_committed_runs():
    text = (ROOT / "README.md").read_text()
    for name in PLANS:
        stored = [FIGURES / name / profile / "runs.jsonl" for profile in ("world", "laptop")]
        minutes = " / ".join(f"{minutes_a_seed(read_lines(path)):.0f}" for path in stored if path.exists())
        assert re.search(rf"\[{name}\]\(nbs/figures/{name}\.ipynb\) \| [^|]+ \| {minutes} \|$", text, re.M), (name, minutes)


def test_runs_that_no_plan_asks_for_any_more_are_marked():
    """A table of earlier code, or of other sizes, stays until it is made anew, and every cell about it says so."""
    from kdnotes.experiments.plans import not_planned

    text = (FIGURES.parent / "RESULTS.md").read_text()
    for path in sorted(FIGURES.glob("*/*/runs.jsonl")):
        plan, profile = PLANS[path.parent.parent.name], path.parent.name
        old = bool(not_planned(plan, profile, read_lines(path)))
        for claim in plan.claims:
            (row,) = [line for line in text.splitlines() if line.startswith(f"| {claim.name} |")]
            cell = row.split(" | ")[3 if profile == "world" else 4]
            assert cell == "not run" or old == ("†" in cell), (claim.name, profile)
