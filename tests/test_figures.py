"""Pictures are readable with one to four tasks and fifteen methods; an artefact is whole and the same each time."""

import json
import subprocess
import sys

import numpy as np
import pytest
from records import cost, run

from kdnotes.core.records import read_lines
from kdnotes.data.tasks import Task
from kdnotes.experiments import landscape
from kdnotes.experiments.artefacts import readme, save_artefact
from kdnotes.experiments.landscape import draw_landscape
from kdnotes.experiments.plots import LEVELS, label, overlap
from kdnotes.experiments.tables import table, table_text
from kdnotes.figures.fig02 import METHODS
from kdnotes.figures.fig02_ladder import draw as draw_ladder

TASKS = [
    Task(name, "single", ("text",), "label", ("no", "yes"), metrics)
    for name, metrics in (
        ("alpha", ("accuracy",)),
        ("beta", ("f1", "accuracy")),
        ("gamma", ("mcc", "macro_f1")),
        ("delta", ("accuracy",)),
    )
]
SKILLS = {"majority": 0.5, "teacher": 0.92, "undistilled": 0.80, "kd": 0.86, "bilstm_soft": 0.78}


def runs(tasks=TASKS[:2], seeds=2):
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
    return table(records, "fig02", "world", TASKS[:2])


CROWD = (*METHODS, "adabert", "adabert_random")  # of one landscape, two of them lines


def crowd(tasks):
    rng = np.random.default_rng(3)
    return [
        run(
            method, one.name, 0.75 + 0.15 * rng.random(), cost=cost(10 ** rng.uniform(0.2, 1.4), int(10 ** rng.uniform(5.5, 7.5)))
        )
        if method != "majority"
        else run(method, one.name, 0)
        for one in tasks
        for method in CROWD
    ]


@pytest.mark.parametrize("n", [1, 4])
def test_names_of_fifteen_methods_do_not_collide(n, monkeypatch, tmp_path):
    boxes = []

    def spy(ax, *args):
        boxes.append((ax.bbox.extents, label(ax, *args)))
        return boxes[-1][1]

    monkeypatch.setattr(landscape, "label", spy)
    fig = draw_landscape(table(crowd(TASKS[:n]), "fig02", "world", TASKS[:n]), "a verdict")
    fig.savefig(tmp_path / "crowd.png")
    assert len(boxes) == n == len(fig.axes)
    for frame, placed in boxes:
        assert len(placed) == len(CROWD) - len(LEVELS)
        for i, box in enumerate(placed):
            assert overlap(box, np.array([frame])) == pytest.approx(np.prod(np.subtract(box[2:], box[:2])))
            if i:
                assert overlap(box, np.array(placed[:i])) < 1


def test_text_is_at_least_nine_points_and_inside_the_page(frame):
    from matplotlib.text import Text

    fig = draw_landscape(frame, "a verdict")
    assert min(text.get_fontsize() for text in fig.findobj(Text) if text.get_text()) >= 9
    width, height = fig.bbox.size
    for text in [
        *fig.texts,
        *(t for legend in fig.legends for t in legend.get_texts()),
        *(t for ax in fig.axes for t in (*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label)),
    ]:
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


def test_untimed_methods_are_named_and_nothing_timed_is_an_error(records):
    some = [{**r, "cost": {}} if r["spec"]["method"] == "kd" else r for r in records]
    fig = draw_landscape(table(some, "fig02", "world", TASKS[:2]))
    assert "not timed: KD" in fig.axes[0].get_xlabel()
    with pytest.raises(ValueError, match="no row of the table has a latency"):
        draw_landscape(table([{**r, "cost": {}} for r in records], "fig02", "world", TASKS[:2]))


def test_artefact_is_whole_and_the_same_each_time(records, frame, tmp_path):
    for name in ("one", "two"):
        save_artefact(tmp_path / name, records, frame, draw_landscape(frame), {"artefact": "fig02"})
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["figure.png", "figure.svg", "provenance.json", "runs.jsonl", "table.csv"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = table(read_lines(tmp_path / "one" / "runs.jsonl"), "fig02", "world", TASKS[:2])
    assert table_text(again) == (tmp_path / "one" / "table.csv").read_text()
    assert json.loads((tmp_path / "one" / "provenance.json").read_text()) == {"artefact": "fig02"}


def test_readme_shows_whole_artefacts_only(records, frame, tmp_path):
    save_artefact(
        tmp_path / "fig02" / "world",
        records,
        frame,
        draw_landscape(frame),
        {"command": "kdnotes figure fig02", "notebook": "nbs/figures/fig02.ipynb"},
    )
    (tmp_path / "fig05" / "world").mkdir(parents=True)
    text = readme(tmp_path)
    assert text == (tmp_path / "README.md").read_text() and "fig05" not in text
    for expected in ("(fig02/world/figure.png)", "(../nbs/figures/fig02.ipynb)", "`kdnotes figure fig02`"):
        assert expected in text


def test_import_is_light():
    heavy = "{'torch', 'matplotlib', 'seaborn', 'sklearn'}"
    code = f"import kdnotes.experiments.plots, sys; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def rungs(tasks):
    """A teacher and a ladder of four rungs on each task."""
    shapes = enumerate(((0.90, 12_000_000, 8.0), (0.90, 6_000_000, 8.0), (0.90, 6_000_000, 3.0), (0.89, 1_500_000, 2.0)), start=1)
    made = [run("ladder", one.name, skill, setting=f"rung={rung}", cost=cost(ms, params))
            for rung, skill, params, ms in ((r, *shape) for r, shape in shapes) for one in tasks]  # fmt: skip
    references = (("majority", 0.5, {}), ("teacher", 0.92, cost(20, 22_000_000)))
    return made + [run(method, one.name, skill, cost=spent) for method, skill, spent in references for one in tasks]


def test_the_ladder_names_every_rung_inside_its_panel():
    from matplotlib.text import Text

    figure = draw_ladder(table(rungs(TASKS[:2]), "fig02_ladder", "world", TASKS[:2], baseline="teacher"))
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [Text.get_window_extent(text, renderer) for text in ax.texts]
        assert sum("faster" in text.get_text() and text.get_text()[0] in "1234" for text in ax.texts) == 4
        assert all(box.y0 >= ax.bbox.y0 - 1 for box in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_ladder_without_a_measured_rung_is_refused():
    unmeasured = [r | {"cost": {}} if r["spec"]["method"] == "ladder" else r for r in rungs(TASKS[:1])]
    with pytest.raises(ValueError, match="no rung of the ladder has a latency"):
        draw_ladder(table(unmeasured, "fig02_ladder", "world", TASKS[:1], baseline="teacher"))
