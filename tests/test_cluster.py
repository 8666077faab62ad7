"""The Snakefile runs the same commands: a spec can be asked for from the command line, and the plan names every run."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kdnotes.cli import read_settings
from kdnotes.experiments import ARTEFACTS, grid
from kdnotes.specs import make_spec, overrides
from kdnotes.store import address

ROOT = Path(__file__).parents[1]
SMALL = dict(rows=50, epochs=1, world_encoder=dict(layers=2, width=32, heads=2, sentences=200, epochs=1))


@pytest.mark.parametrize("artefact", ARTEFACTS)
@pytest.mark.parametrize("changes", [{}, SMALL], ids=["as it is", "small"])
def test_a_run_can_be_asked_for_from_the_command_line(artefact, changes):
    for spec in grid(artefact, seeds=2, **changes):
        said = [f"{name}={json.dumps(value)}" for name, value in overrides(spec).items()]
        assert make_spec(spec["method"], spec["task"], spec["seed"], spec["profile"], **read_settings(said)) == spec


def test_the_snakefile_is_short():
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 50


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed (the extra `cluster`)")
def test_the_plan_has_one_rule_for_each_run_and_artefact(tmp_path):
    config = ["--config", "only=fig02_ladder", f"out={tmp_path}", "seeds=2"]
    command = ["snakemake", "-n", "--quiet", "rules", "--cores", "2", "--nolock", "--rerun-incomplete", *config]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    keys = {address(spec) for spec in grid("fig02_ladder", seeds=2)}
    assert all(key in plan.stdout + plan.stderr for key in keys) and "artefact_fig02_ladder" in plan.stdout + plan.stderr
