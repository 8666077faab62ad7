"""Plain distillation by kdnotes, by a Hugging Face Trainer with a loss of its own, and by TextBrewer, in one run.

KDNOTES_DATA=... python benchmarks/peers.py [task] [steps] [teacher steps]

Same teacher (MiniLM-L6, fine-tuned here), same student (its first three layers), same batches of 32 in the same order, fp32, one
thread, AdamW with the same falling rate, temperature 2 and nine tenths of the teacher. What differs is the library; ours asks the
teacher once for every row, the others at every step. TextBrewer is no dependency; without it the other two are compared.
To have it: `pip install --no-deps --target elsewhere textbrewer tensorboardX`, then add `elsewhere` to PYTHONPATH.
"""

import contextlib
import io
import sys
import tempfile
import time

import torch
from datasets import disable_progress_bars
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup
from transformers.utils import logging

from kdnotes.baselines.kd import small_transformer
from kdnotes.core.metrics import score
from kdnotes.data.loading import load_task
from kdnotes.data.tasks import task
from kdnotes.learning.losses import kd_loss
from kdnotes.learning.problem import Problem
from kdnotes.learning.training import LengthGrouped
from kdnotes.models.encoders import load_encoder, load_tokenizer
from kdnotes.models.rows import Collate, Rows, encode, gold_labels, model_inputs, predict, predicted_labels

BATCH, LR, TEMPERATURE, ALPHA = 32, 3e-4, 2.0, 0.9


def fresh(problem):
    """The untrained student."""
    return small_transformer(problem, 3, None, None, None, "first")


def ours(problem):
    """A method's own training: logits come from the cache, batches from arrays."""

    def objective(model, batch):
        logits = model(**model_inputs(batch, problem.tokenizer)).logits
        return kd_loss(logits, batch["teacher_logits"], batch["labels"], ALPHA, TEMPERATURE)

    return problem.fit(fresh(problem), problem.taught, objective)


def batches(problem):
    """All batches of the training as kdnotes orders them."""
    rows, order, steps = Rows.of(problem.train), [], problem.training["steps"]
    sampler = LengthGrouped(rows.lengths.tolist(), BATCH, problem.seed)
    while len(order) < steps * BATCH:
        sampler.set_epoch(len(order) // len(rows))
        order += [rows[i] for i in sampler]
    return order[: steps * BATCH]


class WithTeacher(Trainer):
    """The usual recipe: a Trainer whose loss asks the teacher."""

    teacher: torch.nn.Module

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The same loss as ours."""
        labels = inputs.pop("labels")
        with torch.no_grad():
            theirs = self.teacher(**inputs).logits
        return kd_loss(model(**inputs).logits, theirs, labels, ALPHA, TEMPERATURE)

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def plain_trainer(problem):
    """Hugging Face's Trainer alone."""
    model, steps = fresh(problem), problem.training["steps"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=LR, warmup_steps=0.1, weight_decay=0.01,
            optim="adamw_torch_fused", use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = WithTeacher(model, arguments, data_collator=Collate(problem.tokenizer), train_dataset=batches(problem))
        trainer.teacher = problem.teacher
        trainer.train()
    return model.eval()


def textbrewer(problem):
    """TextBrewer's GeneralDistiller."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    model, steps = fresh(problem), problem.training["steps"]
    loader = DataLoader(batches(problem), batch_size=BATCH, collate_fn=Collate(problem.tokenizer))
    adaptor = lambda batch, outputs: {"logits": outputs.logits, "losses": outputs.loss}  # noqa: E731
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)
    how = DistillationConfig(temperature=TEMPERATURE, kd_loss_weight=ALPHA, hard_label_weight=1 - ALPHA)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        training = TrainingConfig(device="cpu", output_dir=folder, log_dir=None, ckpt_frequency=1)
        distiller = GeneralDistiller(training, how, problem.teacher, model, adaptor, adaptor)
        schedule = dict(num_warmup_steps=steps // 10, num_training_steps=steps)
        with distiller:
            distiller.train(optimizer, loader, num_epochs=1, scheduler_class=get_linear_schedule_with_warmup,
                            scheduler_args=schedule, callback=None)  # fmt: skip
    return model.eval()


def make_problem(name, steps, teacher_steps):
    """A fine-tuned teacher and the rows of a task, and those to report on."""
    this, tokenizer = task(name), load_tokenizer("minilm")
    data = {split: encode(rows, tokenizer, this.text, this.label, 64) for split, rows in load_task(name, "local").items()}
    training = dict(steps=steps, lr=LR, batch_size=BATCH, seed=0)
    encoder = load_encoder("minilm", this.labels)
    problem = Problem(encoder, encoder, tokenizer, data["train"], data["select"], this.labels, training=training)
    teacher = problem.fit(load_encoder("minilm", this.labels), steps=teacher_steps, lr=1e-4, head_lr=1e-3)
    problem.teacher, problem.select = teacher.eval().requires_grad_(False), None  # all students end with their last weights
    return problem, data["report"]


def accuracy(model, rows, tokenizer):
    """Of a model on encoded rows."""
    return score("accuracy", gold_labels(rows), predicted_labels(predict(model, rows, tokenizer)))


def main(name: str = "clinc150", steps: int = 1000, teacher_steps: int = 1500):
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    problem, report = make_problem(name, steps, teacher_steps)
    print(
        f"{name}: {len(problem.train):,} rows, {steps} steps; teacher {accuracy(problem.teacher, report, problem.tokenizer):.4f}"
    )
    ways = {"kdnotes": ours, "Trainer": plain_trainer}
    try:
        import textbrewer as library

        ways[f"TextBrewer {library.__version__}"] = textbrewer
    except ImportError as error:
        print(f"without TextBrewer: {error}")
    for way, call in ways.items():
        start = time.perf_counter()
        student = call(problem)
        seconds = (time.perf_counter() - start) / steps
        print(f"{way:18} accuracy {accuracy(student, report, problem.tokenizer):.4f}, {seconds:.3f} s a step", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
