"""Costs against numbers counted by hand, on models of a few thousand parameters."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from kdnotes.models import cost
from kdnotes.models.cost import Latency, flops, latency, measure, parameters, stored_bytes
from kdnotes.models.export import to_onnx
from kdnotes.models.shapes import shape_of

COLUMNS = ["params", "params_no_embeddings", "size_bytes", "flops", "length", "latency_ms", "speedup", "speedup_bert"]


def config(layers=1, hidden=16, **more):
    return BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        **more,
    )


def bert(layers=1, **more):
    return BertForSequenceClassification(config(layers, **more))


def bert_flops(layers, n, batch=1, H=16, F=32):
    return batch * (layers * (2 * n * (4 * H * H + 2 * H * F) + 4 * n * n * H) + 2 * H * H + 2 * H * 2)


def int8(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class Reader(nn.Module):
    """Embeds tokens and hands them to one layer; `seen` notes every call."""

    def __init__(self, layer, width=8, rows=lambda x: x):
        super().__init__()
        self.words, self.layer, self.rows = nn.Embedding(10, width), layer, rows
        self.seen = []

    def forward(self, input_ids, attention_mask):
        self.seen.append((torch.get_num_threads(), self.training, torch.is_inference_mode_enabled()))
        return self.layer(self.rows(self.words(input_ids)))


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(cost, "_busy_share", lambda: None)
    monkeypatch.setattr(cost, "_SHORTEST", 0.01)


@pytest.fixture
def small_yardstick(monkeypatch, idle):
    shape = bert(2)
    monkeypatch.setattr(cost, "bert_base_shape", lambda: shape)


# --- parameters and bytes ---------------------------------------------------------------------------------------------


def test_parameters_of_a_linear_layer():
    assert parameters(Reader(nn.Linear(8, 3))) == {"params": 80 + 27, "params_no_embeddings": 27}


def test_a_shared_layer_counts_once():
    layer = nn.Linear(8, 8)
    assert parameters(nn.Sequential(layer, layer, nn.Linear(8, 8)))["params"] == 2 * 72


def test_a_tied_output_is_an_embedding():
    tied = BertForMaskedLM(config())
    untied = BertForMaskedLM(config(tie_word_embeddings=False))
    for name in ("params", "params_no_embeddings"):
        assert parameters(untied)[name] - parameters(tied)[name] == 50 * 16 + 50, "a table and its bias"
    assert abs(stored_bytes(untied) - stored_bytes(tied) - 4 * (50 * 16 + 50)) < 200


def test_frozen_parameters_count_and_buffers_do_not():
    model = nn.BatchNorm1d(4).requires_grad_(False)
    assert parameters(model)["params"] == 8


def test_int8_has_as_many_parameters_and_operations_and_fewer_bytes():
    model = bert(2, hidden=128).eval()
    small = int8(model)
    assert parameters(small) == parameters(model) and flops(small, 8) == flops(model, 8)
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    assert stored_bytes(model) - stored_bytes(small) == pytest.approx(3 * weights, rel=0.15)


def test_floats_and_eight_bits_are_not_one_shape():
    """Or the costs of one would stand in the row of the other."""
    model = bert(1).eval()
    shapes = [shape_of(to_onnx(model, int8=int8)) for int8 in (False, True)]
    assert shapes[0] != shapes[1]


def test_stored_bytes_are_those_of_the_file(tmp_path, capfd):
    model = bert()
    size = stored_bytes(model)
    assert capfd.readouterr() == ("", ""), "no progress bar"
    model.save_pretrained(tmp_path)
    assert size == (tmp_path / "model.safetensors").stat().st_size


def test_stored_bytes_of_any_module():
    assert 4 * 1000 < stored_bytes(nn.Linear(1000, 1, bias=False)) < 4 * 1000 + 3000


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length, batch", [(1, 1), (7, 1), (7, 3)])
def test_flops_of_a_linear_layer(length, batch):
    assert flops(Reader(nn.Linear(8, 5)), length, batch) == 2 * 8 * 5 * length * batch


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length, batch", [(5, 1), (32, 2)])
def test_flops_of_bert(attention, length, batch):
    assert flops(bert(3, attn_implementation=attention), length, batch) == bert_flops(3, length, batch)


@pytest.mark.parametrize("groups", [1, 8])
def test_flops_of_a_convolution(groups):
    layer = nn.Conv1d(8, 8, kernel_size=3, padding=1, groups=groups)
    model = Reader(layer, rows=lambda x: x.transpose(1, 2))
    assert flops(model, 6, 2) == 2 * 2 * 6 * 8 * (8 // groups) * 3


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_flops_of_an_lstm(first, directions, dtype, bias):
    d, h, n, batch = 8, 4, 6, 3
    layer = nn.LSTM(d, h, num_layers=2, bidirectional=directions == 2, batch_first=first, bias=bias)
    weights = directions * ((4 * h * d + 4 * h * h) + (4 * h * directions * h + 4 * h * h))
    assert flops(Reader(layer).to(dtype), n, batch) == 2 * n * batch * weights


def test_flops_of_an_lstm_over_packed_texts():
    def packed(x):
        return nn.utils.rnn.pack_padded_sequence(x, [6] * len(x), batch_first=True)

    assert flops(Reader(nn.LSTM(8, 4, batch_first=True), rows=packed), 6, 2) == 2 * 6 * 2 * (16 * 8 + 16 * 4)


@pytest.mark.parametrize("length, batch", [(33, 1), (0, 1), (8, 0)])
def test_lengths_the_model_cannot_take(length, batch):
    with pytest.raises(ValueError, match=f"cannot read {batch} texts of {length} tokens: .* 1 to 32 tokens"):
        flops(bert(), length, batch)
    with pytest.raises(ValueError, match="cannot read"):
        latency({"a": bert()}, length, batch)


# --- latency ----------------------------------------------------------------------------------------------------------


def test_measuring_leaves_everything_as_it_was(small_yardstick):
    model, teacher = bert().train(), bert()
    model.dropout.eval()
    before = torch.get_num_threads(), torch.get_rng_state(), [module.training for module in model.modules()]
    measure(model, teacher, length=8, rounds=2)
    after = torch.get_num_threads(), torch.get_rng_state(), [module.training for module in model.modules()]
    assert before[0] == after[0] and torch.equal(before[1], after[1]) and before[2] == after[2]
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    assert model.classifier.weight.grad is not None


def test_restored_after_a_failure(idle):
    class Broken(Reader):
        def forward(self, input_ids, attention_mask):
            raise RuntimeError("broken")

    model, threads = Broken(nn.Linear(8, 8)).train(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        latency({"a": Reader(nn.Linear(8, 8)), "b": model}, 4, threads=threads + 1)
    assert model.training and torch.get_num_threads() == threads


def test_conditions_of_a_timed_pass(idle):
    model = Reader(nn.Linear(8, 8)).train()
    latency({"a": model}, 4, threads=3, rounds=2)
    assert set(model.seen) == {(3, False, True)}


def test_rounds_are_interleaved_and_rotate(idle, monkeypatch):
    order = []
    monkeypatch.setattr(cost, "_milliseconds", lambda model, inputs, calls: order.append((model.name, calls)) or 4.0)
    monkeypatch.setattr(cost, "_SHORTEST", 10)
    models = {name: Reader(nn.Linear(8, 8)) for name in "abc"}
    for name, model in models.items():
        model.name = name
    times = latency(models, 4, rounds=4, warmup=1)
    assert order[:3] == [("a", 1), ("b", 1), ("c", 1)], "warming up"
    assert "".join(name for name, _ in order[3:]) == "abcbcacababc"
    assert {calls for _, calls in order[3:]} == {3}, "4 ms are repeated until they last 10"
    assert times == {name: Latency((4.0,) * 4) for name in "abc"}


def test_a_model_is_as_fast_as_itself(monkeypatch):
    monkeypatch.setattr(cost, "_busy_share", lambda: None)
    model = bert(2)
    times = latency({"one": model, "two": model}, 32, threads=1, rounds=15)
    assert 0.5 < times["one"].median_ms / times["two"].median_ms < 2


def test_spread_is_the_middle_half():
    assert Latency((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)
    assert Latency((2.0, 2.0)).spread == 0


@pytest.mark.parametrize("bad", [{"rounds": 1}, {"threads": 0}])
def test_latency_refuses(bad):
    with pytest.raises(ValueError, match="expected at least 2 and 1"):
        latency({"a": bert()}, 8, **bad)


# --- a busy machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle_ticks, warned", [(100, False), (95, False), (60, True)])
def test_warns_when_others_are_at_work(monkeypatch, caplog, idle_ticks, warned):
    readings = iter([(1000, 500), (1100, 500 + idle_ticks)])
    monkeypatch.setattr(cost, "_times", lambda: next(readings))
    latency({"a": Reader(nn.Linear(8, 8))}, 4, rounds=2)
    assert [record.getMessage().split(" % ")[0] for record in caplog.records] == ["other work keeps 40"] * warned


@pytest.mark.parametrize("text", [None, "", "cpu  a b", "cpu  1 2"])
def test_no_crash_where_the_system_does_not_tell(monkeypatch, text):
    def read_text(path):
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert cost._times() is None and cost._busy_share(0) is None


def test_no_crash_on_a_clock_that_stands_still(monkeypatch):
    monkeypatch.setattr(cost, "_times", lambda: (1000, 500))
    assert cost._busy_share(0) is None


# --- all together -----------------------------------------------------------------------------------------------------


def test_measure_fills_the_columns_of_the_record(small_yardstick):
    model = bert()
    found = measure(model, bert(3), length=8, rounds=2)
    assert list(found) == COLUMNS
    assert found["flops"] == bert_flops(1, 8) and found["size_bytes"] == stored_bytes(model)
    assert [type(found[name]) for name in COLUMNS] == [int] * 5 + [float] * 3


def test_the_yardstick_is_made_once_and_draws_no_random_numbers(monkeypatch):
    monkeypatch.setattr(cost, "BertConfig", config)
    cost.bert_base_shape.cache_clear()
    state = torch.get_rng_state()
    try:
        shape = cost.bert_base_shape()
        assert cost.bert_base_shape() is shape and torch.equal(torch.get_rng_state(), state)
    finally:
        cost.bert_base_shape.cache_clear()


def test_ratios_come_from_the_same_rounds(monkeypatch):
    median = {"model": 2.0, "teacher": 10.0, "bert": 40.0}
    monkeypatch.setattr(cost, "bert_base_shape", lambda: None)
    monkeypatch.setattr(cost, "latency", lambda models, *_: {n: SimpleNamespace(median_ms=median[n]) for n in models})
    found = measure(bert(), bert(), length=8)
    assert (found["latency_ms"], found["speedup"], found["speedup_bert"]) == (2, 5, 20)
    teacher = bert()
    assert measure(teacher, teacher, length=8)["speedup"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu_is_timed_on_the_cpu_and_put_back(small_yardstick):
    model = bert().cuda()
    assert measure(model, model, length=8, rounds=2)["flops"] == bert_flops(1, 8)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    model(input_ids=torch.ones(1, 4, dtype=torch.long, device="cuda")).logits.sum().backward()
    assert model.classifier.weight.grad is not None
