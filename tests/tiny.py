"""Sizes so small that a whole run takes about a second; imported by tests and by the processes that tests start."""

from kdnotes.core.store import Store
from kdnotes.experiments import runs as experiments
from kdnotes.experiments.specs import unused
from kdnotes.methods import find_method

ENCODER = dict(layers=2, width=32, heads=2, sentences=400, steps=7)
RUN = dict(rows=120, teacher_rows=200, steps=8, looks=2, teacher_steps=16, layers=2, width=16, heads=2, max_length=24,
           world_encoder=ENCODER)  # fmt: skip

SEARCH = dict(search_steps=6, search_batch=16, channels=8, max_depth=2, cnn_steps=4)
SMALL_SEARCH = {name: SEARCH for name in ("adabert", "adabert_undistilled", "adabert_random", "adabert_paths")}


def usual(method):
    """The tiny sizes that a method uses."""
    return {name: value for name, value in RUN.items() if name not in unused(find_method(method))}


def run(folder, method="kd", task="sst2", seed=0, **changes):
    """One tiny run in the store at `folder`; one domain of Amazon's for a method that learns from others."""
    chosen = find_method(method)
    if task == "sst2" and chosen.reads_source and chosen.needs_source and "sources" not in changes:
        task, changes = "amazon", dict(domain="books") | changes
    return experiments.run(method, task, seed, store=Store(folder), **(usual(method) | changes))


L2A = ("l2a", "teacher_l2a", "l2a_no_critic", "l2a_no_selector", "l2a_fixed_generator", "l2a_no_source", "l2a_no_generator")
SCARCE = dict(warm=2, rounds=1, groups=2, group_rows=4, refine=1, learn=1, read=2, extra=8, layers=1)
SMALL_SEARCH |= {name: SCARCE for name in L2A}
