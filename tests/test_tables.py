"""Tables hold exactly what the metrics say, are the same each time, and refuse inconsistent records."""

import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from records import cost, run

from kdnotes.core.metrics import Comparison, bootstrap, flatten, paired_difference, pooled_difference, score
from kdnotes.core.records import pack, unpack
from kdnotes.data.tasks import Task
from kdnotes.experiments.tables import (
    ABOUT,
    COLUMNS,
    TIMED,
    accuracies,
    compare,
    headline_rows,
    mean_rows,
    panels,
    read_table,
    same_table,
    table,
    table_markdown,
    table_text,
)

TASKS = [
    Task(name, "single", ("text",), "label", ("no", "yes"), metrics)
    for name, metrics in (("alpha", ("accuracy",)), ("beta", ("f1", "accuracy")))
]
SPREAD = Task("spread", "single", ("text",), "label", ("no", "yes"), domain="where", domains=("west", "east"))
TAGGED = Task("tagged", "tokens", ("words",), "tags", ("O", "B-x", "I-x"), ("entity_f1",))
SKILLS = {"majority": 0.5, "teacher": 0.92, "undistilled": 0.80, "kd": 0.86, "bilstm_soft": 0.78}


def runs(tasks=TASKS, seeds=2):
    return [
        run(method, one.name, skill, seed, cost={} if method == "majority" else cost(2 + 3 * i + seed))
        for one in tasks
        for i, (method, skill) in enumerate(SKILLS.items())
        for seed in range(1 if method in ("majority", "teacher") else seeds)
    ]


@pytest.fixture(scope="module")
def records():
    return runs()


@pytest.fixture(scope="module")
def frame(records):
    return table(records, "fig02", "world", TASKS)


def pick(frame, *about):
    return frame.set_index(ABOUT).sort_index().loc[about]


def test_columns_are_the_contract():
    assert ",".join(COLUMNS) == (
        "artefact,profile,method,task,domain,setting,metric,value,ci_low,ci_high,seeds,n_train,n_report,published,"
        "baseline,delta,delta_low,delta_high,params,size_bytes,flops,latency_ms,speedup,speedup_bert,note"
    )


def test_rows_stand_in_the_order_of_tasks_methods_and_metrics(records):
    frame = table(records[::-1], "fig02", "world", TASKS[::-1], methods=["kd", "majority"])
    assert frame.task.drop_duplicates().tolist() == ["beta", "alpha", "mean"]
    assert frame.method.drop_duplicates().tolist() == ["kd", "majority"]
    assert frame.metric[frame.task == "beta"].tolist()[:2] == ["f1", "accuracy"]


def test_values_and_intervals_are_those_of_the_metrics(records, frame):
    mine = {m: [r for r in records if (r["spec"]["method"], r["spec"]["task"]) == (m, "beta")] for m in SKILLS}
    predictions = {m: [unpack(r["predictions"]) for r in found] for m, found in mine.items()}
    labels = unpack(records[-1]["labels"])
    row = pick(frame, "kd", "beta", "", "", "f1")
    assert (row.value, row.ci_low, row.ci_high) == pytest.approx(bootstrap("f1", labels, predictions["kd"]), rel=1e-5)
    expected = paired_difference("f1", labels, predictions["kd"], predictions["undistilled"])
    assert (row.delta, row.delta_low, row.delta_high) == pytest.approx(expected, rel=1e-5)
    kept = pick(frame, "kd", "beta", "", "", "kept_chance_corrected").value
    s, t, m = (np.mean([score("f1", labels, p) for p in predictions[x]]) for x in ("kd", "teacher", "majority"))
    assert kept == pytest.approx((s - m) / (t - m), rel=1e-5)


def test_kept_rows_belong_to_students_and_the_headline(frame):
    kept = frame[frame.metric.str.startswith("kept")]
    assert set(kept.method) == {"undistilled", "kd", "bilstm_soft"}
    assert len(kept) == 3 * 2 * 2 and (kept.baseline == "").all()


