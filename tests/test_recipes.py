"""Recipes: the same rows from any copy of a set, with the hub replaced by made-up answers and by our own rows shuffled."""

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
from typer.testing import CliRunner

from kdnotes.cli import app
from kdnotes.core.hashes import rows_sha256
from kdnotes.data import recipes
from kdnotes.data.loading import load_task
from kdnotes.data.recipes import (
    REAL_TABLES,
    WHOLE,
    build,
    check,
    difference,
    make_part,
    make_recipe,
    named_rows,
    pick,
    save_recipes,
    stored_recipe,
    stored_recipes,
)
from kdnotes.data.sources import parquet_files, read_source
from kdnotes.data.tasks import TASKS, Task, register_task, task

datasets.disable_progress_bars()

ROOT = Path(__file__).resolve().parents[1]
LOAD = datasets.load_dataset


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


# What the hub answers for a set of made-up tickets: its own column names, label ids with their names, one column more.
RESPONSE = {
    "train": {
        "body": ["late again", "broken lid", "thank you", "late again", "lovely", "wrong size"],
        "queue": [0, 0, 1, 0, 1, 0],
        "idx": [10, 11, 12, 13, 14, 15],
    },
    "validation": {"body": ["no reply", "so quick"], "queue": [0, 1], "idx": [20, 21]},
    "test": {"body": ["hidden one", "hidden two"], "queue": [-1, -1], "idx": [30, 31]},
}
# Our copy, made earlier: rows of both splits in an order of our own, one of them twice; `validation` as it is.
OURS = {
    "train": pd.DataFrame({"text": ["lovely", "late again", "no reply", "late again", "thank you"], "queue": [1, 0, 0, 0, 1]}),
    "validation": pd.DataFrame({"text": ["no reply", "so quick"], "queue": [0, 1]}),
}


@pytest.fixture
def tickets(monkeypatch):
    monkeypatch.setattr("kdnotes.data.tasks.TASKS", dict(TASKS))
    return register_task(
        Task("tickets", "single", ("text",), "queue", ("angry", "happy"), hub_id="toys/tickets", hub_columns={"body": "text"})
    )


