import inspect
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from tiny import SMALL_SEARCH
from transformers import AutoModelForSequenceClassification, set_seed

import kdnotes
from kdnotes.baselines import kd
from kdnotes.data.labels import read_rows
from kdnotes.l2a import generator
from kdnotes.learning import augmentation, registry
from kdnotes.learning.masked_lm import masked_lm
from kdnotes.learning.varied_copies import transfer_set
from kdnotes.methods import METHODS, distill, fine_tune
from kdnotes.models.encoders import make_student, small_bert, word_tokenizer
from kdnotes.models.rows import encode, predict

WORDS = "good bad not very film book".split()
TOKENIZER = word_tokenizer(WORDS)
LABELS = ("no", "yes")
QUICK = dict(epochs=1, lr=1e-3, max_length=16, tokenizer=TOKENIZER, card=False)


def data(n, seed=0, pair=False, tokens=False):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        words = list(rng.choice(WORDS, rng.integers(2, 9)))
        if tokens:
            rows.append({"text": words, "label": [int(w == "good") for w in words]})
            continue
        row = {"text": " ".join(words), "label": int("good" in words)}
        rows.append(row | ({"other": " ".join(words[::-1])} if pair else {}))
    made = Dataset.from_list(rows)
    return made if tokens else made.cast_column("label", ClassLabel(names=list(LABELS)))


@pytest.fixture(autouse=True)
def short_masked_lm(monkeypatch):
    """Copies of rows come from a masked language model; how well it writes is tested elsewhere."""
    for module in (augmentation, generator):
        monkeypatch.setattr(module, "masked_lm", partial(masked_lm, steps=2))


@pytest.fixture(scope="module")
def teachers():
    made = {}
    for kind in ("single", "tokens"):
        set_seed(0)
        made[kind] = make_student(small_bert(TOKENIZER, 2, 16, 2), LABELS, kind, layers=2)
    return made | {"pair": made["single"]}


SMALL = {
    "bilstm_soft": {"hidden_size": 8, "inner": 8, "lstm_steps": 2}, "static_embeddings": {"embedding_size": 8, "inner": 8},
    "pkd": {"layers": 2}, "albert": {"embedding": 8},
    "tinybert": {"layers": 1, "first_steps": 2}, "ladder": {"layers": 1, "base": "kd"}, **SMALL_SEARCH,
}  # fmt: skip


def small(method, pair=False, tokens=False):
    """Settings that make a method's student tiny, and rows of two other domains where it learns from them."""
    settings = SMALL.get(method, {"layers": 1} if "layers" in METHODS[method].settings else {})
    others = data(24, 5, pair, tokens).add_column("domain", ["here", "there"] * 12)
    return settings | (dict(source=others) if METHODS[method].reads_source else {})


@pytest.fixture(scope="module")
def students():
    """Of single texts, by method, as they are made."""
    return {}


@pytest.mark.parametrize("kind", ["single", "pair", "tokens"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_runs_on_every_kind(method, kind, teachers, students):
    """That it repeats itself: test_experiments.py."""
    train, select = (data(60, seed, kind == "pair", kind == "tokens") for seed in (0, 1))
    settings = dict(kind=kind, labels=LABELS)
    if kind == "tokens":
        settings |= dict(labels=("O", "B-praise"))
        teachers[kind].config.id2label = {0: "O", 1: "B-praise"}
    given = QUICK | settings | small(method, kind == "pair", kind == "tokens") | {"epochs": 1}
    model = distill(teachers[kind], train, select, method, **given)
    ids = torch.tensor([[2, 5, 6, 3, 7, 3]])
    logits = model(input_ids=ids, token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1]])).logits
    assert logits.shape == ((1, 6, 2) if kind == "tokens" else (1, 2)) and not model.training
    students[method, kind] = model


LOAD = """
import json, sys, torch, kdnotes.methods
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline
ids, said = torch.tensor(json.loads(sys.argv[2])), {}
for name in sys.argv[3:]:
    tokens = name.endswith("-tokens")
    auto = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    model = auto.from_pretrained(f"{sys.argv[1]}/{name}").eval()
    labels = torch.zeros(ids.shape if tokens else len(ids), dtype=torch.long)
    with torch.inference_mode():
        out = model(input_ids=ids, labels=labels)
    said[name] = out.logits.tolist(), float(out.loss)
    pipeline("token-classification" if tokens else "text-classification", f"{sys.argv[1]}/{name}", device="cpu")("good film")
print(json.dumps(said))
"""