def test_costs_are_medians_and_counts_stay_whole(frame):
    row = pick(frame, "kd", "alpha", "", "", "accuracy")
    assert row.latency_ms == 11.5 and row.seeds == 2 and row.n_train == 50
    assert ",123456789012," in table_text(frame) and ",4000000," in table_text(frame)
    assert np.isnan(pick(frame, "majority", "alpha", "", "", "accuracy").latency_ms)


def test_a_setting_of_several_parts_is_held_against_the_first_of_them():
    """The control of a budget is not compared with all rows."""
    found = [
        run(method, "alpha", skill, setting=setting)
        for method, skill, setting in (("kd", 0.8, "n=64, flat sources"), ("undistilled", 0.6, "n=64"), ("undistilled", 0.9, ""))
    ]
    frame = table(found, "fig13", "world", TASKS[:1])
    mine, few = (
        pick(frame, *about, "accuracy").value
        for about in (("kd", "alpha", "", "n=64, flat sources"), ("undistilled", "alpha", "", "n=64"))
    )
    assert pick(frame, "kd", "alpha", "", "n=64, flat sources", "accuracy").delta == pytest.approx(mine - few, abs=1e-5)


def test_a_second_report_split_has_rows_of_its_own_held_against_each_other():
    found = [run(method, "alpha", 0.7) for method in ("kd", "undistilled", "teacher", "majority")]
    for one, skill in zip(found, (0.9, 0.6, 0.95, 0.5)):
        more = run(one["spec"]["method"], "alpha", skill, n=70)
        one["report2"] = {name: more[name] for name in ("n_report", "predictions", "labels")}
    frame = table(found, "fig02", "world", TASKS[:1])
    mine, theirs = (pick(frame, method, "alpha", "", "report2", "accuracy") for method in ("kd", "undistilled"))
    assert mine.n_report == 70 and pick(frame, "kd", "alpha", "", "", "accuracy").n_report == 120
    assert mine.delta == pytest.approx(mine.value - theirs.value, abs=1e-5) and mine.delta > 0.1
    share = pick(frame, "kd", "alpha", "", "report2", "kept").value
    assert share == pytest.approx(mine.value / pick(frame, "teacher", "alpha", "", "report2", "accuracy").value, abs=1e-5)
    assert "report2" in table_markdown(frame)
    drawn = [headline_rows(frame), *panels(frame).values()]
    assert not any((rows.setting == "report2").any() for rows in drawn), "figures show the first split"


def test_settings_fall_back_to_the_plain_baseline_and_sort_by_number():
    sweep = [run("kd", "alpha", 0.8, setting=s) for s in ("beta=16", "beta=4", "beta=0.5")]
    frame = table(runs(TASKS[:1]) + sweep, "fig05", "world", TASKS[:1]).query("method == 'kd' and metric == 'accuracy'")
    assert frame.setting.tolist() == ["", "beta=0.5", "beta=4", "beta=16"]
    assert (frame.baseline == "undistilled").all() and frame.delta.notna().all()


def test_domains_are_rows_in_the_task_s_order():
    found = [run(m, "spread", s, domain=d) for d in ("east", "west") for m, s in SKILLS.items()]
    frame = table(found, "fig14", "world", [SPREAD])
    assert frame.domain.drop_duplicates().tolist() == ["west", "east", "mean"]


def test_the_mean_over_places_is_paired_place_by_place_and_only_of_what_was_run_everywhere():
    found = [run(m, "spread", s, domain=d) for d in ("east", "west") for m, s in SKILLS.items()]
    found = [r for r in found if (r["spec"]["method"], r["spec"]["domain"]) != ("kd", "east")]
    frame = table(found, "fig14", "world", [SPREAD])
    means = mean_rows(frame).set_index("method")
    each = frame[(frame.metric == "accuracy") & (frame.domain != "mean")]
    assert set(means.index) == set(SKILLS) - {"kd"} and (means.domain == "mean").all()
    for method, row in means.iterrows():
        assert row.value == pytest.approx(each[each.method == method].value.mean(), abs=1e-5)
    pairs = [(r["labels"], r["predictions"]) for r in found if r["spec"]["method"] == "teacher"]
    other = [r["predictions"] for r in found if r["spec"]["method"] == "undistilled"]
    compared = [
        Comparison("accuracy", unpack(y), unpack(a)[None], unpack(b)[None], SPREAD.labels) for (y, a), b in zip(pairs, other)
    ]
    gain = pooled_difference(compared)
    row = means.loc["teacher"]
    assert (row.delta, row.delta_low, row.delta_high) == pytest.approx(gain, abs=1e-5)


