# The commands of `kdnotes reproduce`, one rule per run and one per artefact, for several cores or a cluster:
#   pip install 'kdnotes[cluster,reproduce]'
#   snakemake --cores 2 --nolock --rerun-incomplete --config profile=world only=fig02 seeds=5
# On a cluster add an executor plug-in (--executor slurm, --executor kubernetes) and a shared folder as out=...
import json
import shlex

from kdnotes.cli import artefacts, read_settings
from kdnotes.core.records import address
from kdnotes.experiments.plans import grid
from kdnotes.experiments.specs import find_profile, overrides


def typed(value):  # Snakemake hands on every leaf of a dictionary as text
    leaf = not isinstance(value, dict)
    return read_settings([f"_={value}"])["_"] if leaf else {name: typed(inner) for name, inner in value.items()}

PROFILE, OUT = config.get("profile", "world"), config.get("out", "build")
SEEDS = int(config.get("seeds", find_profile(PROFILE).seeds))
SETTINGS = typed(config.get("settings", {}))  # entries of the profile: settings='{"rows": 500}'
NAMES = [name for name in str(config.get("only", "")).split(",") if name] or list(artefacts())
GRIDS = {name: grid(artefacts()[name].plan, PROFILE, SEEDS, **SETTINGS) for name in NAMES}
SPECS = {address(spec): spec for specs in GRIDS.values() for spec in specs}


def options(settings):
    return " ".join(f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in sorted(settings.items()))


def record(key):
    return f"{OUT}/store/runs/{key[:2]}/{key}.json"


rule all:
    input: [f"{OUT}/figures/{name}/{PROFILE}/table.csv" for name in NAMES]

for key, spec in SPECS.items():
    rule:
        name: f"run_{spec['method']}_{spec['task']}_{key}"
        output: record(key)
        params: f"{spec['method']} {spec['task']} --seed {spec['seed']} {options(overrides(spec))}"
        shell: "kdnotes run {params} --profile {PROFILE} --store {OUT}/store > /dev/null"

for name in NAMES:
    rule:
        name: f"artefact_{name}"
        input: [record(address(spec)) for spec in GRIDS[name]]
        output: f"{OUT}/figures/{name}/{PROFILE}/table.csv"
        params: f"--only {name} --seeds {SEEDS} {options(SETTINGS)}"
        shell: "kdnotes reproduce {params} --profile {PROFILE} --out {OUT} --resume"
