"""Kill -9 a batch at random moments, start it again, and compare what it leaves with what an undisturbed batch leaves.

python benchmarks/kill.py [kills] [seed]: prints one line per kill (what was under way) and exits 1 if the table (but for
the latency and speed columns), a record (but for its clock) or a cached output differs in one bit.
"""

import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdnotes.core.store import Store
from kdnotes.experiments.tables import read_table, same_table

TINY = dict(
    rows=600, teacher_rows=300, steps=76, looks=4, teacher_steps=30, layers=2, width=16, heads=2, max_length=24,
    world_encoder=dict(layers=2, width=32, heads=2, sentences=1500, steps=24, max_length=128),
)  # fmt: skip
ARTEFACT = "fig02_ladder"


def start(out: Path) -> subprocess.Popen:
    """A batch that continues whatever is in `out`, in a process of its own."""
    settings = [part for name, value in TINY.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-c", "from kdnotes.cli import app; app()", "reproduce", "--only", ARTEFACT,
               "--resume", "--seeds", "1", "--out", str(out)]  # fmt: skip
    return subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def under_way(out: Path) -> str:
    """What an observer sees in the store at this moment."""
    store = out / "store"
    runs = len(list(store.glob("runs/*/[!.]*.json")))
    partial = [json.loads((p / "spec.json").read_text() or "{}").get("kind", "?") for p in store.glob("models/*.partial")
               if (p / "spec.json").exists()]  # fmt: skip
    marks = [f"building {' and '.join(partial)}"] if partial else []
    marks += [f"training at {p.name}" for p in store.glob("unfinished/*/checkpoint-*")][-1:]
    return f"{runs} runs stored, {', '.join(marks) or 'between steps'}"


def leftovers(out: Path):
    """Table, records without their clock, and cached outputs of a finished batch."""
    records = [
        {k: v for k, v in r.items() if k not in ("seconds", "teacher_seconds", "cost", "checksum")}
        for r in Store(out / "store").records()
    ]
    caches = {file.parent.name: file for file in (out / "store").glob("models/*/*.npy")}
    return read_table(out / "figures" / ARTEFACT / "world" / "table.csv"), records, caches


def agree(a, b) -> bool:
    """Are two finished batches the same, bit for bit but for what the clock says?"""
    same_caches = a[2].keys() == b[2].keys() and all(filecmp.cmp(a[2][k], b[2][k], shallow=False) for k in a[2])
    return same_table(a[0], b[0]) and a[1] == b[1] and same_caches and len(a[2]) > 0


def main(kills: int = 20, seed: int = 0) -> int:
    rng, done, batches, failures = random.Random(seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        peace = Path(place) / "peace"
        began = time.monotonic()
        assert start(peace).wait() == 0, "the undisturbed batch failed"
        whole = time.monotonic() - began
        expected = leftovers(peace)
        print(f"undisturbed: {whole:.0f} s, {len(expected[1])} runs, {len(expected[2])} cached outputs", flush=True)
        while done < kills:
            batches += 1
            out = Path(place) / f"batch-{batches}"
            while True:
                process = start(out)
                moment = rng.uniform(0, 0.9 * whole) if done < kills else 10 * whole
                try:
                    code = process.wait(timeout=moment)
                    assert code == 0, f"a resumed batch failed with {code}"
                    break
                except subprocess.TimeoutExpired:
                    seen = under_way(out)
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    done += 1
                    print(f"kill {done:2} of {kills}, batch {batches}, after {moment:5.1f} s: {seen}", flush=True)
            same = agree(expected, leftovers(out))
            failures += not same
            print(f"batch {batches} is finished: {'the same, bit for bit' if same else 'DIFFERENT'}", flush=True)
    print(f"{done} kills over {batches} batches, {failures} of them differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
