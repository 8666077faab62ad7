"""The Snakefile runs the same commands: a spec can be asked for from the command line, and the plan names every run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from kdnotes.cli import artefacts, read_settings
from kdnotes.core.records import address
from kdnotes.core.store import Store
from kdnotes.experiments.plans import grid
from kdnotes.experiments.runs import run_spec
from kdnotes.experiments.specs import make_spec, overrides

ROOT = Path(__file__).parents[1]
PLANS = {name: one.plan for name, one in artefacts().items()}
SMALL = dict(rows=50, steps=2, world_encoder=dict(layers=2, width=32, heads=2, sentences=200, steps=4))


@pytest.mark.parametrize("artefact", PLANS)
@pytest.mark.parametrize("changes", [{}, SMALL], ids=["as it is", "small"])
def test_a_run_can_be_asked_for_from_the_command_line(artefact, changes):
    for spec in grid(PLANS[artefact], seeds=2, **changes):
        said = [f"{name}={json.dumps(value)}" for name, value in overrides(spec).items()]
        assert make_spec(spec["method"], spec["task"], spec["seed"], spec["profile"], **read_settings(said)) == spec


def test_the_snakefile_is_short():
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 50


needed = pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed (the extra `cluster`)")


def snakemake(out, *arguments, seeds=2, **settings):
    """Everything that Snakemake says about the ladder's artefact."""
    config = ["--config", "only=fig02_ladder", f"out={out}", f"seeds={seeds}", f"settings={json.dumps(settings)}"]
    command = ["snakemake", "--cores", "2", "--nolock", "--rerun-incomplete", *arguments, *config]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout + said.stderr


@needed
def test_the_plan_has_one_rule_for_each_run_and_artefact(tmp_path):
    plan = snakemake(tmp_path, "-n", "--quiet", "rules", **SMALL)
    keys = {address(spec) for spec in grid(PLANS["fig02_ladder"], seeds=2, **SMALL)}
    assert all(key in plan for key in keys) and "artefact_fig02_ladder" in plan


@needed
@pytest.mark.slow
def test_two_cores_make_the_runs_that_one_process_makes(tmp_path, monkeypatch):
    specs = [spec for spec in grid(PLANS["fig02_ladder"], seeds=1, **tiny.RUN) if spec["method"] in ("majority", "undistilled")]
    files = [str(tmp_path / "store" / "runs" / address(spec)[:2] / f"{address(spec)}.json") for spec in specs]
    snakemake(tmp_path, *files, seeds=1, **tiny.RUN)
    for spec in specs:
        record, again = Store(tmp_path / "store").get(spec), run_spec(spec, Store(tmp_path / "alone"))
        assert all(record[name] == again[name] for name in ("metrics", "predictions", "teacher_sha256"))
    assert "Nothing to be done" in snakemake(tmp_path, *files, seeds=1, **tiny.RUN)