@pytest.fixture
def recipe(tickets, tmp_path):
    (tmp_path / "ours" / "tickets").mkdir(parents=True)
    for split, rows in OURS.items():
        rows.to_parquet(tmp_path / "ours" / "tickets" / f"{split}.parquet")
    return make_recipe(tickets, tmp_path / "ours", whole=["validation"])


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with these columns; local files are read as ever."""

    def answer(splits, labels=("angry", "happy"), label="queue"):
        def load_dataset(path, name=None, **options):
            if path == "parquet":
                return LOAD(path, name, **options)
            rows = {split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()}
            named = datasets.ClassLabel(names=list(labels)) if labels else datasets.Value("string")
            return datasets.DatasetDict({split: part.cast_column(label, named) for split, part in rows.items()})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    answer(RESPONSE)
    return answer


def without(split, body):
    kept = [i for i, text in enumerate(RESPONSE[split]["body"]) if text != body]
    return RESPONSE | {split: {name: [values[i] for i in kept] for name, values in RESPONSE[split].items()}}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fails(message, call, *arguments, kind=ValueError, **named):
    with pytest.raises(kind, match=message) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)


# ---- the toy set


def test_the_same_rows_come_back_from_the_hub(tickets, recipe, hub, tmp_path):
    assert (len(recipe["train"].hashes), len(recipe["validation"].hashes)) == (5, 0)
    told = build(tickets, tmp_path / "built", recipe=recipe)
    assert told == ["tickets/train: 5 rows, the same as ours", "tickets/validation: 2 rows, the same as ours"]
    assert files(tmp_path / "built") == ["tickets", "tickets/train.parquet", "tickets/validation.parquet"]
    ours, theirs = (read_source(tickets, "local", tmp_path / name) for name in ("ours", "built"))
    assert ours == theirs and list(theirs["train"]) == ["text", "queue"]
    assert check(tickets, tmp_path / "built", recipe) == check(tickets, tmp_path / "ours", recipe) == told
    for split in ("train", "select", "report"):
        one, other = (load_task(tickets, "local", data_dir=tmp_path / name)[split][:] for name in ("ours", "built"))
        assert one == other


def test_places_and_foreign_rows_do_not_matter_to_picked_rows(tickets, recipe, hub, tmp_path):
    order = random.Random(3).sample(range(6), 6)
    shuffled = {name: [values[i] for i in order] for name, values in RESPONSE["train"].items()}
    foreign = {
        name: [*values, *({"body": ["a", "b"], "queue": [0, 1], "idx": [0, 1]}[name])] for name, values in shuffled.items()
    }
    hub(RESPONSE | {"train": foreign})
    assert len(build(tickets, tmp_path / "built", recipe=recipe)) == 2


def test_a_missing_row_is_counted_and_nothing_is_left(tickets, recipe, hub, tmp_path):
    hub(without("train", "late again"))
    fails(r"^tickets/train: 2 of 5 rows are missing, one with hash [0-9a-f]{10}$", build, tickets, tmp_path / "b", recipe=recipe)
    assert not (tmp_path / "b").exists()
    told = build(tickets, tmp_path / "b", allow_missing=True, recipe=recipe)
    assert "2 of 5 rows are missing" in told[0] and told[0].endswith("verdicts may differ") and "the same as ours" in told[1]
    assert read_source(tickets, "local", tmp_path / "b")["train"]["text"] == ["lovely", "no reply", "thank you"]
    hub(RESPONSE)
    fails("2 of 5 rows .* is not empty: move it away", build, tickets, tmp_path / "b", recipe=recipe)


@pytest.mark.parametrize("column, value", [("body", "lovely!"), ("queue", 0)])
def test_a_changed_row_is_a_missing_row(tickets, recipe, hub, tmp_path, column, value):
    changed = {name: list(values) for name, values in RESPONSE["train"].items()}
    changed[column][4] = value
    hub(RESPONSE | {"train": changed})
    fails("tickets/train: 1 of 5 rows are missing", build, tickets, tmp_path / "b", recipe=recipe)


def test_a_whole_split_must_be_whole_and_in_order(tickets, recipe, hub, tmp_path):
    hub(RESPONSE | {"validation": {name: values[::-1] for name, values in RESPONSE["validation"].items()}})
    fails("^tickets/validation: all 2 rows are there, in another order$", build, tickets, tmp_path / "b", recipe=recipe)
    hub(without("validation", "so quick"))
    fails(
        r"^tickets/validation: 1 rows with SHA-256 \w{8}, expected 2 with \w{8}$", build, tickets, tmp_path / "b", recipe=recipe
    )
    hub({split: RESPONSE[split] for split in ("train", "test")})
    fails("train: 1 of 5 rows .*; tickets/validation: 0 rows", build, tickets, tmp_path / "b", recipe=recipe)
    fails("tickets/validation: 0 rows", build, tickets, tmp_path / "b", allow_missing=True, recipe=recipe)
    assert not (tmp_path / "b").exists()


def test_a_row_twice_in_ours_and_once_on_the_hub(tickets, recipe, hub, tmp_path):
    once = {name: values[1:] for name, values in RESPONSE["train"].items()}
    hub(RESPONSE | {"train": once})
    build(tickets, tmp_path / "b", recipe=recipe)
    assert read_source(tickets, "local", tmp_path / "b")["train"]["text"].count("late again") == 2


def test_a_row_once_in_ours_and_twice_on_the_hub():
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}]
    part = make_part(rows)
    assert pick(part, "train", {"train": [rows[0], rows[1], rows[0]]}) == rows
    assert "3 rows" in difference(part, [rows[0], rows[1], rows[0]])


def test_a_row_in_two_splits_with_two_labels_is_two_rows(tickets):
    rows = [named_rows(tickets, {"text": ["so so"], "queue": [label]})[0] for label in ("angry", "happy")]
    assert pick(make_part(rows[:1]), "train", {"train": rows[1:], "test": rows[:1]}) == rows[:1]


@pytest.mark.parametrize("labels", [[1, 0], ["happy", "angry"]])
def test_a_label_is_its_name(tickets, labels):
    rows = named_rows(tickets, {"text": ["a", "b"], "queue": labels})
    assert rows == [{"text": "a", "queue": "happy"}, {"text": "b", "queue": "angry"}]


def test_the_hub_may_write_labels_by_name(tickets, recipe, hub, tmp_path):
    names = {0: "angry", 1: "happy", -1: None}
    written = {split: rows | {"queue": [names[i] for i in rows["queue"]]} for split, rows in RESPONSE.items()}
    hub(written, labels=None)
    assert len(build(tickets, tmp_path / "b", recipe=recipe)) == 2


def test_swapped_label_names_are_an_error(tickets, recipe, hub, tmp_path):
    hub(RESPONSE, labels=("happy", "angry"))
    fails("the labels are happy, angry; expected angry, happy", build, tickets, tmp_path / "b", recipe=recipe)


def test_tokens_as_lists_and_as_text():
    this = task("snips_slots")
    as_text = named_rows(this, {"tokens": ["play jazz"], "slots": ["O B-genre"]})
    assert as_text == named_rows(this, {"tokens": [["play", "jazz"]], "slots": [[0, this.labels.index("B-genre")]]})


def test_one_s_own_copy_stands_in_for_the_hub(tickets, recipe, tmp_path):
    assert len(build(tickets, tmp_path / "built", own=tmp_path / "ours", recipe=recipe)) == 2


def test_what_is_there_is_compared_and_not_fetched(tickets, recipe, hub, tmp_path):
    hub({})
    before = (tmp_path / "ours" / "tickets" / "train.parquet").read_bytes()
    assert build(tickets, tmp_path / "ours", recipe=recipe) == check(tickets, tmp_path / "ours", recipe)
    assert (tmp_path / "ours" / "tickets" / "train.parquet").read_bytes() == before
    (tmp_path / "empty" / "tickets").mkdir(parents=True)
    hub(RESPONSE)
    assert len(build(tickets, tmp_path / "empty", recipe=recipe)) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_writing_leaves_nothing(tickets, recipe, hub, tmp_path, monkeypatch, error):
    written = datasets.Dataset.to_parquet

    def to_parquet(rows, path, **options):
        if "validation" in str(path):
            raise error
        return written(rows, path, **options)

    monkeypatch.setattr(datasets.Dataset, "to_parquet", to_parquet)
    with pytest.raises(type(error), match="free some space" if isinstance(error, OSError) else None):
        build(tickets, tmp_path / "b", recipe=recipe)
    assert files(tmp_path / "b") == []
    monkeypatch.undo()


def test_check_says_what_differs(tickets, recipe, tmp_path):
    file = tmp_path / "ours" / "tickets" / "train.parquet"
    OURS["train"][::-1].to_parquet(file)
    fails("^tickets/train: all 5 rows are there, in another order$", check, tickets, tmp_path / "ours", recipe)
    pd.concat([OURS["train"], OURS["validation"]]).to_parquet(file)
    fails("^tickets/train: 7 rows with SHA-256", check, tickets, tmp_path / "ours", recipe)


# ---- what cannot be built


def test_no_such_task_recipe_or_copy(tmp_path, monkeypatch):
    fails("unknown task 'sst22'; expected perhaps sst2", build, "sst22", tmp_path)
    fails("no recipe for task 'agnews'; there is one for sst2, mrpc", build, "agnews", tmp_path)
    fails(
        "'amazon': the hub has no copy .* Blitzer et al. .*FOLDER/amazon/train.parquet and FOLDER/amazon/test",
        build,
        "amazon",
        tmp_path,
    )
    fails("no folder '.*sst2' for task 'sst2'", check, "sst2", tmp_path, kind=FileNotFoundError)
    assert files(tmp_path) == []

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fails("cannot load 'nyu-mll/glue' from the hub .Couldn't reach the hub", build, "sst2", tmp_path)


# ---- the command line


def test_command_builds_and_checks(tickets, recipe, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "stored_recipe", lambda name: recipe)
    monkeypatch.setattr(recipes, "REAL_TABLES", ("tickets",))
    folder = str(tmp_path / "built")
    done = CliRunner().invoke(app, ["data", "--to", folder])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "tickets/train: 5 rows, the same as ours" and f"KDNOTES_DATA={folder}" in done.stdout
    assert CliRunner().invoke(app, ["data", "tickets", "--check", folder]).exit_code == 0
    hub(without("train", "lovely"))
    done = CliRunner().invoke(app, ["data", "tickets", "--to", str(tmp_path / "other")])
    assert done.exit_code == 2 and done.stderr.startswith("kdnotes: tickets/train: 1 of 5 rows are missing")
    done = CliRunner().invoke(app, ["data", "tickets", "--to", str(tmp_path / "other"), "--allow-missing"])
    assert done.exit_code == 0 and "verdicts may differ" in done.stdout


def test_one_task_that_fails_does_not_stop_the_others(tickets, recipe, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "stored_recipe", lambda name: recipe if name == "tickets" else stored_recipes()[name])
    done = CliRunner().invoke(app, ["data", "amazon", "nope", "tickets", "--to", str(tmp_path / "built")])
    assert done.exit_code == 2 and "tickets/train: 5 rows, the same as ours" in done.stdout
    assert [line[:25] for line in done.stderr.splitlines()] == ["kdnotes: task 'amazon': t", "kdnotes: unknown task 'no"]


def test_help_is_light():
    code = "from typer.testing import CliRunner; from kdnotes.cli import app; r = CliRunner().invoke(app, ['data', '--help'])"
    code += "; import sys; import kdnotes.data.recipes; assert r.exit_code == 0 and 'nobody has compared' in r.output, r.output"
    code += "; print([name for name in ('torch', 'transformers', 'datasets', 'pandas') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


# ---- the stored recipes


def test_stored_recipes_are_small_and_whole(tmp_path):
    stored = stored_recipes()
    assert list(stored) == list(WHOLE)
    for name, recipe in stored.items():
        assert list(recipe)[0] == "train" and len(recipe) == 2
        assert {split for split, part in recipe.items() if not part.hashes} == set(WHOLE[name])
        assert all(len(part.hashes) in (0, part.rows) and len(part.sha256) == 64 for part in recipe.values())
    save_recipes(stored, tmp_path)
    for name in ("recipes.json", "recipes.zip"):
        packed = ROOT / "kdnotes" / "data" / name
        assert packed.read_bytes() == (tmp_path / name).read_bytes() and packed.stat().st_size < 650_000


def test_stored_recipes_hold_no_text():
    numbers = json.loads((ROOT / "kdnotes" / "data" / "recipes.json").read_text())
    assert {key for parts in numbers.values() for part in parts.values() for key in part} == {"rows", "sha256", "any_order"}
    with zipfile.ZipFile(ROOT / "kdnotes" / "data" / "recipes.zip") as packed:
        assert sum(packed.getinfo(name).file_size for name in packed.namelist()) == 5 * sum(
            len(part.hashes) for recipe in stored_recipes().values() for part in recipe.values()
        )


def test_the_tasks_of_the_real_tables_have_recipes():
    tables = sorted((ROOT / "figures").glob("*/laptop/table.csv"))
    used = {name for table in tables for name in pd.read_csv(table).task}
    assert tables and used & set(TASKS) <= set(REAL_TABLES)  # a table may end with a mean over tasks


# ---- the real rows


@pytest.mark.data
@pytest.mark.parametrize("name", WHOLE)
def test_stored_recipe_is_that_of_the_local_files(name):
    assert make_recipe(name, whole=WHOLE[name]) == stored_recipe(name)


def as_on_the_hub(this, recipe):
    """Our rows as the hub might hold them: those that are picked shuffled over the splits, among foreign rows."""
    local = read_source(this, "local")
    rows = {split: [dict(zip(local[split], values)) for values in zip(*local[split].values())] for split in recipe}
    picked = [row for split, part in recipe.items() if part.hashes for row in rows[split]]
    foreign = [row | {this.text[0]: f"{row[this.text[0]]} indeed"} for row in picked[::3]]
    mixed = random.Random(5).sample(picked + foreign, len(picked + foreign))
    half = len(mixed) // 2
    parts = dict(zip(recipe, (mixed[:half], mixed[half:])))
    splits = {split: parts[split] if part.hashes else rows[split] for split, part in recipe.items()}
    theirs = {ours: old for old, ours in this.hub_columns.items()}
    return {
        split: datasets.Dataset.from_dict({theirs.get(name, name): [row[name] for row in part] for name in this.columns})
        for split, part in splits.items()
    }


@pytest.mark.data
@pytest.mark.parametrize("name", WHOLE)
def test_local_rows_shuffled_among_foreign_ones_give_the_same_files(name, tmp_path, monkeypatch):
    this, recipe = task(name), stored_recipe(name)
    answer = as_on_the_hub(this, recipe)
    if this.hub_id:
        monkeypatch.setattr(
            datasets, "load_dataset", lambda path, *_, **options: LOAD(path, **options) if path == "parquet" else answer
        )
        told = build(name, tmp_path / "built")
    else:
        (tmp_path / "own" / name).mkdir(parents=True)
        for split, rows in answer.items():
            rows.to_parquet(tmp_path / "own" / name / f"{split}.parquet")
        told = build(name, tmp_path / "built", own=tmp_path / "own")
    assert told == [f"{name}/{split}: {part.rows:,} rows, the same as ours" for split, part in recipe.items()]
    assert list(parquet_files(this, tmp_path / "built")) == list(recipe)
    for split, columns in read_source(this, "local", tmp_path / "built").items():
        assert rows_sha256(named_rows(this, columns)) == recipe[split].sha256
    ours, theirs = load_task(name, "local", n_train=200), load_task(name, "local", data_dir=tmp_path / "built", n_train=200)
    assert all(ours[split][:] == theirs[split][:] for split in ("train", "select", "report"))
