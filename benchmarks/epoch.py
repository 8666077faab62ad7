"""How long an epoch of distillation takes with the knowledge cache, without it, and in TextBrewer, in one run.

python benchmarks/epoch.py [rows] [rounds]

TextBrewer is no dependency of kdnotes; without it the first two are measured. To have it beside an installation:
`pip install --no-deps --target elsewhere textbrewer tensorboardX`, then add `elsewhere` to PYTHONPATH.
Same teacher (shape of BERT-base, or of MiniLM-L6), same student (4 x 312), same rows, batch 32, fp32, one thread, AdamW;
all three pad a batch to its longest row. Weights are random: they have no influence on time.
"""

import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, set_seed

from kdnotes.core.store import Store
from kdnotes.data import worlds
from kdnotes.learning.losses import kd_loss
from kdnotes.learning.problem import Problem
from kdnotes.learning.training import LengthGrouped, steps_of
from kdnotes.models.encoders import word_tokenizer
from kdnotes.models.rows import Collate, encode, model_inputs

BATCH, WORDS = 32, 30522
TEACHERS = {"BERT-base (12 x 768)": (12, 768, 12, 3072), "MiniLM-L6 (6 x 384)": (6, 384, 12, 1536)}


def bert(layers, width, heads, inner):
    """An untrained classifier of that shape."""
    set_seed(0)
    config = BertConfig(vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                        intermediate_size=inner, num_labels=2)  # fmt: skip
    return BertForSequenceClassification(config)


def student():
    return bert(4, 312, 12, 1200)


def cached(problem):
    """Our epoch: the teacher's logits come from the store."""
    problem.__dict__.pop("taught", None)  # this process forgets, the store does not

    def objective(model, batch):
        logits = model(**model_inputs(batch, problem.tokenizer)).logits
        return kd_loss(logits, batch["teacher_logits"], batch["labels"], 1.0, 4.0)

    problem.fit(student(), problem.taught, objective)


def asked_at_every_step(problem):
    """The same training, but the teacher answers at every step."""

    def objective(model, batch):
        inputs = model_inputs(batch, problem.tokenizer)
        with torch.no_grad():
            theirs = problem.teacher(**inputs).logits
        return kd_loss(model(**inputs).logits, theirs, batch["labels"], 1.0, 4.0)

    problem.fit(student(), problem.train, objective)


def textbrewer(problem):
    """TextBrewer's GeneralDistiller on the same batches."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    rows, collate, model = problem.train, Collate(problem.tokenizer), student()
    order = list(LengthGrouped(rows["length"], BATCH, 0))
    loader = DataLoader([rows[i] for i in order], batch_size=BATCH, collate_fn=collate)
    adaptor = lambda batch, outputs: {"logits": outputs.logits}  # noqa: E731
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        distiller = GeneralDistiller(
            TrainingConfig(device="cpu", output_dir=folder, log_dir=None, ckpt_frequency=1), DistillationConfig(temperature=4),
            problem.teacher, model, adaptor, adaptor,
        )  # fmt: skip
        with distiller:
            distiller.train(optimizer, loader, num_epochs=1, callback=None)


def make_problem(shape, count, store):
    world = worlds.world("sentiment", domains=("books",))
    tokenizer = word_tokenizer(world.vocabulary())
    rows = [{"text": r["text"], "label": world.labels.index(r["label"])} for r in world.sample(count, seed=0)]
    data = encode(Dataset.from_list(rows), tokenizer, ("text",), "label", 64)
    teacher = bert(*shape).eval().requires_grad_(False)
    training = dict(steps=steps_of(1, count, BATCH), lr=1e-4, batch_size=BATCH, seed=0)
    return Problem(teacher, teacher, tokenizer, data, None, world.labels, training=training, cache=store)


def seconds(call, problem):
    start = time.perf_counter()
    call(problem)
    return time.perf_counter() - start


def main(count: int = 512, rounds: int = 3):
    disable_progress_bars()
    torch.set_num_threads(1)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("kdnotes.learning.cache").setLevel(logging.INFO)
    ways = {"with cache": cached, "teacher at every step": asked_at_every_step}
    try:
        import textbrewer as library

        ways[f"TextBrewer {library.__version__}"] = textbrewer
    except ImportError as error:
        print(f"without TextBrewer: {error}")
    for name, shape in TEACHERS.items():
        with tempfile.TemporaryDirectory() as place:
            problem = make_problem(shape, count, Store(Path(place)))
            print(f"\nteacher {name}, student 4 x 312, {count} rows of {sum(problem.train['length']) / count:.1f} tokens")
            print(f"cold cache, first epoch: {seconds(cached, problem):.2f} s")
            found = {way: [] for way in ways}
            for turn in range(rounds):  # interleaved and rotated, so that a slow moment of the machine hits all
                for way in [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]:
                    found[way].append(seconds(ways[way], problem))
            for way, times in found.items():
                ratios = [t / ours for t, ours in zip(times, found["with cache"])]
                print(f"{way:24} {statistics.median(times):7.2f} s an epoch, {statistics.median(ratios):5.2f}x ours "
                      f"({min(ratios):.2f} to {max(ratios):.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