def test_students_of_all_methods_are_the_same_after_saving_in_a_new_process(teachers, students, tmp_path):
    """Loaded by the Auto class of their task and by `pipeline`, after one import, and with a loss where they are given labels."""
    ids, names = torch.tensor([[2, 5, 6, 3]]), {}
    for method in METHODS:
        if (method, "single") not in students:  # this test alone was asked for
            students[method, "single"] = distill(teachers["single"], data(60), data(40, 1), method, **QUICK | small(method))
    for (method, kind), student in students.items():
        name = f"{method}-{kind}"
        names[name] = student
        kdnotes.save_student(student, tmp_path / name) if kind != "pair" else student.save_pretrained(tmp_path / name)
        weights = {path.name for path in (tmp_path / name).iterdir()} & {"model.safetensors", "model.onnx"}
        assert len(weights) == 1 and (kind == "pair" or (tmp_path / name / "tokenizer.json").exists())
    loaded = [name for name in names if not name.endswith("-pair")]
    command = [sys.executable, "-c", LOAD, str(tmp_path), json.dumps(ids.tolist()), *loaded]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    for name in loaded:
        logits = names[name](input_ids=ids).logits.detach()
        assert torch.allclose(torch.tensor(said[name][0]), logits, atol=1e-6) and np.isfinite(said[name][1]), name


def test_the_card_is_computed_on_report_when_there_is_one(teachers):
    given = QUICK | {"card": True, "layers": 1}
    on_select = distill(teachers["single"], data(60), data(40, 1), **given).card
    on_report = distill(teachers["single"], data(60), data(40, 1), report=data(70, 2), **given).card
    assert (on_select.split, on_select.rows, on_report.split, on_report.rows) == ("select", 40, "report", 70)
    assert on_report.low <= on_report.score <= on_report.high and on_report.cost["params"] < on_report.teacher_cost["params"]
    assert "the teacher" in str(on_report)


def test_the_teacher_is_not_changed(teachers):
    before = {name: weight.clone() for name, weight in teachers["single"].state_dict().items()}
    distill(teachers["single"], data(60), data(40, 1), **QUICK, layers=1)
    assert all(torch.equal(before[name], weight) for name, weight in teachers["single"].state_dict().items())


def test_distillation_alone_follows_the_teacher_and_not_the_labels(teachers):
    """With alpha = 1 and labels that are all wrong, the student agrees with the teacher."""
    set_seed(0)
    rows, select = data(400), data(200, 1)
    teacher = fine_tune(small_bert(TOKENIZER, 1, 32, 2), rows, select, tokenizer=TOKENIZER, epochs=8, lr=3e-3, max_length=16)
    wrong = rows.map(lambda row: {"label": 1 - row["label"]})
    student = distill(teacher, wrong, select, **QUICK | dict(epochs=8, lr=3e-3, alpha=1.0, layers=1, init="random"))
    from kdnotes.models.rows import encode, predict, predicted_labels

    test = encode(data(200, 2), TOKENIZER, ("text",), "label", 16)
    agree = (predicted_labels(predict(student, test, TOKENIZER)) == predicted_labels(predict(teacher, test, TOKENIZER))).mean()
    assert agree > 0.9


