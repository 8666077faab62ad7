"""Each figure's own drawing says what its table says; the numbers are made up."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from kdnotes.core.records import address, pack
from kdnotes.experiments.plots import header
from kdnotes.experiments.tables import COLUMNS, accuracies, table
from kdnotes.figures import fig05, fig08_crosstask, fig10, fig12, fig13, fig14, fig17_fraction
from kdnotes.learning.following import Follower
from kdnotes.models.encoders import make_student


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
    assert len(figure.axes) == 10 and figure.axes[0].lines[0].get_ydata().tolist() == [0.90, 0.89, 0.89, 0.80, 0.70]


def test_no_sweep_is_no_picture():
    frame = searched(BETA)
    with pytest.raises(ValueError, match="no trade-off to draw"):
        fig05.draw(frame[frame.setting == ""])


def test_the_cross_task_matrix_has_a_row_for_chance():
    tasks = fig08_crosstask.TASKS
    matrix = fig08_crosstask.crosstask(searched([(f"searched on {task}", 0.8 + 0.01 * i) for i, task in enumerate(tasks)], tasks))
    assert matrix.index.tolist() == [*tasks, "random"] and fig08_crosstask.diagonal_wins(matrix) == (1, 1.0)
    assert fig08_crosstask.diagonal_wins(pd.DataFrame(np.eye(3), index=tasks, columns=tasks)) == (3, 1.0)


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
    return table(made, "fig12", "world", ["amazon"], fig13.METHODS, "kd_fixed_aug")


def test_every_target_has_a_panel_and_their_mean_one_more(reviews):
    figure = fig12.draw(reviews, "made-up numbers")
    assert [ax.get_title() for ax in figure.axes] == ["amazon books", "amazon kitchen", "mean"]
    shown = accuracies(reviews, "n=64")
    points = figure.axes[2].collections[0].get_offsets()[:, 0]
    assert np.isclose(points[-1], shown[shown.method == "l2a"].value.mean())
    with pytest.raises(ValueError, match="n=3"):
        fig12.draw(reviews, setting="n=3")


def test_a_row_of_fewer_seeds_says_so(reviews):
    uneven = fig12.draw(reviews.assign(seeds=np.where(reviews.method == "kd", 1, 5)))
    assert "kd (seeds: 1)" in [text.get_text() for text in uneven.axes[0].get_yticklabels()]


def test_the_curve_over_scarce_rows_ends_with_all_of_them_and_compares_with_the_better_teacher(reviews):
    kitchen = reviews[reviews.domain == "kitchen"]
    figure = fig13.draw(kitchen, "made-up numbers")
    assert figure.axes[0].lines[-1].get_xdata().tolist() == [16, 64, 1500]
    l2a, *teachers = (fig13.scarcity(kitchen, name).value.to_numpy() for name in ("l2a", "teacher", "teacher_l2a"))
    assert np.allclose(figure.axes[2].lines[0].get_ydata(), l2a - np.maximum(*teachers))


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
    figure = fig10.draw(pd.DataFrame(dict(profile=["world"])))
    assert any("3,329 parameters" in text.get_text() for text in figure.axes[0].texts)


# --- Meta-KD ----------------------------------------------------------------------------------------------------------


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


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
        record(method, "books", setting, {"n=16": 0.6, "n=256": 0.7}.get(setting, 0.8), 800, rng)
        for method, each in shown.items()
        for setting in each
    ]
    frame = table(made, "fig17_fraction", "world", ["amazon"], list(shown), fig17_fraction.BASE)
    figure = fig17_fraction.draw(frame, "made-up numbers")
    curve = figure.axes[0].lines[-1]
    assert curve.get_xdata().tolist() == [16, 256, 800] and curve.get_label() == fig17_fraction.STUDENT
    assert figure.axes[2].lines[0].get_xdata().tolist() == [0, 0.3, 1]
    with pytest.raises(ValueError, match="no curve to draw"):
        fig17_fraction.draw(frame[frame.setting == ""])


def test_a_header_keeps_its_place_free():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), layout="constrained")
    header(figure, "a title", "a line", "")
    assert [text.get_text() for text in figure.texts] == ["a title", "a line"]
