"""What the landscape's methods promise beyond their pages: the right things are copied, wrong things refused at once."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM, DistilBertConfig, DistilBertForSequenceClassification, set_seed

from kdnotes.baselines.albert import factorise_embeddings, fit_albert
from kdnotes.baselines.distilbert import alternate_layers, fit_distilbert
from kdnotes.baselines.ladder import climb
from kdnotes.baselines.minilm import fit_minilm, relation_loss
from kdnotes.baselines.packed import levels, pack_codes, packed_model, rounded, unpack_codes
from kdnotes.baselines.pkd import fit_pkd, matched_layers
from kdnotes.baselines.qbert import assign_bits, fit_qbert, layer_eigenvalues, layer_linears, sensitivity, top_eigenvalue
from kdnotes.baselines.tinybert import Follower, fit_tinybert, intermediate_losses
from kdnotes.core.store import Store
from kdnotes.learning.augmentation import augment, replacements, words_of
from kdnotes.learning.masked_lm import masked_lm
from kdnotes.learning.problem import Problem
from kdnotes.models.attention import look_inside
from kdnotes.models.encoders import make_student, small_bert, word_tokenizer
from kdnotes.models.export import to_onnx
from kdnotes.models.rows import Collate, encode, model_inputs

TOKENIZER = word_tokenizer("good bad not very film book un ##for ##tunate".split())
LABELS = ("no", "yes")


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(["good", "bad", "not", "film"], rng.integers(3, 9))) for _ in range(n)]
    made = Dataset.from_dict({"text": texts, "label": [int("good" in text) for text in texts]})
    return encode(made, TOKENIZER, ("text",), "label", 16)


@pytest.fixture
def problem():
    set_seed(0)
    encoder = small_bert(TOKENIZER, 3, 16, 2)
    teacher = make_student(encoder, LABELS, layers=3).eval().requires_grad_(False)
    return Problem(teacher, encoder, TOKENIZER, rows(48), rows(24, 1), LABELS, training=dict(steps=3, lr=1e-3, batch_size=16))


def batch_of(problem, n=6):
    return Collate(TOKENIZER)([problem.train[i] for i in range(n)])


REFUSED = {
    "distilbert too deep": (lambda p: fit_distilbert(p, layers=4), "a student of 4 layers"),
    "distilbert negative weight": (lambda p: fit_distilbert(p, cosine=-1.0), "must not be negative"),
    "pkd one layer": (lambda p: fit_pkd(p, layers=1), "needs 2 to 3 student layers, got 1"),
    "pkd strategy": (lambda p: fit_pkd(p, strategy="all"), "unknown strategy 'all'"),
    "tinybert heads": (lambda p: fit_tinybert(p, layers=2, heads=4), "expected 2, got 4"),
    "tinybert too deep": (lambda p: fit_tinybert(p, layers=5), "a student of 5 layers"),
    "minilm heads": (lambda p: fit_minilm(p, layers=2, heads=4), "expected 2, got 4"),
    "minilm width": (lambda p: fit_minilm(p, layers=2, width=15), "width 15 is not a multiple of 2 heads"),
    "albert embedding": (lambda p: fit_albert(p, embedding=-1), "embedding=-1"),
    "qbert bits": (lambda p: fit_qbert(p, 0, 2), "1 <= low <= high <= 8"),
    "qbert groups": (lambda p: fit_qbert(p, 2, 2, groups=0), "1 or more groups"),
    "no such rung": (lambda p: climb(p, 0, lambda p: p.teacher, ""), "rung=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_trained(case, problem, monkeypatch):
    monkeypatch.setattr(Problem, "fit", lambda *_, **__: pytest.fail("trained"))
    call, expected = REFUSED[case]
    with pytest.raises(ValueError) as error:
        call(problem)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_methods_that_need_a_bert_or_equal_widths_say_so(problem):
    config = DistilBertConfig(vocab_size=len(TOKENIZER), dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    problem.teacher = DistilBertForSequenceClassification(config)
    with pytest.raises(ValueError, match="from a BERT, got 'distilbert'"):
        fit_albert(problem)
    problem.teacher = make_student(small_bert(TOKENIZER, 3, 32, 2), LABELS, layers=3)
    with pytest.raises(ValueError, match="equal widths, the teacher has 32, the encoder 16"):
        fit_pkd(problem)


# What is copied ------------------------------------------------------------------------------------------------------


def test_distilbert_starts_as_alternate_layers_of_the_teacher(problem, monkeypatch):
    monkeypatch.setattr(Problem, "fit", lambda self, model, *_, **__: model)
    student = fit_distilbert(problem)
    for layer, taken in zip(student.bert.encoder.layer, alternate_layers(2, 3)):
        theirs = problem.teacher.bert.encoder.layer[taken].state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in layer.state_dict().items())


def test_pkd_starts_as_the_first_layers_of_the_encoder(problem, monkeypatch):
    monkeypatch.setattr(Problem, "fit", lambda self, model, *_, **__: model)
    student = fit_pkd(problem)
    for ours, theirs in zip(student.bert.encoder.layer, problem.encoder.bert.encoder.layer):
        assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("student, teacher, skip, last", [
    (6, 12, (2, 4, 6, 8, 10), (7, 8, 9, 10, 11)), (3, 12, (4, 8), (10, 11)), (2, 3, (1,), (2,)), (3, 3, (1, 2), (1, 2)),
])  # fmt: skip
def test_pkd_matches_the_layers_of_the_paper(student, teacher, skip, last):
    assert matched_layers(student, teacher) == skip and matched_layers(student, teacher, "last") == last


def test_tinybert_losses_by_hand(problem):
    batch = batch_of(problem)
    inputs, mask = model_inputs(batch, TOKENIZER), batch["attention_mask"].bool()
    student = make_student(problem.encoder, LABELS, layers=1, width=8, heads=2).eval()
    follower = Follower(student, 16).eval()
    ours, theirs = follower(**inputs), look_inside(problem.teacher, **inputs)
    found = intermediate_losses(follower, ours, theirs, batch["attention_mask"])
    mapped = ours.hidden_states[0] @ follower.map_embeddings.weight.T
    assert torch.allclose(found["embeddings"], ((mapped - theirs.hidden_states[0]) ** 2)[mask].mean())
    mapped = ours.hidden_states[1] @ follower.map_states.weight.T  # one student layer follows the last of three
    assert torch.allclose(found["hidden"], ((mapped - theirs.hidden_states[3]) ** 2)[mask].mean())
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(ours.attentions[0].scores)
    difference = ours.attentions[0].scores - theirs.attentions[2].scores
    assert torch.allclose(found["attention"], (difference**2)[pairs].mean(), atol=1e-6)


def test_the_first_stage_of_tinybert_trains_student_and_maps_but_not_the_head(problem, monkeypatch):
    seen = {}
    real = Problem.fit

    def fit(self, model, *args, last=True, **changes):
        if last:
            return model
        seen["before"] = copy.deepcopy(model.state_dict())
        seen["after"] = real(self, model, *args, last=last, **changes).state_dict()

    monkeypatch.setattr(Problem, "fit", fit)
    fit_tinybert(problem, layers=2, width=8)
    moved = {name for name, weight in seen["after"].items() if not torch.equal(weight, seen["before"][name])}
    assert {"map_embeddings.weight", "map_states.weight", "student.bert.embeddings.word_embeddings.weight"} <= moved
    assert not any("classifier" in name or "pooler" in name for name in moved)


@pytest.mark.parametrize("changes, expected", [({}, [3, 3]), (dict(copies=2), [3, 3]), (dict(first_steps=1), [1, 3])])
def test_copies_are_no_reason_for_more_steps(changes, expected, problem, monkeypatch):
    seen, real = [], Problem.fit

    def fit(self, model, *args, **changes):
        seen.append((self.training | changes)["steps"])
        return real(self, model, *args, **changes)

    monkeypatch.setattr(Problem, "fit", fit)
    fit_tinybert(problem, **dict(copies=0, layers=1, width=8) | changes)
    assert seen == expected


def test_minilm_copies_the_last_layer_only(problem):
    batch = batch_of(problem)
    inputs = model_inputs(batch, TOKENIZER)
    student = make_student(problem.encoder, LABELS, layers=3)
    theirs = look_inside(problem.teacher, **inputs).attentions[-1]
    relation_loss(look_inside(student, **inputs).attentions[-1], theirs, batch["attention_mask"]).backward()
    moved = {name for name, weight in student.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert any("layer.2.attention.self.value" in name for name in moved)
    assert not any("layer.2.output" in name or "classifier" in name for name in moved)


def test_albert_needs_no_more_than_the_table_it_factorises(problem):
    """With as wide an embedding as the original, the map explains nearly all of it."""
    set_seed(0)
    from kdnotes.baselines.albert import AlbertForSequenceClassification, albert_config

    made = AlbertForSequenceClassification(albert_config(problem.encoder.config, 16, LABELS))
    assert factorise_embeddings(problem.encoder.base_model.embeddings, made.albert) > 0.9
    assert made.albert.embeddings.word_embeddings.weight.requires_grad


# Quantisation --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 7), st.integers(1, 20), st.integers(0, 2**31))
def test_rounding_moves_no_weight_by_more_than_half_a_step_of_its_group(bits, count, columns, groups, seed):
    weight = torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 5 - 2)
    step, zero = levels(weight, bits, groups)
    near = rounded(weight, bits, groups)
    # the zero point is rounded too, so at the ends of the range a weight may be one step away with few bits
    assert ((near - weight).abs() <= step[:, None] * 1.0001).all()
    assert all(len(row.unique()) <= 2**bits for row in near) and ((zero >= 0) & (zero < 2**bits)).all()
    assert torch.allclose(rounded(near, bits, groups).unique(), near.unique(), rtol=1e-3, atol=1e-6) or bits < 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=70))
def test_packed_codes_come_back(bits, codes):
    codes = np.array(codes) % 2**bits
    packed = pack_codes(codes, bits)
    assert packed.nbytes == -(-len(codes) * bits // 8) and (unpack_codes(packed, bits, len(codes)) == codes).all()


def test_power_iteration_agrees_with_the_explicit_hessian_of_a_transformer_layer(problem):
    """All weights of one matrix of a tiny BERT, its Hessian written out."""
    model = copy.deepcopy(problem.teacher)
    model.set_attn_implementation("eager")
    weight = model.bert.encoder.layer[1].attention.self.value.weight.requires_grad_()
    batch = batch_of(problem, 4)

    def loss(flat):
        moved = {"bert.encoder.layer.1.attention.self.value.weight": flat.view(16, 16)}
        out = torch.func.functional_call(model, moved, kwargs=model_inputs(batch, TOKENIZER))
        return torch.nn.functional.cross_entropy(out.logits, batch["labels"])

    flat = weight.detach().flatten().requires_grad_()
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    assert abs(top_eigenvalue(loss(flat), [flat], steps=300) - largest) < 1e-3 * abs(largest) + 1e-7


def test_sensitive_layers_get_more_bits():
    values = np.array([[1.0, -9.0, 2.0], [1.0, -9.0, 6.0]])
    assert sensitivity(values).tolist() == [1.0, 9.0, 6.0] and assign_bits(sensitivity(values), 2, 3) == [2, 3, 3]


def test_measuring_curvature_leaves_the_model_alone(problem):
    before = copy.deepcopy(problem.teacher.state_dict())
    values = layer_eigenvalues(problem.teacher, problem.train, TOKENIZER, batches=2)
    assert values.shape == (2, 3) and np.isfinite(values).all()
    assert all(torch.equal(weight, before[name]) for name, weight in problem.teacher.state_dict().items())
    assert not any(weight.requires_grad for weight in problem.teacher.parameters())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_stored_model_computes_what_rounded_weights_compute(bits, problem):
    names = {name: bits for layer in layer_linears(problem.teacher) for name in layer}
    packed = packed_model(problem.teacher, names, 4, "single")
    floats = copy.deepcopy(problem.teacher)
    for name in names:
        module = floats.get_submodule(name)
        module.weight.data = rounded(module.weight, bits, 4)
    inputs = model_inputs(batch_of(problem), TOKENIZER)
    assert torch.allclose(packed(**inputs).logits, floats(**inputs).logits, atol=0.02)


# Augmentation and export ---------------------------------------------------------------------------------------------


def test_words_of_several_pieces_become_one_whole_word(problem):
    data = encode(Dataset.from_dict({"text": ["good unfortunate film"], "label": [1]}), TOKENIZER, ("text",), "label", 16)
    pieces = TOKENIZER.convert_ids_to_tokens(data[0]["input_ids"])
    assert words_of(pieces, set(TOKENIZER.all_special_tokens)) == [[1], [2, 3, 4], [5]]
    (copied,) = augment(data, problem.encoder, TOKENIZER, share=1.0)
    words = TOKENIZER.convert_ids_to_tokens(copied["input_ids"])
    assert len(words) == 5 and all(word.isalpha() for word in words[1:-1]) and copied["length"] == 5


def test_a_pair_stays_a_pair(problem):
    made = Dataset.from_dict({"a": ["good film"] * 3, "b": ["bad unfortunate book"] * 3, "label": [0, 1, 1]})
    data = encode(made, TOKENIZER, ("a", "b"), "label", 16, "pair")
    for row in augment(data, problem.encoder, TOKENIZER, copies=4, share=0.8):
        separators = [i for i, token in enumerate(row["input_ids"]) if token == TOKENIZER.sep_token_id]
        length = len(row["input_ids"])
        assert separators == [3, length - 1] and row["token_type_ids"] == [0] * 4 + [1] * (length - 4)


@pytest.mark.parametrize("wrong", [dict(copies=0), dict(share=0.0), dict(share=1.5), dict(candidates=0)])
def test_augmentation_settings_out_of_range_are_refused(wrong, problem):
    with pytest.raises(ValueError, match="must be at least 1"):
        augment(problem.train, problem.encoder, TOKENIZER, **wrong)


def test_copies_in_the_cache_are_those_made_without_it(problem, tmp_path):
    plain = augment(problem.train, problem.encoder, TOKENIZER, copies=2)
    for _ in range(2):
        assert augment(problem.train, problem.encoder, TOKENIZER, copies=2, cache=Store(tmp_path))[:] == plain[:]
    other = augment(problem.train, problem.encoder, TOKENIZER, copies=2, share=0.5, cache=Store(tmp_path))
    assert other[:] != plain[:]


def test_an_encoder_without_head_gets_one_and_keeps_its_weights(problem, tmp_path):
    bare = problem.encoder.bert
    caches = (None, Store(tmp_path), Store(tmp_path))  # without one, filled, found
    plain, *cached = [masked_lm(bare, problem.train, TOKENIZER, steps=1, cache=cache).state_dict() for cache in caches]
    assert all(torch.equal(plain[name], one[name]) for one in cached for name in plain)
    saved = tmp_path / "encoder"
    problem.encoder.save_pretrained(saved)
    from transformers import AutoModel

    again = masked_lm(AutoModel.from_pretrained(saved), problem.train, TOKENIZER)
    own = AutoModelForMaskedLM.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), own.state_dict().values()))


def test_only_whole_words_replace():
    allowed = replacements(TOKENIZER)
    assert {TOKENIZER.convert_ids_to_tokens(int(i)) for i in allowed.nonzero()} == set("good bad not very film book un".split())


LOAD = """
import json, sys, torch, kdnotes.methods
from transformers import AutoModelForSequenceClassification as Auto
torch.set_grad_enabled(False)
batch = {k: torch.tensor(v) for k, v in json.loads(sys.argv[1]).items()}
print(json.dumps([Auto.from_pretrained(folder).eval()(**batch).logits.tolist() for folder in sys.argv[2:]]))
"""


@pytest.mark.parametrize("method", ["distilbert", "albert"])
def test_a_saved_student_and_its_export_agree_in_a_new_process(method, problem, tmp_path):
    """Tolerance 1e-5 in the logits, with padding in the batch."""
    student = {"distilbert": fit_distilbert, "albert": fit_albert}[method](problem)
    student.save_pretrained(tmp_path / "torch")
    to_onnx(student).save_pretrained(tmp_path / "onnx")
    batch = {name: value.tolist() for name, value in model_inputs(batch_of(problem), TOKENIZER).items()}
    command = [sys.executable, "-c", LOAD, json.dumps(batch), str(tmp_path / "torch"), str(tmp_path / "onnx")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    torch_logits, onnx_logits = (torch.tensor(logits) for logits in json.loads(said))
    assert torch.allclose(torch_logits, onnx_logits, atol=1e-5) and torch_logits.abs().max() > 1e-3


def test_a_missing_export_package_is_one_line(problem, monkeypatch):
    from kdnotes.models import export

    monkeypatch.setattr(export, "_installed", lambda package: package != "onnxruntime")
    with pytest.raises(ValueError, match=r"onnxruntime is missing: pip install 'kdnotes\[export\]'"):
        to_onnx(problem.teacher)


def test_a_model_without_segments_is_exported_too():
    set_seed(0)
    config = DistilBertConfig(vocab_size=len(TOKENIZER), dim=16, n_layers=1, n_heads=2, hidden_dim=32, num_labels=2)
    model = DistilBertForSequenceClassification(config).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    assert torch.allclose(to_onnx(model)(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_punctuation_is_left_alone(problem):
    tokenizer = word_tokenizer(["good", "bad", "film", ","])
    data = encode(Dataset.from_dict({"text": ["good , bad"], "label": [1]}), tokenizer, ("text",), "label", 16)
    encoder = small_bert(tokenizer, 1, 16, 2)
    for row in augment(data, encoder, tokenizer, copies=9, share=1.0):
        assert tokenizer.convert_ids_to_tokens(row["input_ids"][2]) == ","


@pytest.mark.parametrize("wrong", [dict(copies=-1), dict(share=2.0), dict(width=15)])
def test_tinybert_checks_its_settings_before_the_long_work(wrong, problem, monkeypatch):
    monkeypatch.setattr("kdnotes.learning.augmentation.masked_lm", lambda *_, **__: pytest.fail("began to work"))
    with pytest.raises(ValueError):
        fit_tinybert(problem, **dict(layers=2) | wrong)