WRONG = {
    "unknown method": (dict(method="kdd"), "unknown method 'kdd', expected kd"),
    "unknown setting": (dict(beta=4), "kd has no setting 'beta'"),
    "too deep": (dict(layers=9), "layers=9 is outside 1..2"),
    "too long": (dict(max_length=9999), "max_length=9999 is outside"),
    "other labels": (dict(labels=("a", "b", "c")), "train holds the label 'yes', expected one of a, b, c"),
    "names swapped": (dict(labels=("yes", "no")), "the teacher's labels are no, yes, the data's yes, no"),
    "no such column": (dict(text="sentence"), "no column 'sentence'"),
    "no such label": (dict(label="stars"), "no column 'stars'"),
    "alpha": (dict(alpha=2.0), "alpha"),
    "temperature": (dict(temperature=0.0), "temperature"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case, teachers):
    changes, expected = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        distill(teachers["single"], data(60), data(40, 1), **QUICK | {"layers": 1} | changes)
    assert "\n" not in str(error.value)


def test_a_larger_vocabulary_than_the_teachers_is_refused(teachers):
    with pytest.raises(ValueError, match="the tokenizer has .* pieces, the teacher only"):
        distill(teachers["single"], data(60), data(40, 1), **QUICK | {"tokenizer": word_tokenizer([f"w{i}" for i in range(99)])})


@pytest.mark.parametrize("rows, expected", [
    ([], "no rows"), ([{"text": "a", "label": 1}] * 3, "only the label"), ([{"text": "a", "label": "x"}], "only the label 'x'"),
    ([{"text": "a", "label": -1}, {"text": "a", "label": 1}], "the label -1 is below 0"),
    ([{"a": "x", "b": "y", "c": "z", "label": i} for i in (0, 1)], "a, b, c could be text: name the column with text="),
])  # fmt: skip
def test_data_that_cannot_be_used_is_refused(rows, expected):
    made = Dataset.from_list(rows) if rows else data(1).select([])
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_rows(made)


def test_registering_a_method_is_enough_to_use_it(teachers, monkeypatch):
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))

    @kdnotes.register_method("lazy", "returns the teacher")
    def fit_lazy(problem, patience_of_job: int = 3):
        return problem.teacher

    assert distill(teachers["single"], data(60), data(40, 1), "lazy", patience_of_job=4, **QUICK) is teachers["single"]


def test_the_readme_example_runs(tmp_path, monkeypatch):
    """The ten lines of the README, with a small encoder in place of MiniLM."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    assert len(example.strip().splitlines()) <= 10
    encoder = small_bert(TOKENIZER, 2, 16, 2)
    encoder.save_pretrained(tmp_path / "encoder")
    TOKENIZER.save_pretrained(tmp_path / "encoder")
    Dataset.from_list(list(data(100))).to_csv(str(tmp_path / "reviews.csv"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    exec(example.replace('"minilm"', '"encoder"'), {})
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "my-student").config.num_hidden_layers == 2
    assert kdnotes.distill is distill


@pytest.mark.parametrize("method", METHODS)
def test_no_setting_of_a_method_is_called_like_an_argument_of_distill(method):
    assert not METHODS[method].settings.keys() & (inspect.signature(distill).parameters.keys() - {"settings"})


@pytest.mark.parametrize("kind", ["single", "pair", "tokens"])
def test_kd_asks_the_teacher_about_copies_too(kind, teachers):
    """Copies have the teacher's answers, and no label but where a missing one would hide a word."""
    rows = data(40, pair=kind == "pair", tokens=kind == "tokens")
    settings, seen = dict(kind=kind, labels=LABELS), []
    if kind == "tokens":
        settings |= dict(labels=("O", "B-praise"))
        teachers[kind].config.id2label = {0: "O", 1: "B-praise"}

    def watched(problem, copies):
        seen.append(transfer_set(problem, copies))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kd, "transfer_set", watched)
        distill(teachers[kind], rows, rows, "kd", layers=1, copies=2, **QUICK | settings)
    (taught,) = seen
    own, copied = taught.select(range(40)), taught.select(range(40, 120))
    assert len(taught) == 120 and own.column_names == copied.column_names
    if kind == "tokens":
        assert all(len(one["labels"]) == len(one["input_ids"]) == len(one["teacher_logits"]) for one in copied)
    else:
        assert set(copied["labels"]) == {-100} and -100 not in own["labels"]
    if kind == "pair":
        assert all(ids.count(TOKENIZER.sep_token_id) == 2 for ids in copied["input_ids"])


READERS = [name for name, method in METHODS.items() if method.reads_transfer]
assert {"kd", "ladder", "adabert"} <= set(READERS)


@pytest.mark.parametrize("method", READERS)
def test_texts_without_labels_change_what_a_student_learns(method, teachers):
    """Whoever says that it reads them does, asks the teacher about each, and takes no label from them."""
    texts = ["a not very good film", "the other book is bad", "very very good"] * 20

    def answers(transfer):
        given = small(method) | QUICK | dict(transfer=transfer)
        student = distill(teachers["single"], data(40), None, method, **given)
        return np.stack(predict(student, encode(data(20, 2), student.tokenizer, ("text",), "label", 16), student.tokenizer))

    without, told = answers(None), answers(texts)
    assert np.abs(without - told).max() > 1e-3 * np.abs(without).max()
