"""What a teacher said is found for the same question only, by any number of processes, and never changes a result."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import set_seed

from kdnotes.core import store as store_module
from kdnotes.core.store import Store
from kdnotes.learning import cache, knowledge
from kdnotes.learning.knowledge import add_teacher_logits, pooled_states
from kdnotes.learning.problem import Problem, probe_answers
from kdnotes.methods import METHODS
from kdnotes.models.encoders import make_student, small_bert, word_tokenizer
from kdnotes.models.rows import encode

ROOT = Path(__file__).parents[1]
WORDS = "good bad not very film book".split()
TOKENIZER = word_tokenizer(WORDS)


def problem(store=None, seed=0, kind="single"):
    rng = np.random.default_rng(0)
    texts = [list(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(60)]
    rows = {"text": texts, "label": [[int(w == "good") for w in t] for t in texts]}
    if kind != "tokens":
        rows = {"text": [" ".join(t) for t in texts], "label": [int("good" in t) for t in texts]}
    data = encode(Dataset.from_dict(rows), TOKENIZER, ("text",), "label", 16, kind)
    set_seed(seed)
    encoder = small_bert(TOKENIZER, 2, 16, 2)
    teacher = make_student(encoder, ("no", "yes"), kind, layers=2).eval()
    return Problem(teacher, encoder, TOKENIZER, data.select(range(40)), data.select(range(40, 60)), ("no", "yes"), kind,
                   training=dict(steps=2, lr=1e-3, seed=0), cache=store)  # fmt: skip


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "kdnotes.learning.cache")
    return lambda: [record.message for record in caplog.records if record.name == "kdnotes.learning.cache"]


@pytest.mark.parametrize("kind", ["single", "tokens"])
def test_what_is_found_is_what_was_computed(kind, tmp_path, said, monkeypatch):
    plain, first = problem(kind=kind).taught, problem(Store(tmp_path), kind=kind).taught
    monkeypatch.setattr(knowledge, "predict", lambda *_, **__: pytest.fail("asked again"))
    again = problem(Store(tmp_path), kind=kind).taught
    assert plain[:] == first[:] == again[:] and plain.features == again.features
    assert said() == ["teacher's logits of 40 rows: miss, nothing kept yet; computed once and kept",
                      "teacher's logits of 40 rows: hit"]  # fmt: skip


def test_states_and_probes_are_kept_too(tmp_path, said):
    store = Store(tmp_path)
    one, two = problem(store), problem(store)
    plain = problem()
    for what in (lambda p: pooled_states(p.teacher, p.train, TOKENIZER, cache=p.cache), probe_answers):
        assert np.array_equal(what(one), what(two)) and np.array_equal(what(one), what(plain))
    assert [line.split(": ")[1][:4] for line in said()] == ["miss", "hit", "hit", "miss", "hit", "hit", "hit"]


def test_every_difference_is_another_question_and_is_named(tmp_path, said):
    store, base = Store(tmp_path), problem()
    add_teacher_logits(base.train, base.teacher, TOKENIZER, cache=store)
    add_teacher_logits(base.select, base.teacher, TOKENIZER, cache=store)
    add_teacher_logits(base.train, problem(seed=1).teacher, TOKENIZER, cache=store)
    add_teacher_logits(base.train, base.teacher, TOKENIZER, bf16=True, cache=store)
    pooled_states(base.teacher, base.train, TOKENIZER, cache=store)
    assert [line.split("miss, ")[1].split(";")[0] for line in said()] == [
        "nothing kept yet", "kept only for other rows", "kept only for another teacher", "kept only for other settings",
        "nothing kept yet",
    ]  # fmt: skip


def test_what_is_found_is_found_without_reading_what_else_is_kept(tmp_path, monkeypatch):
    problem(Store(tmp_path)).taught  # noqa: B018
    monkeypatch.setattr(cache, "why_missing", lambda *_: pytest.fail("looked for a reason"))
    problem(Store(tmp_path)).taught  # noqa: B018


@pytest.mark.parametrize("damage", [lambda b: b[:-1] + b"x", lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_damaged_entry_is_computed_again(damage, tmp_path, said):
    expected = problem(Store(tmp_path)).taught[:]
    (file,) = tmp_path.glob(f"models/*/{cache.FILE}")
    file.write_bytes(damage(file.read_bytes()))
    store_module._opened.clear()  # as a new process would
    assert problem(Store(tmp_path)).taught[:] == expected
    assert "miss, what was kept is damaged" in said()[-1]


def test_a_pickled_entry_is_not_opened(tmp_path):
    """NumPy refuses object arrays; the checksum refuses everything that the store did not write."""
    store = Store(tmp_path)
    spec = cache.outputs_spec("logits", problem().teacher, problem().train, TOKENIZER, bf16=False)
    store.folder(spec, lambda folder: np.save(folder / cache.FILE, np.array([{}]), allow_pickle=True))
    with pytest.raises(ValueError, match="Python objects"):
        problem(store).taught  # noqa: B018


WRITER = """
import sys, time; sys.path.insert(0, "tests")
import numpy as np, test_cache
from kdnotes.learning import knowledge
from kdnotes.core.store import Store
predict = knowledge.predict
def slow(*args, **kwargs):
    print("asked"); time.sleep(1)
    return predict(*args, **kwargs)
knowledge.predict = slow
print(sum(map(sum, test_cache.problem(Store(sys.argv[1])).taught["teacher_logits"])))
"""


def test_two_writers_ask_once(tmp_path):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(lines.count("asked") for lines in said) == 1 and said[0][-1] == said[1][-1]


@pytest.mark.parametrize("method", ["kd", "pkd", "tinybert"])
def test_a_student_is_the_same_with_and_without_cache(method, tmp_path):
    settings = dict(layers=2) | (dict(copies=1) if method == "tinybert" else {})
    store = Store(tmp_path)
    students = [METHODS[method].fit(problem(where), **settings).state_dict() for where in (None, store, store)]
    for other in students[1:]:
        assert all(torch.equal(students[0][name], other[name]) for name in other)


def test_probes_need_labels_of_rows():
    with pytest.raises(ValueError, match="one state for a whole row"):
        probe_answers(replace(problem(), kind="tokens"))
