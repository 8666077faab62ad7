"""Which settings a task's students learn best with, by their scores on `select` alone, from seed 0.

KDNOTES_DATA=... python benchmarks/choices.py STORE METHOD TASK name=value ... -- name=value,value ...

What stands before `--` is the same for all runs, what stands behind it is tried in all combinations: settings of the method,
entries of the profile `laptop`, and whatever else `make_spec` takes. Every run is kept in the store and written to
`benchmarks/choices.jsonl` with its spec and its scores on `select`; those on `report` are not looked at.
"""

import ast
import itertools
import json
import sys
from pathlib import Path

from datasets import disable_progress_bars
from transformers.utils import logging

from kdnotes.core.records import address
from kdnotes.core.store import Store
from kdnotes.experiments.runs import run_spec
from kdnotes.experiments.specs import make_spec

KEPT = Path(__file__).with_name("choices.jsonl")


def read(text: str) -> tuple:
    """The values of a setting: numbers, names, or lists of names joined by `+`."""

    def one(word: str):
        try:
            return ast.literal_eval(word)
        except (ValueError, SyntaxError):
            return word

    return tuple(tuple(word.split("+")) if "+" in word else one(word) for word in text.split(","))


def pairs(words: list[str]) -> dict[str, tuple]:
    """What `name=value` and `name=value,value` say."""
    return {name: read(text) for name, _, text in (word.partition("=") for word in words)}


def keep(record: dict) -> None:
    """Write a run's spec and scores on `select` down, once."""
    line = dict(address=address(record["spec"]), seconds=record["seconds"], select=record["curve"], spec=record["spec"])
    known = [json.loads(text) for text in KEPT.read_text().splitlines()] if KEPT.exists() else []
    if line["address"] not in {one["address"] for one in known}:
        KEPT.write_text("".join(json.dumps(one) + "\n" for one in (*known, line)))


def main(folder: str, method: str, task: str, *words: str):
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cut = words.index("--") if "--" in words else len(words)
    same = {name: values[0] for name, values in pairs(words[:cut]).items()}
    tried = pairs(words[cut + 1 :])
    for values in itertools.product(*tried.values()):
        own = dict(zip(tried, values))
        record = run_spec(make_spec(method, task, 0, "laptop", **same | own), Store(folder))
        keep(record)
        print(f"{max(record['curve']):.4f} {own} {record['seconds']:.0f} s, select {record['curve']}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