def test_tasks_of_different_metrics_have_a_mean_over_the_one_that_they_share(records):
    frame = table(records, "fig02", "world", TASKS[:2])
    means = mean_rows(frame)
    assert set(means.task) == {"mean"} and set(means.metric) == {"accuracy"}
    assert not headline_rows(frame).task.isin(["mean"]).any() and not (accuracies(frame).task == "mean").any()


def test_what_rounding_leaves_of_a_zero_is_zero(records):
    text = table_text(table(records, "fig02", "world", TASKS[:2]))
    assert not re.search(r"e-1[0-9]", text)


def test_token_tasks_use_the_tag_names():
    gold = flatten([[1, 2, 0], [0, 1]] * 10)
    found = []
    for method, answer in (("majority", gold * 0), ("teacher", gold), ("kd", np.where(gold == 2, 0, gold))):
        found.append({**run(method, "tagged", 1), "labels": pack(gold), "predictions": pack(answer)})
    frame = table(found, "fig15", "world", [TAGGED])
    assert pick(frame, "kd", "tagged", "", "", "entity_f1").value == 0.5
    assert pick(frame, "kd", "tagged", "", "", "kept").value == 0.5


def test_published_values_and_notes_are_carried(records):
    key = ("kd", "alpha", "", "", "accuracy")
    noted = [{**r, "note": "busy machine"} if r["spec"]["method"] == "kd" else r for r in records]
    row = pick(table(noted, "fig02", "world", TASKS[:1], published={key: 0.9}), *key)
    assert row.published == 0.9 and row.note == "busy machine"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda r: r + r[-1:], "expected each once"),
        (lambda r: [*r[:-1], {**r[-1], "labels": pack([0] * 120)}], "report labels"),
        (lambda r: [*r, run("pkd", "alpha", 0.5, profile="laptop")], "profile 'laptop', the table is of 'world'"),
    ],
)
def test_inconsistent_records_are_named(records, spoil, message):
    with pytest.raises(ValueError, match=message):
        table(spoil(records), "fig02", "world", TASKS)


def test_csv_keeps_bytes_and_types(frame, tmp_path):
    (tmp_path / "table.csv").write_text(table_text(frame))
    again = read_table(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(again, frame)
    with pytest.raises(ValueError, match="expected artefact,profile"):
        read_table(io.StringIO("a,b\n1,2\n"))


def test_only_latency_and_speed_may_differ(frame):
    for name in TIMED:
        assert same_table(frame, frame.assign(**{name: 1.5}))
    assert same_table(frame, frame.assign(note="latency measured after training"))
    for name in ("value", "ci_low", "params", "flops"):
        assert not same_table(frame, frame.assign(**{name: 7}))


def test_compare_tells_what_is_within_missing_and_new(frame):
    shifted = frame.assign(value=frame.value.where(frame.method != "kd", 0.1))[frame.task == "alpha"]
    extra = frame[frame.method == "kd"].assign(method="pkd")
    beside = compare(pd.concat([shifted, extra]), frame)
    within = beside.groupby(["method", "task"]).within.agg(set).to_dict()
    assert within["undistilled", "alpha"] == {"yes"} and within["kd", "alpha"] == {"no"}
    assert within["kd", "beta"] == {"missing"} and within["pkd", "alpha"] == {"new"}
    assert set(compare(frame.assign(latency_ms=1.0), frame).within) == {"yes"}


def test_markdown_has_a_line_per_method(frame):
    lines = table_markdown(frame).splitlines()
    assert len(lines) == 2 + len(SKILLS) and len({line.count("|") for line in lines}) == 1


def test_import_is_light():
    heavy = "{'torch', 'matplotlib', 'seaborn', 'sklearn'}"
    code = f"import kdnotes.experiments.tables, sys; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
