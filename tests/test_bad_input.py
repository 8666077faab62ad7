"""Whatever is wrong with what a user gives is said in one line, before any long work. What is checked by one module's own
tests is not repeated here: tasks and their files, the store, specs and grids, the command line.
"""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_methods import QUICK, TOKENIZER, data
from test_methods import teachers as made_teachers
from transformers import BertConfig, BertForSequenceClassification, modeling_utils, set_seed

from kdnotes.cli import read_settings
from kdnotes.core.store import Store
from kdnotes.experiments import runs as experiments
from kdnotes.experiments.specs import make_spec
from kdnotes.learning.training import ObjectiveTrainer, last_checkpoint, train
from kdnotes.methods import distill, fine_tune
from kdnotes.models.encoders import load_encoder, load_tokenizer, make_student, small_bert, word_tokenizer

teachers = made_teachers
ROOT = Path(__file__).parents[1]
LABELS = ("no", "yes")


def relabelled(label):
    return Dataset.from_list([{"text": "good", "label": label}, {"text": "bad", "label": 0}])


SHORT = word_tokenizer("good bad not very film book".split(), max_length=8)
ENDLESS = word_tokenizer("good bad not very film book".split(), max_length=10**6)
WRONG = {
    "select is empty": (dict(select=data(3).select([])), "select has no rows"),
    "select has other columns": (dict(select=data(3).rename_column("text", "words")), "select has no column 'text'"),
    "select has a label too many": (dict(select=relabelled(2)), "select holds the label 2, expected ids 0 to 1"),
    "select has other names": (dict(select=relabelled(0).map(lambda r: {"label": "meh"})), "select holds the label 'meh'"),
    "report has a negative label": (dict(report=relabelled(-1)), "report holds the label -1"),
    "train is empty": (dict(train=data(3).select([])), "no rows"),
    "transfer lacks a text": (dict(transfer=["good", None]), "row 1 of transfer has None"),
    "transfer has other columns": (dict(transfer=data(3).rename_column("text", "words")), "transfer has no column 'text'"),
    "transfer is of no use": (dict(method="tinybert", transfer=["good"]), "tinybert learns from no texts without labels"),
    "train has one class": (dict(train=data(60).filter(lambda r: r["label"] == 0)), "holds only the label 'no'"),
    "epochs is text": (dict(epochs="4"), "epochs='4' should be a number"),
    "looks is nothing": (dict(looks=None), "looks=None should be a whole number from 1"),
    "lr is not a number": (dict(lr=float("nan")), "lr=nan should be a number above 0"),
    "batch_size is a truth": (dict(batch_size=True), "batch_size=True should be a whole number from 1"),
    "max_length is text": (dict(max_length="16"), "max_length='16' should be a whole number from 1"),
    "a setting is of the wrong type": (dict(temperature="hot"), "temperature='hot' should be a number above 0"),
    "a folder that cannot be written": (dict(folder=Path("/proc/nowhere")), "cannot write /proc/nowhere"),
    "longer than the tokenizer reads": (dict(tokenizer=SHORT), "max_length=16 is outside 3..8"),
    "longer than the teacher reads": (dict(tokenizer=ENDLESS, max_length=500), "max_length=500 is outside 3..128, what"),
    "a student's encoder of another vocabulary": (
        dict(encoder=small_bert(word_tokenizer(["a"]), 2, 16, 2)), "the tokenizer has 11 pieces, the encoder only 6"),
    "a teacher's folder that is not there": (dict(teacher="no/such/folder", tokenizer=None), "cannot load 'no/such/folder'"),
    "a teacher on the hub, offline": (dict(teacher="nobody/nothing", tokenizer=None), "cannot load 'nobody/nothing'"),
    "an encoder on the hub, offline": (dict(encoder="nobody/nothing"), "cannot load 'nobody/nothing'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_said_in_one_line_before_any_training(case, teachers, monkeypatch):
    changes, expected = WRONG[case]
    monkeypatch.setattr(ObjectiveTrainer, "train", lambda *_, **__: pytest.fail("began to train"))
    given = dict(teacher=teachers["single"], train=data(60), select=data(40, 1)) | QUICK | {"layers": 1} | changes
    with pytest.raises((ValueError, OSError), match=re.escape(expected)) as error:
        distill(**given)
    assert "\n" not in str(error.value)


def test_fine_tuning_checks_select_too():
    with pytest.raises(ValueError, match="select holds the label 2"):
        fine_tune(small_bert(TOKENIZER, 1, 16, 2), data(40), relabelled(2), tokenizer=TOKENIZER)


@pytest.fixture
def saved(tmp_path):
    set_seed(0)
    make_student(small_bert(TOKENIZER, 1, 16, 2), LABELS, layers=1).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file, content", [
    ("model.safetensors", b"\x80\x04pickled"), ("model.safetensors", b""), ("config.json", b'{"model_type": "be'),
])  # fmt: skip
def test_a_damaged_checkpoint_is_one_line(file, content, saved):
    (saved / file).write_bytes(content)
    with pytest.raises(OSError, match=f"cannot load .*{saved.name}") as error:
        load_encoder(str(saved), LABELS)
    assert "\n" not in str(error.value)


