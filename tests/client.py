"""What a user of the package writes, for the type checker (`mypy`, see pyproject.toml); nothing runs it.

Strict: a public function without its types, or with wrong ones, is an error here.
"""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import kdnotes
from kdnotes.core.store import Store
from kdnotes.data.tasks import Task
from kdnotes.experiments.claims import Claim, above
from kdnotes.experiments.plans import Plan, Run, grid
from kdnotes.experiments.profiles import Profile, find_profile
from kdnotes.experiments.specs import make_spec
from kdnotes.learning.problem import Problem
from kdnotes.learning.registry import METHODS, Method, describe, find_method
from kdnotes.models.card import Card


def compress(train: Dataset, select: Dataset, report: Dataset, folder: Path) -> Card:
    teacher: PreTrainedModel = kdnotes.fine_tune("minilm", train, select, epochs=2, lr=5e-5, text="review")
    tokenizer: PreTrainedTokenizerBase = kdnotes.load_tokenizer("minilm")
    student: PreTrainedModel = kdnotes.distill(teacher, train, select, method="kd", report=report, tokenizer=tokenizer, layers=2)
    written: Path = kdnotes.save_student(student, folder)
    card: Card = getattr(student, "card")  # noqa: B009, a model has no such attribute of its own
    print(written, card.score, card.low, card.high)
    return card


@kdnotes.register_method("mine", "a method of my own", title="Mine", family="distillation")
def fit_mine(problem: Problem, temperature: float = 2.0) -> PreTrainedModel:
    return problem.fit(problem.encoder, problem.taught)


def use_the_registries(folder: Path) -> dict[str, object]:
    task: Task = kdnotes.register_task(kdnotes.folder_task("shop", folder, text="review", label="stars"))
    method: Method = find_method("mine")
    print(describe("kd").title, len(METHODS), method.settings, kdnotes.load_task(task, "local")["train"])
    record: dict[str, object] = kdnotes.run("mine", "shop", source="local", store=Store(folder), temperature=4.0)
    return record


def runs(size: Profile, seed: int) -> list[Run]:
    return [Run("teacher", "sst2"), Run("mine", "sst2", setting="temperature=4", changes=dict(temperature=4.0))]


def plan_a_figure() -> list[dict[str, object]]:
    claim = Claim("X1", "Mine is above its teacher", "me", above("mine", "teacher"), student=("mine", ""))
    plan = Plan("mine", "A figure of my own", (claim,), runs, sizes={"world": dict(rows=500)})
    print(make_spec("kd", "sst2", rows=500), find_profile("world").rows, plan.tasks("world"))
    specs: list[dict[str, object]] = grid(plan, seeds=2)
    return specs
