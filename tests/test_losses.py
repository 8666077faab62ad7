"""The losses against other implementations, and under padding, batch order, precision and bad input."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch.autograd import gradcheck
from torch.testing import assert_close
from transformers import BertConfig, BertForTokenClassification, BertModel

from kdnotes.learning.losses import (
    IGNORE,
    attention_kl,
    attention_score_mse,
    cosine_hidden,
    cross_entropy,
    hidden_mse,
    kd_loss,
    logits_mse,
    normalised_cls_mse,
    soft_cross_entropy,
    value_relation,
    value_relation_kl,
)

BATCH, HEADS, SEQ, WIDTH = 3, 2, 5, 4
TOKENS, MAPS = (BATCH, SEQ, WIDTH), (BATCH, HEADS, SEQ, SEQ)


def attend(scores, mask=None):
    """Attention as transformers computes it: padded keys get probability 0."""
    lowest = torch.finfo(scores.dtype).min
    return (scores if mask is None else scores.masked_fill(mask[:, None, None, :] == 0, lowest)).softmax(-1)


# name: a loss of (student, teacher, mask), the shape of both, and the dimensions that padding lengthens
MASKED = {
    "soft": (lambda s, t, m=None: soft_cross_entropy(s, t, 2.0, mask=m), TOKENS, [1]),
    "logits": (logits_mse, TOKENS, [1]),
    "hidden": (hidden_mse, TOKENS, [1]),
    "cosine": (cosine_hidden, TOKENS, [1]),
    "scores": (attention_score_mse, MAPS, [2, 3]),
    "attention": (lambda s, t, m=None: attention_kl(attend(s, m), attend(t, m), m), MAPS, [2, 3]),
    "values": (value_relation_kl, (BATCH, HEADS, SEQ, WIDTH), [2]),
}
# name: a loss of (student, teacher), and the shape of both
PAIRED = {name: (loss, shape) for name, (loss, shape, _) in MASKED.items()} | {
    "sentence": (lambda s, t: soft_cross_entropy(s, t, 3.0), (BATCH, WIDTH)),
    "cls": (normalised_cls_mse, (BATCH, 2, WIDTH)),
}
ZERO_WHEN_EQUAL = sorted(set(PAIRED) - {"soft", "sentence"})

masked = pytest.mark.parametrize(("loss", "shape", "dims"), MASKED.values(), ids=MASKED)
paired = pytest.mark.parametrize(("loss", "shape"), PAIRED.values(), ids=PAIRED)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=20, deadline=None)


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tensors if len(tensors) > 1 else tensors[0]


def real_tokens(lengths, seq):
    return (torch.arange(seq) < torch.tensor(lengths)[:, None]).long()


def lengthen(x, dims, by, value):
    for dim in dims:
        x = torch.cat([x, x.new_full([*x.shape[:dim], by, *x.shape[dim + 1 :]], value)], dim)
    return x


# ---- padding ------------------------------------------------------------------------------------------------------


@masked
@given(lengths=st.lists(st.integers(1, SEQ), min_size=BATCH, max_size=BATCH), by=st.integers(1, 4), seed=seeds)
@quick
def test_more_padding_changes_nothing(loss, shape, dims, lengths, by, seed):
    student, teacher = draw(shape, shape, seed=seed)
    mask = real_tokens(lengths, SEQ)
    short, long = student.clone().requires_grad_(), lengthen(student, dims, by, 7.0).requires_grad_()
    value = loss(short, teacher, mask)
    longer_value = loss(long, lengthen(teacher, dims, by, -3.0), F.pad(mask, (0, by)))
    assert_close(longer_value, value)
    (gradient,), (longer_gradient,) = torch.autograd.grad(value, short), torch.autograd.grad(longer_value, long)
    assert_close(longer_gradient, lengthen(gradient, dims, by, 0.0))


@masked
def test_padding_equals_a_shorter_batch(loss, shape, dims):
    student, teacher = draw(shape, shape)
    mask = real_tokens([SEQ] * BATCH, SEQ + 2)
    assert_close(loss(lengthen(student, dims, 2, 5.0), lengthen(teacher, dims, 2, 0.0), mask), loss(student, teacher))


@masked
def test_the_content_of_padding_is_not_read(loss, shape, dims):
    student, teacher = draw(shape, shape)
    mask = real_tokens([2, 5, 3], SEQ)
    changed = student.clone()
    for dim in dims:
        changed.movedim((0, dim), (0, 1))[mask == 0] = 1e3
    assert not torch.equal(changed, student)
    assert_close(loss(changed, teacher, mask), loss(student, teacher, mask))


@masked
def test_masks_of_any_number_type_agree(loss, shape, dims):
    student, teacher = draw(shape, shape)
    mask = real_tokens([2, 5, 3], SEQ)
    values = [loss(student, teacher, mask.to(dtype)) for dtype in (torch.bool, torch.int64, torch.float32)]
    assert values[0] == values[1] == values[2]


@masked
def test_a_batch_of_padding_only_gives_no_gradient_and_no_nan(loss, shape, dims):
    student, teacher = draw(shape, shape)
    student.requires_grad_()
    value = loss(student, teacher, torch.zeros(BATCH, SEQ))
    value.backward()
    assert value == 0 and not student.grad.any()


def test_ignored_tokens_do_not_count():
    logits, labels = draw(TOKENS), torch.tensor([[0, 1, IGNORE, 3, 2], [IGNORE] * 5, [1, 1, 1, IGNORE, IGNORE]])
    longer = lengthen(logits, [1], 3, 40.0), F.pad(labels, (0, 3), value=IGNORE)
    assert_close(cross_entropy(*longer), cross_entropy(logits, labels))
    teacher = draw(TOKENS, seed=1)
    assert_close(
        kd_loss(longer[0], lengthen(teacher, [1], 3, -40.0), longer[1], 0.6, 2.0), kd_loss(logits, teacher, labels, 0.6, 2.0)
    )
    assert cross_entropy(logits, torch.full_like(labels, IGNORE)) == 0


# ---- properties ---------------------------------------------------------------------------------------------------


@given(seed=seeds, temperature=st.floats(0.3, 20))
@quick
def test_soft_cross_entropy_is_at_least_the_entropy_of_the_teacher(seed, temperature):
    student, teacher = draw((6, WIDTH), (6, WIDTH), seed=seed)
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy().mean() * temperature**2
    assert soft_cross_entropy(student, teacher, temperature) >= entropy - 1e-9
    assert_close(soft_cross_entropy(teacher, teacher, temperature), entropy)


@pytest.mark.parametrize("name", ZERO_WHEN_EQUAL)
@given(seed=seeds)
@quick
def test_zero_at_equality_and_positive_elsewhere(name, seed):
    loss, shape = PAIRED[name]
    student, teacher = draw(shape, shape, seed=seed)
    assert abs(loss(teacher, teacher)) < 1e-12
    assert loss(student, teacher) > 1e-6


@paired
@given(seed=seeds, order=st.permutations(range(BATCH)))
@quick
def test_the_order_of_the_batch_does_not_matter(loss, shape, seed, order):
    student, teacher = draw(shape, shape, seed=seed)
    assert_close(loss(student[list(order)], teacher[list(order)]), loss(student, teacher))


@paired
@given(seed=seeds)
@quick
def test_float32_agrees_with_float64(loss, shape, seed):
    student, teacher = draw(shape, shape, seed=seed)
    single = loss(student.float(), teacher.float())
    assert single.dtype == torch.float32
    assert_close(single.double(), loss(student, teacher), rtol=1e-4, atol=1e-5)


@paired
def test_half_precision_is_computed_in_float32(loss, shape):
    student, teacher = (x.bfloat16() for x in draw(shape, shape))
    expected = loss(student.float(), teacher.float())
    for value in (loss(student, teacher), loss(student, teacher.float()), loss(student.float(), teacher)):
        assert value.dtype == torch.float32
        assert_close(value, expected, rtol=2e-2, atol=2e-2)


@paired
def test_gradients_are_right(loss, shape):
    assert gradcheck(loss, [x.requires_grad_() for x in draw(shape, shape)])


@masked
def test_gradients_are_right_under_a_mask(loss, shape, dims):
    mask = real_tokens([2, 5, 3], SEQ)
    assert gradcheck(lambda s, t: loss(s, t, mask), [x.requires_grad_() for x in draw(shape, shape)])


def test_gradients_of_the_labelled_losses_are_right():
    weights = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, IGNORE])
    student, teacher = (x.requires_grad_() for x in draw((BATCH, WIDTH), (BATCH, WIDTH)))
    # weights are asked to be >= 0, which the finite difference at 0 would break
    assert gradcheck(lambda z, w: cross_entropy(z, labels, w + 1), [student, weights])
    assert gradcheck(lambda z, v: kd_loss(z, v, labels, 0.3, 2.0, weights), [student, teacher])


# ---- weights ------------------------------------------------------------------------------------------------------


def test_whole_weights_are_repetitions():
    student, teacher, labels = *draw(TOKENS, TOKENS), torch.arange(BATCH * SEQ).view(BATCH, SEQ) % WIDTH
    labels[0, 2:] = IGNORE
    repeats = torch.tensor([3, 1, 0])
    again = [x.repeat_interleave(repeats, 0) for x in (student, teacher, labels)]
    assert_close(cross_entropy(student, labels, repeats), cross_entropy(again[0], again[2]))
    assert_close(soft_cross_entropy(student, teacher, 2.0, repeats), soft_cross_entropy(again[0], again[1], 2.0))
    assert_close(kd_loss(student, teacher, labels, 0.4, 2.0, repeats), kd_loss(*again, 0.4, 2.0))


def test_only_the_ratios_of_weights_matter():
    student, teacher, weights = *draw((BATCH, WIDTH), (BATCH, WIDTH)), torch.tensor([0.2, 0.5, 0.1])
    assert_close(soft_cross_entropy(student, teacher, weights=7 * weights), soft_cross_entropy(student, teacher, weights=weights))
    assert_close(soft_cross_entropy(student, teacher, weights=torch.ones(3)), soft_cross_entropy(student, teacher))
    assert soft_cross_entropy(student, teacher, weights=torch.zeros(3)) == 0


# ---- other implementations ----------------------------------------------------------------------------------------


def test_cross_entropy_against_torch_and_scikit_learn():
    logits, labels, weights = draw((8, WIDTH)), torch.arange(8) % WIDTH, torch.arange(8.0)
    assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
    expected = log_loss(labels, logits.softmax(-1), sample_weight=weights.numpy(), labels=range(WIDTH))
    assert np.isclose(cross_entropy(logits, labels, weights), expected)


def test_soft_cross_entropy_against_torch():
    student, teacher = draw((8, WIDTH), (8, WIDTH))
    entropy = torch.distributions.Categorical(logits=teacher / 3).entropy().mean()
    divergence = F.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    assert_close(soft_cross_entropy(student, teacher, 3.0), 9 * (divergence + entropy))
    labels = torch.arange(8) % WIDTH
    smooth = 0.9 * F.one_hot(labels, WIDTH).double() + 0.1 / WIDTH
    assert_close(soft_cross_entropy(student, smooth.log()), F.cross_entropy(student, labels, label_smoothing=0.1))


def test_cosine_against_torch():
    student, teacher = draw(TOKENS, TOKENS)
    mask = real_tokens([2, 5, 3], SEQ)
    rows = student[mask == 1], teacher[mask == 1]
    assert_close(cosine_hidden(student, teacher, mask), F.cosine_embedding_loss(*rows, torch.ones(10)))
    assert_close(hidden_mse(student, teacher, mask), F.mse_loss(*rows))
    assert_close(logits_mse(student, teacher, mask), F.mse_loss(*rows))


def test_normalised_cls_against_numpy():
    student, teacher = (x.numpy() for x in draw((BATCH, 2, WIDTH), (BATCH, 2, WIDTH)))
    lengths = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (student, teacher)]
    expected = ((student / lengths[0] - teacher / lengths[1]) ** 2).sum() / BATCH
    assert np.isclose(normalised_cls_mse(torch.from_numpy(student), torch.from_numpy(teacher)), expected)


def test_attention_losses_against_a_loop():
    student, teacher = draw(MAPS, MAPS)
    lengths = [2, 5, 3]
    mask = real_tokens(lengths, SEQ)
    divergences, squares = [], []
    for i, n in enumerate(lengths):
        for head in range(HEADS):
            s, t = student[i, head, :n, :n], teacher[i, head, :n, :n]
            squares += (s - t).square().flatten().tolist()
            divergences += (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).tolist()
    assert np.isclose(attention_score_mse(student, teacher, mask), np.mean(squares))
    assert np.isclose(attention_kl(attend(student, mask), attend(teacher, mask), mask), np.mean(divergences))


def test_value_relation_is_attention_of_the_values_to_themselves():
    values, seen = draw((BATCH, HEADS, SEQ, WIDTH)), torch.eye(SEQ, dtype=torch.float64).expand(MAPS)
    assert_close(value_relation(values), F.scaled_dot_product_attention(values, values, seen))


def tiny_bert(model, seed=0, **settings):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=16,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
        **settings,
    )
    return model(config).double().eval()


def test_token_loss_against_transformers():
    model = tiny_bert(BertForTokenClassification, num_labels=WIDTH)
    inputs, labels = torch.arange(BATCH * SEQ).view(BATCH, SEQ) % 50, torch.arange(BATCH * SEQ).view(BATCH, SEQ) % WIDTH
    labels[:, 3:] = IGNORE
    with torch.no_grad():
        out = model(input_ids=inputs, labels=labels)
    assert_close(cross_entropy(out.logits, labels), out.loss)


def test_padding_a_real_encoder_further_changes_no_loss():
    teacher, student = tiny_bert(BertModel), tiny_bert(BertModel, seed=1)
    tokens, mask = torch.arange(5, 5 + BATCH * SEQ).view(BATCH, SEQ), real_tokens([2, 5, 3], SEQ)

    def losses(tokens, mask):
        with torch.no_grad():
            s, t = (model(tokens, mask, output_hidden_states=True, output_attentions=True) for model in (student, teacher))
        states = s.hidden_states[-1], t.hidden_states[-1]
        cls = [torch.stack([layer[:, 0] for layer in out.hidden_states], 1) for out in (s, t)]
        return [
            hidden_mse(*states, mask),
            cosine_hidden(*states, mask),
            normalised_cls_mse(*cls),
            attention_kl(s.attentions[-1], t.attentions[-1], mask),
        ]

    values = losses(tokens, mask)
    assert min(values) > 0
    assert_close(losses(F.pad(tokens, (0, 4)), F.pad(mask, (0, 4))), values)


# ---- details and bad input ----------------------------------------------------------------------------------------


def test_an_unlabelled_example_still_learns_from_the_teacher():
    student, teacher = draw((2, WIDTH), (2, WIDTH))
    labels = torch.tensor([1, IGNORE])
    expected = 0.3 * soft_cross_entropy(student, teacher, 2.0) + 0.7 * cross_entropy(student[:1], labels[:1])
    assert_close(kd_loss(student, teacher, labels, 0.3, 2.0), expected)


def test_relations_need_equal_heads_but_not_equal_widths():
    assert value_relation_kl(*draw((1, HEADS, SEQ, 3), (1, HEADS, SEQ, 9))) > 0


def test_a_projection_is_trained_with_the_student():
    projection = torch.nn.Linear(3, WIDTH, bias=False).double()
    hidden_mse(draw((BATCH, SEQ, 3)), draw(TOKENS), projection=projection).backward()
    assert projection.weight.grad.abs().sum() > 0


def test_zero_probabilities_give_finite_losses_and_gradients():
    student = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    value = attention_kl(student, teacher)
    value.backward()
    assert value.isfinite() and value > 10 and student.grad.isfinite().all()


def test_states_of_zero_length_give_finite_gradients():
    for loss, shape in ((cosine_hidden, TOKENS), (normalised_cls_mse, TOKENS)):
        student = torch.zeros(shape, requires_grad=True)
        loss(student, torch.ones(shape)).backward()
        assert student.grad.isfinite().all()


Z = torch.zeros
BAD = {
    "labels shape": (lambda: cross_entropy(Z(2, 3), Z(3).long()), r"labels: .*\(2, 3\).*\(3,\)"),
    "weights shape": (lambda: cross_entropy(Z(2, 3), Z(2).long(), Z(3)), r"weights: .*\(2,\).*\(3,\)"),
    "weights sign": (lambda: cross_entropy(Z(2, 3), Z(2).long(), torch.tensor([1.0, -0.5])), r">= 0.*-0\.5"),
    "weights nan": (lambda: cross_entropy(Z(2, 3), Z(2).long(), torch.tensor([1.0, math.nan])), r">= 0.*nan"),
    "temperature 0": (lambda: soft_cross_entropy(Z(2, 3), Z(2, 3), 0), "temperature: .*> 0, got 0"),
    "temperature < 0": (lambda: kd_loss(Z(2, 3), Z(2, 3), Z(2).long(), 0.5, -1), "temperature: .*got -1"),
    "temperature nan": (lambda: soft_cross_entropy(Z(2, 3), Z(2, 3), math.nan), "temperature: .*got nan"),
    "alpha > 1": (lambda: kd_loss(Z(2, 3), Z(2, 3), Z(2).long(), 1.5, 1), r"alpha: .*\[0, 1\], got 1\.5"),
    "alpha < 0": (lambda: kd_loss(Z(2, 3), Z(2, 3), Z(2).long(), -0.1, 1), r"alpha: .*got -0\.1"),
    "logits shape": (lambda: soft_cross_entropy(Z(2, 3), Z(2, 1)), r"\(2, 3\).*\(2, 1\)"),
    "logits rank": (lambda: soft_cross_entropy(Z(3), Z(3)), r"\(batch, labels\).*\(3,\)"),
    "mask shape": (lambda: soft_cross_entropy(Z(2, 5, 3), Z(2, 5, 3), mask=Z(2, 4)), r"mask: .*\(2, 5\).*\(2, 4\)"),
    "logits mse": (lambda: logits_mse(Z(2, 3), Z(2, 1)), r"\(2, 3\).*\(2, 1\)"),
    "hidden width": (lambda: hidden_mse(Z(1, 2, 3), Z(1, 2, 4)), r"projection.*\(1, 2, 3\).*\(1, 2, 4\)"),
    "hidden mask": (lambda: hidden_mse(Z(1, 2, 3), Z(1, 2, 3), Z(1, 1, 1, 2)), r"\(1, 2\).*\(1, 1, 1, 2\)"),
    "cosine width": (lambda: cosine_hidden(Z(1, 2, 3), Z(1, 2, 4)), r"\(1, 2, 3\).*\(1, 2, 4\)"),
    "cls layers": (lambda: normalised_cls_mse(Z(2, 3, 4), Z(2, 6, 4)), r"\(2, 3, 4\).*\(2, 6, 4\)"),
    "cls rank": (lambda: normalised_cls_mse(Z(2, 4), Z(2, 4)), r"\(batch, layers, hidden\).*\(2, 4\)"),
    "score heads": (lambda: attention_score_mse(Z(1, 4, 2, 2), Z(1, 12, 2, 2)), "head counts.*student 4 .*teacher 12"),
    "score seq": (lambda: attention_score_mse(Z(1, 4, 2, 2), Z(1, 4, 3, 3)), r"\(1, 4, 2, 2\).*\(1, 4, 3, 3\)"),
    "attention rank": (lambda: attention_kl(Z(1, 2, 2), Z(1, 2, 2)), r"\(batch, heads, seq, seq\).*\(1, 2, 2\)"),
    "values rank": (lambda: value_relation(Z(1, 2, 2)), r"head_width\).*\(1, 2, 2\)"),
    "values heads": (lambda: value_relation_kl(Z(1, 4, 2, 8), Z(1, 12, 2, 8)), "head counts.*student 4 .*teacher 12"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