def test_a_checkpoint_cut_short_is_one_line(saved):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="cannot load"):
        load_encoder(str(saved), LABELS)


def test_a_folder_without_tokenizer_is_one_line(tmp_path):
    with pytest.raises((OSError, ValueError)) as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
    lambda folder: (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:-100]),
    lambda folder: (folder / "trainer_state.json").write_text("{"),
])  # fmt: skip
def test_training_with_a_damaged_checkpoint_starts_anew_and_ends_the_same(damage, tmp_path):
    from kdnotes.models.rows import encode

    def ended(folder):
        set_seed(0)
        model = make_student(small_bert(TOKENIZER, 1, 16, 2), LABELS, layers=1)
        parts = [encode(data(n, seed), TOKENIZER, ("text",), "label", 16) for n, seed in ((64, 0), (20, 1))]
        train(model, *parts, TOKENIZER, steps=4, looks=2, lr=1e-3, folder=folder)
        return model.state_dict()

    first = ended(tmp_path)
    for folder in tmp_path.glob("checkpoint-*"):
        damage(folder)
    assert last_checkpoint(tmp_path) is None
    second = ended(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_altered_byte_of_the_weights_in_a_checkpoint_is_noticed(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    save_file({"w": torch.zeros(9)}, checkpoint / "model.safetensors")
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": None}))
    import hashlib

    (checkpoint / "model.sha256").write_text(hashlib.sha256(content).hexdigest())
    assert last_checkpoint(tmp_path) == str(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(content[:-1] + b"\x01")
    assert last_checkpoint(tmp_path) is None and not checkpoint.exists()


def test_a_checkpoint_whose_best_is_gone_is_not_resumed(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "x/checkpoint-1"}))
    assert last_checkpoint(tmp_path) is None


def test_no_code_of_a_checkpoint_is_ever_trusted(saved):
    sources = [*ROOT.glob("kdnotes/**/*.py"), *ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("benchmarks/*.py")]
    assert not [path.name for path in sources if re.search(r"trust_remote_code\s*=", path.read_text())]
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | dict(
        model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModelForSequenceClassification": "mine.Mine"})))  # fmt: skip
    (saved / "mine.py").write_text("raise SystemExit('foreign code ran')")
    with pytest.raises((ValueError, OSError)):
        load_encoder(str(saved), LABELS)


# --- parsers ----------------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(min_size=1).filter(lambda name: "=" not in name), JSON, max_size=4))
def test_settings_come_back_from_the_command_line(wanted):
    assert read_settings([f"{name}={json.dumps(value)}" for name, value in wanted.items()]) == wanted


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_other_text_is_a_setting_or_one_line(text):
    try:
        (name,) = read_settings([text])
        assert name and text.startswith(f"{name}=")
    except ValueError as error:
        assert "should be name=value" in str(error)


NAMES = st.sampled_from(["rows", "lr", "bf16", "encoder", "alpha", "layers", "width", "init", "nothing", "seed"])


@settings(max_examples=60, deadline=None)
@given(NAMES, JSON)
def test_a_spec_takes_a_parameter_or_names_it(name, value):
    try:
        assert make_spec("kd", "sst2", **{name: value})["method"] == "kd"
    except ValueError as error:
        assert repr(name) in str(error) or f"{name}=" in str(error)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 10))
