import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import set_seed

from kdnotes.learning.training import LengthGrouped, last_checkpoint, train
from kdnotes.models.encoders import make_student, small_bert, word_tokenizer
from kdnotes.models.rows import Collate, encode, gold_labels, predict, predicted_labels

WORDS = "good bad not very film book".split()
TOKENIZER = word_tokenizer(WORDS)


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    texts = [list(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(n)]
    return Dataset.from_list([{"text": " ".join(t), "label": int("good" in t)} for t in texts])


def encoded(n, seed=0):
    return encode(rows(n, seed), TOKENIZER, ("text",), "label", 16)


def student(labels=("no", "yes"), kind="single"):
    set_seed(0)
    return make_student(small_bert(TOKENIZER, 1, 16, 2), labels, kind, layers=1)


def test_order_is_a_permutation_and_depends_on_seed_and_epoch_only():
    lengths = list(np.random.default_rng(0).integers(3, 60, 1000))
    orders = set()
    for seed in (0, 1):
        sampler = LengthGrouped(lengths, 32, seed)
        for epoch in (0, 1, 2):
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert sorted(order) == list(range(1000)) and order == list(sampler)
            orders.add(tuple(order))
    assert len(orders) == 6


def test_predictions_keep_the_order_and_ignore_the_neighbours():
    model, data = student(), encoded(50)
    all_at_once = predict(model, data, TOKENIZER, batch_size=50)
    one_by_one = [predict(model, data.select([i]), TOKENIZER)[0] for i in range(50)]
    assert np.allclose(all_at_once, one_by_one, atol=1e-5)


def test_token_tasks_learn_and_report_one_label_per_word():
    data = Dataset.from_list([{"words": ["good", "film"], "tags": [1, 0]}, {"words": ["book"], "tags": [0]}] * 20)
    data = encode(data, TOKENIZER, ("words",), "tags", 16, "tokens")
    model = student(labels=("O", "B-praise"), kind="tokens")
    train(model, data, data, TOKENIZER, steps=40, looks=20, lr=1e-2, metric="entity_f1", label_names=("O", "B-praise"))
    said = predicted_labels(predict(model, data, TOKENIZER))
    assert gold_labels(data)[:2] == [[1, 0], [0]] and said == gold_labels(data)


def test_words_cut_by_max_length_have_no_label():
    data = Dataset.from_list([{"words": ["good"] * 10, "tags": [1] * 10}])
    assert sum(label != -100 for label in encode(data, TOKENIZER, ("words",), "tags", 6, "tokens")[0]["labels"]) == 4


def test_the_best_look_at_select_is_kept():
    model, data, select = student(), encoded(200), encoded(100, seed=1)
    log = train(model, data, select, TOKENIZER, steps=42, looks=6, lr=5e-3)
    scores = [entry["eval_score"] for entry in log if "eval_score" in entry]
    now = (predicted_labels(predict(model, select, TOKENIZER)) == gold_labels(select)).mean()
    assert len(scores) == 6 and now == max(scores) > 0.8


def test_early_stopping_stops():
    log = train(student(), encoded(64), encoded(32, 1), TOKENIZER, steps=60, looks=30, lr=1e-9, patience=2)
    assert sum("eval_score" in entry for entry in log) == 3


def test_same_seed_same_weights_other_seed_other_weights():
    finals = []
    for seed in (0, 0, 1):
        model = student()
        train(model, encoded(96), encoded(32, 1), TOKENIZER, steps=6, looks=2, lr=1e-3, seed=seed)
        finals.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(finals[0], finals[1]) and not torch.equal(finals[0], finals[2])


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(lr=-1.0), dict(batch_size=0), dict(looks=0)])
def test_wrong_numbers_fail_at_once(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* should be a .*number"):
        train(student(), encoded(8), None, TOKENIZER, **wrong)


def test_no_rows_fail_at_once():
    with pytest.raises(ValueError, match="no rows"):
        train(student(), encoded(8).select([]), None, TOKENIZER)


def test_teacher_logits_travel_in_the_batch():
    data = encoded(4).add_column("teacher_logits", [[0.0, float(i)] for i in range(4)])
    batch = Collate(TOKENIZER)([data[i] for i in range(4)])
    assert batch["teacher_logits"].tolist() == [[0.0, i] for i in range(4)] and "length" not in batch


KILLED = """
import sys, torch
sys.path.insert(0, "tests")
from pathlib import Path
from test_training import TOKENIZER, encoded, student, train
model = student()
train(model, encoded(600), encoded(50, 1), TOKENIZER, steps=228, looks=12, lr=1e-3, folder=Path(sys.argv[1]))
torch.save(torch.cat([p.flatten() for p in model.parameters()]), Path(sys.argv[1]) / "final.pt")
"""


@pytest.mark.slow
def test_kill_9_three_times_ends_with_the_same_weights(tmp_path):
    """A training process killed at three moments and started again ends as the one that nobody killed."""

    def start(folder):
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stderr=subprocess.DEVNULL)

    assert start(tmp_path / "peace").wait() == 0
    kills = 0
    for wanted in (1, 4, 8):  # checkpoints that must be there before each kill
        process = start(tmp_path / "killed")
        while process.poll() is None and not any(
            int(p.name.split("-")[1]) >= wanted * 19 for p in (tmp_path / "killed").glob("checkpoint-*")
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    assert start(tmp_path / "killed").wait() == 0
    peace, killed = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("peace", "killed"))
    assert torch.equal(peace, killed)


def test_an_unfinished_checkpoint_is_swept_away(tmp_path):
    good, bad = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    for folder in (good, bad):
        folder.mkdir()
    (good / "trainer_state.json").write_text(json.dumps({"global_step": 9}))
    assert last_checkpoint(tmp_path) == str(good) and not bad.exists()
    assert last_checkpoint(Path(os.devnull).parent / "nothing-here") is None


def test_bf16_ends_with_the_training(tmp_path):
    """A student trained in bfloat16 answers in full precision, as it does when it has been saved and loaded."""
    model, data = student(), encoded(24)
    train(model, data, None, TOKENIZER, steps=1, bf16=True)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([data[0]["input_ids"]])
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
