"""AdaBERT's search by sampled paths beside a search by all operations: time, and accuracy of the derived students.

python benchmarks/search_steps.py [seeds]

Same data (reviews of the embedded world), same teacher, one thread, and about the same time: a step of four sampled paths
that are compared by their losses is cheaper than a straight-through step of all operations, so there are more of them.
The students are trained alike, from the super-net's weights, and scored on rows that no choice was made on.
"""

import sys
import time

import torch
from datasets import disable_progress_bars
from scipy.stats import ttest_rel
from transformers.utils import logging

from kdnotes.adabert.network import derive
from kdnotes.adabert.search import search
from kdnotes.adabert.student import taught_rows, train_student
from kdnotes.learning import demo

WAYS = {"sampled paths": dict(paths=4, steps=550), "all operations": dict(paths=0, steps=500)}
WIDTH = 32


def searched(problem, rows, **way: int) -> tuple[float, float]:
    """Seconds of the search, and accuracy of its student."""
    start = time.perf_counter()
    found = search(problem, rows, batch_size=64, width=WIDTH, max_depth=4, **way)
    seconds = time.perf_counter() - start
    student = train_student(derive(found, problem, WIDTH), problem, rows, 0.8, 1e-3, 320)
    return seconds, demo.accuracy(student)


def main(seeds: int = 3):
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    seconds, accuracy = ({way: [] for way in WAYS} for _ in range(2))
    for seed in range(seeds):
        problem = demo.problem(seed=seed)
        rows = taught_rows(problem)
        for way, settings in WAYS.items():
            took, score = searched(problem, rows, **settings)
            seconds[way].append(took)
            accuracy[way].append(score)
            print(f"seed {seed}, {way:15}: {took:6.1f} s, accuracy {score:.3f}", flush=True)
    ratios = [b / a for a, b in zip(*seconds.values())]
    print(f"a search by all operations takes {min(ratios):.1f} to {max(ratios):.1f} times as long")
    if seeds > 1:
        test = ttest_rel(*accuracy.values())
        low, high = test.confidence_interval()
        mean = sum(a - b for a, b in zip(*accuracy.values())) / seeds
        print(f"sampled paths above all operations: {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {seeds} seeds (paired t)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
