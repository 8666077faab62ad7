import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from kdnotes.cli import app, artefacts, read_settings
from kdnotes.core.store import Store
from kdnotes.experiments.opened import checkout, redraw
from kdnotes.experiments.plans import grid
from kdnotes.experiments.reproduce import check_parameters, open_store, reproduce
from kdnotes.experiments.results import FILES
from kdnotes.experiments.tables import read_table, same_table

ROOT = Path(__file__).parents[1]
ARTEFACTS = artefacts()
SMALLEST = ARTEFACTS["fig14"]
SMALL = {**tiny.RUN, "rows": 100, "teacher_rows": 150}
FIGURES = sorted((ROOT / "nbs" / "figures").glob("fig*.ipynb"))


@pytest.mark.parametrize("notebook", FIGURES, ids=lambda path: path.stem)
def test_figure_notebooks_take_known_parameters_of_the_right_type_only(notebook):
    assert check_parameters(notebook, {"profile": "world", "seeds": 2, "overrides": {"rows": 5}})
    for wrong in ({"profil": "world"}, {"seeds": "2"}, {"seeds": True}, {"profile": 1}, {"overrides": "rows=5"}):
        with pytest.raises(ValueError) as error:
            check_parameters(notebook, wrong)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_batch_killed_three_times_and_resumed_prints_the_same_table(tmp_path):
    """Kill -9 in the middle of the batch, resume each time; the table is that of a batch nobody killed."""
    code = (
        "import sys; from kdnotes.cli import artefacts; from kdnotes.experiments.reproduce import reproduce;"
        f"reproduce(artefacts(), ['fig14'], out=sys.argv[1], resume=True, seeds=1, **{SMALL!r})"
    )

    def start(name):
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT, **quiet)

    # without the committed runs: these are of other sizes, so they are other specs
    assert start("peace").wait() == 0
    for finished in (1, 2, 4):
        process = start("killed")
        while process.poll() is None and len(list((tmp_path / "killed").glob("store/runs/*/*.json"))) < finished:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0
    peace, killed = (read_table(tmp_path / name / "figures/fig14/world/table.csv") for name in ("peace", "killed"))
    assert same_table(peace, killed)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("build"), []
    (folder,) = reproduce(ARTEFACTS, ["fig14"], out=out, say=lines.append, seeds=1, **SMALL)
    return out, folder, lines


def test_a_batch_leaves_every_file_of_the_artefact_and_names_them(batch):
    out, folder, lines = batch
    assert {p.name for p in folder.iterdir()} == set(FILES)
    assert (out / "notebooks" / "fig14_world.ipynb").exists()
    runs = len(grid(SMALLEST.plan, seeds=1, **SMALL))
    assert lines[0].startswith(f"{runs} runs: 0 found") and str(folder / "table.csv") in lines[-1]
    made = json.loads((folder / "provenance.json").read_text())
    assert made.keys() >= {"artefact", "profile", "commit", "dirty", "seeds", "data", "teacher", "device", "libraries", "seconds"}
    assert str(ROOT) not in json.dumps(made)


def test_redrawing_changes_no_byte(batch):
    _, folder, _ = batch
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    redraw(SMALLEST, "world", folder.parent.parent)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_every_value_can_be_computed_again_from_runs_alone(batch, tmp_path):
    _, folder, _ = batch
    copy = tmp_path / "fig14" / "world"
    copy.mkdir(parents=True)
    for name in ("runs.jsonl", "costs.json", "provenance.json"):
        shutil.copy(folder / name, copy)
    redraw(SMALLEST, "world", tmp_path)
    assert (copy / "table.csv").read_bytes() == (folder / "table.csv").read_bytes()


def test_without_resume_the_store_is_new_and_the_old_one_is_kept(tmp_path):
    Store(tmp_path / "store").put({"a": 1}, {"value": 1})
    assert {"a": 1} in open_store(tmp_path, resume=True)
    assert {"a": 1} not in open_store(tmp_path, resume=False, say=lambda line: None)
    (aside,) = tmp_path.glob("store-until-*")
    assert {"a": 1} in Store(aside)


@pytest.mark.parametrize("given, expected", [
    (["reproduce", "--only", "fig99"], "unknown artefact 'fig99'"),
    (["reproduce", "--profile", "desk"], "unknown profile 'desk'"),
    (["reproduce", "--seeds", "0"], "seeds=0"), (["reproduce", "--set", "rows"], "should be name=value"),
    (["reproduce", "--set", "rows=many"], "rows='many'"), (["reproduce", "--set", "rwos=5"], "unknown parameter 'rwos'"),
    (["reproduce", "--out", "/proc/nowhere"], "cannot write to"), (["run", "kd", "sst3"], "sst3"),
    (["run", "kdd", "sst2"], "unknown method"),
    (["figure", "fig99"], "unknown artefact"), (["figure", "--figures", "nowhere"], "no stored runs"),
    (["status", "--profile", "x"], "unknown profile"),
])  # fmt: skip
def test_mistakes_on_the_command_line_are_one_line(given, expected, tmp_path, monkeypatch):
    if "--out" not in given and given[0] == "reproduce":
        given = [*given, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and expected in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_real_data_that_is_missing_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("KDNOTES_DATA", raising=False)
    result = CliRunner().invoke(app, ["reproduce", "--profile", "laptop", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "KDNOTES_DATA" in result.stderr


@pytest.mark.parametrize("command", ["", "reproduce", "run", "figure", "status", "tasks", "doctor"])
def test_help_explains(command):
    said = CliRunner().invoke(app, [*command.split(), "--help"]).output
    assert "Usage" in said and len(said.splitlines()) > 5


def test_the_other_commands_answer(tmp_path):
    asked = {"tasks": "snips_slots", "doctor": "torch", f"status --store {tmp_path}": "0 of 32 runs"}
    for given, expected in asked.items():
        result = CliRunner().invoke(app, given.split())
        assert result.exit_code == 0 and expected in result.output


def test_settings_are_json_where_they_can_be():
    assert read_settings(["a=1", "b=1.5", "c=true", "d=text", "e=[1,2]"]) == dict(a=1, b=1.5, c=True, d="text", e=[1, 2])


def test_outside_a_checkout_we_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="inside a checkout"):
        checkout()


def test_the_readme_is_the_index_notebook_and_its_links_lead_somewhere():
    import readme

    text = (ROOT / "README.md").read_text()
    assert text == readme.rendered()
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    assert len(links) > 5 and all((ROOT / link).exists() for link in links)
