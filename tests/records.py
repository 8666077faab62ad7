"""Run records of models that do not exist, for tests of tables and pictures."""

import numpy as np

from kdnotes.core.records import address, pack


def run(method, where, skill, seed=0, domain="", setting="", cost=None, profile="world", n=120, note=""):
    """A run record of a model that is right on a share `skill` of the examples."""
    rng = np.random.default_rng([len(where), len(domain)])
    labels, difficulty = rng.integers(2, size=n), rng.random(n)
    noise = np.random.default_rng([seed, len(method)]).normal(0, 0.05, n)
    predictions = np.ones(n, int) if method == "majority" else np.where(difficulty + noise < skill, labels, 1 - labels)
    spec = {"method": method, "task": where, "domain": domain, "setting": setting, "seed": seed, "profile": profile}
    return {"key": address(spec), "spec": spec, "metrics": {}, "cost": cost or {}, "n_train": 50, "n_report": n,
            "predictions": pack(predictions), "labels": pack(labels), "note": note, "seconds": 1.0, "device": "cpu"}  # fmt: skip


def cost(ms, params=1_000_000):
    """What a model of that many parameters and milliseconds might cost."""
    return {"params": params, "size_bytes": 4 * params, "flops": 123_456_789_012, "latency_ms": ms, "speedup": 20 / ms,
            "speedup_bert": 90 / ms}  # fmt: skip