def test_no_text_is_too_long_for_a_model_that_was_told_its_limit(limit, words, seed):
    from kdnotes.models.rows import encode

    text = " ".join(np.random.default_rng(seed).choice(["good", "bad"], words))
    rows = Dataset.from_dict({"text": [text], "label": [0]})
    if limit <= 2:
        with pytest.raises(ValueError, match="max_length=2 is outside"):
            encode(rows, TOKENIZER, ("text",), "label", limit)
    else:
        assert encode(rows, TOKENIZER, ("text",), "label", limit)[0]["length"] == min(limit, words + 2)


def test_a_bert_of_two_positions_says_so(teachers):
    tiny = BertForSequenceClassification(BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=4))  # fmt: skip
    with pytest.raises(ValueError, match="max_length=16 is outside 3..4, what the teacher can read"):
        distill(tiny, data(60), data(40, 1), **QUICK)


# --- a disk that is full, or may not be written -----------------------------------------------------------------------

FULL = "No space left on device; free some space there, or choose another folder"


def fails_once(monkeypatch, module, name, error, when):
    """Let a function fail at its first call for which `when` is true, as a disk does until somebody tidies up."""
    real, failed = getattr(module, name), []

    def call(*args, **kwargs):
        if not failed and when(*args, **kwargs):
            failed.append(True)
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    """A store with the encoder and the teacher of tiny runs, and what such a run gives."""
    place = tmp_path_factory.mktemp("peace")
    tiny.run(place, "teacher")
    shutil.copytree(place, place / "before", ignore=shutil.ignore_patterns("runs"))
    return place / "before", tiny.run(place)


@pytest.mark.parametrize("what", ["a teacher's weights", "a checkpoint", "cached outputs", "the record"])
def test_a_full_disk_is_one_line_and_the_same_run_goes_on(what, peace, tmp_path, monkeypatch):
    before, expected = peace
    monkeypatch.setattr(experiments, "takes_long", lambda spec: True)  # so it leaves checkpoints, as on real data
    shutil.copytree(before, tmp_path / "store")
    if what == "a teacher's weights":
        (spec,) = (f for f in (tmp_path / "store").glob("models/*/spec.json") if json.loads(f.read_text())["kind"] == "teacher")
        shutil.rmtree(spec.parent)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    module, name, error, when = {
        "a teacher's weights": (modeling_utils, "safe_save_file", Exception("I/O error: No space left on device (os error 28)"),
                                lambda _, file, **__: "checkpoint" not in str(file)),
        "a checkpoint": (torch, "save", RuntimeError("basic_ios::clear: iostream error"),
                         lambda _, file: "checkpoint-8" in str(file)),
        "cached outputs": (np, "save", OSError("188416 requested and 0 written"), lambda *_, **__: True),
        "the record": (os, "replace", full, lambda _, file: "runs" in Path(file).parts),
    }[what]  # fmt: skip
    with monkeypatch.context() as patch:
        fails_once(patch, module, name, error, when)
        with pytest.raises(OSError, match=f"cannot write .*{tmp_path.name}.*: {FULL}") as caught:
            tiny.run(tmp_path / "store")
    assert "\n" not in str(caught.value) and not Store(tmp_path / "store").records()
    if what in ("a checkpoint", "the record"):  # what the student has learned is kept
        assert last_checkpoint(next((tmp_path / "store" / "unfinished").glob("*/*")))
    after = tiny.run(tmp_path / "store")
    assert all(after[name] == expected[name] for name in expected if name not in ("seconds", "teacher_seconds", "checksum"))


def test_a_store_that_cannot_be_written_is_one_line_before_any_training(monkeypatch):
    monkeypatch.setattr(ObjectiveTrainer, "train", lambda *_, **__: pytest.fail("began to train"))
    with pytest.raises(OSError, match="cannot write /proc/nowhere/.*choose") as caught:
        tiny.run("/proc/nowhere")
    assert "\n" not in str(caught.value)
