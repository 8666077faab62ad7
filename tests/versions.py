"""The versions of code that results depend on, each beside a hash of that code: `python tests/versions.py` writes them down."""

import ast
import hashlib
import json
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "kdnotes"
FILE = Path(__file__).with_suffix(".json")
LEARNING = "losses training problem knowledge cache masked_lm augmentation varied_copies following".split()
SHARED = [
    *(f"learning/{name}.py" for name in LEARNING),
    *(f"models/{name}.py" for name in "rows encoders attention".split()),
]  # fmt: skip
PHRASES = {"data/splits.py": ("phrase_groups", "_owners", "_held_out", "deal", "withhold"), "data/loading.py": ("_dealt",)}
TEACHERS = {"experiments/runs.py": ("teacher_spec", "teacher_folder"), "methods.py": ("fine_tune",)}


def without_prose(tree):
    """A module, or parts of one, without docstrings: prose computes nothing."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)


def sha256(parts):
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def of_files(files):
    """The hash of what some modules compute."""
    return sha256(without_prose(ast.parse(file.read_text())) for file in sorted(files))


def of_functions(functions):
    """The hash of some functions of some modules."""
    found = []
    for file, names in functions.items():
        tree = ast.parse((PACKAGE / file).read_text())
        found += [without_prose(node) for node in tree.body if getattr(node, "name", "") in names]
    return sha256(found)


def neighbours(file, seen=frozenset()):
    """A module and those of its own folder that it reads, and they in turn."""
    seen = seen | {file}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and file.parent != PACKAGE:
            other = file.parent / f"{node.module}.py"
            if other.exists() and other not in seen:
                seen = neighbours(other, seen)
    return seen


def now():
    """Name of the code -> its version and its hash, today."""
    from kdnotes.data.splits import PHRASES_VERSION
    from kdnotes.experiments.specs import TEACHER_VERSION
    from kdnotes.experiments.world_encoder import ENCODER_VERSION
    from kdnotes.learning.registry import declared
    from kdnotes.learning.training import TRAINING_VERSION
    from kdnotes.metakd.teachers import DOMAIN_TEACHERS_VERSION

    found = {
        "train (TRAINING_VERSION)": (TRAINING_VERSION, of_files(PACKAGE / name for name in SHARED)),
        "rows that are phrases (PHRASES_VERSION)": (PHRASES_VERSION, of_functions(PHRASES)),
        "teachers (TEACHER_VERSION)": (TEACHER_VERSION, of_functions(TEACHERS)),
        "the world's encoder (ENCODER_VERSION)": (ENCODER_VERSION, of_files([PACKAGE / "experiments/world_encoder.py"])),
    }
    of_domains = of_files(neighbours(PACKAGE / "metakd/meta_teacher.py"))
    found["teachers of domains (DOMAIN_TEACHERS_VERSION)"] = (DOMAIN_TEACHERS_VERSION, of_domains)
    for module, methods in declared().items():
        code = of_files(neighbours(PACKAGE.parent / f"{module.replace('.', '/')}.py"))
        found |= {method.name: (method.version, code) for method in methods}
    return {name: dict(version=version, sha256=code) for name, (version, code) in found.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(now(), indent=1, sort_keys=True) + "\n")
    print(FILE)
