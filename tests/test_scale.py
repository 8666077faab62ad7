"""Two processes train together as one does; what they cannot do together is refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from test_methods import QUICK, TOKENIZER, data, small
from transformers import set_seed

from kdnotes.core.store import Store
from kdnotes.learning.training import train
from kdnotes.methods import distill
from kdnotes.models.encoders import make_student, small_bert
from kdnotes.models.rows import Collate, encode, model_inputs

ROOT = Path(__file__).parents[1]
EXACT = dict.fromkeys(("rows", "one row left", "tokens", "kd"), 1e-6)  # a mean over rows, or over labelled pieces
TOLERANCE = EXACT | dict.fromkeys(("tinybert", "meta_teacher"), 3e-4)  # of logits; these have means over tokens or weights


def still(model):
    """The model without dropout, which every process draws for itself."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def student(kind="single"):
    set_seed(0)
    encoder = small_bert(TOKENIZER, 2, 16, 2)
    encoder.config.update(dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    return still(make_student(encoder, ("no", "yes"), kind, layers=2))


def trained(rows, kind="single", select=None, **settings):
    model, tokens = student(kind), kind == "tokens"
    parts = [encode(data(n, tokens=tokens), TOKENIZER, ("text",), "label", 16, kind) if n else None for n in (rows, select)]
    train(model, *parts, TOKENIZER, steps=9, lr=1e-3, batch_size=16, **settings)
    return model


def distilled(method):
    source = data(40, 5).add_column("domain", ["a", "b"] * 20)
    teacher = student()
    own = small(method) | dict(source=source) | (dict(copies=0) if method == "tinybert" else {})  # each process hides other words
    return distill(teacher, data(77), data(40, 1), method, encoder=teacher, **QUICK | own)


def train_all(out):
    """Everything that is compared, by one process of however many."""
    made = {"rows": trained(77), "one row left": trained(33, select=20, folder=out / "kept"), "tokens": trained(45, "tokens")}
    made |= {method: distilled(method) for method in ("kd", "meta_teacher", "tinybert")}
    asked = Collate(TOKENIZER)(list(encode(data(50, 2), TOKENIZER, ("text",), "label", 16).remove_columns("length")))
    with torch.no_grad():
        logits = {name: model(**model_inputs(asked, TOKENIZER)).logits for name, model in made.items()}
    torch.save(logits, out / f"{os.environ.get('RANK', 'alone')}.pt")


@pytest.mark.slow
def test_students_of_two_processes_answer_as_those_of_one(tmp_path):
    for processes, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        folder.mkdir()
        script = [str(Path(__file__)), str(folder)]
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if processes == 2 else []
        environment = os.environ | dict(ACCELERATE_USE_CPU="true", PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", OMP_NUM_THREADS="1")
        said = subprocess.run([sys.executable, *launch, *script], env=environment, capture_output=True, text=True, timeout=300)
        assert said.returncode == 0, said.stderr[-3000:]
    alone, first, second = (torch.load(tmp_path / name) for name in ("one/alone.pt", "two/0.pt", "two/1.pt"))
    for name, tolerance in TOLERANCE.items():
        assert torch.equal(first[name], second[name])
        assert (first[name] - alone[name]).abs().max() < tolerance, name
    assert [path.name for path in (tmp_path / "two" / "kept").glob("checkpoint-*")]


def test_several_processes_make_nothing_for_the_store(tmp_path, monkeypatch):
    made = Store(tmp_path).folder({"kind": "thing"}, lambda folder: (folder / "a").write_text("a"))
    record = tiny.run(tmp_path, "majority")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Store(tmp_path).folder({"kind": "thing"}, None) == made and tiny.run(tmp_path, "majority") == record
    for make in (lambda: Store(tmp_path).folder({"kind": "other"}, None), lambda: tiny.run(tmp_path, seed=1)):
        with pytest.raises(ValueError, match="not in the store, and 2 processes cannot make it together: make it in one"):
            make()


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
