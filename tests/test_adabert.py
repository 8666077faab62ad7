"""What AdaBERT promises beyond its pages: the mathematics, nothing that leaks, and searches that can be killed."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gumbel_softmax
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline, set_seed

from kdnotes.adabert.gumbel_relaxation import Architecture, Sample, score_function
from kdnotes.adabert.loss_tradeoff import knowledge_loss
from kdnotes.adabert.network import AdaBert, AdaBertConfig, derive
from kdnotes.adabert.rivals import fit_adabert_random, same_cost
from kdnotes.adabert.search import _groups, _Loop, kept_search, search
from kdnotes.adabert.search_space import EDGES, OPS, Cell, Genotype, genotype_cost, op_cost, random_genotype
from kdnotes.adabert.student import fit_adabert, likely_depths, settle_depth, taught_rows
from kdnotes.adabert.supernet import SuperNet, Words, architecture_loss, losses_by_depth
from kdnotes.core.store import Store
from kdnotes.experiments.runs import completed_settings
from kdnotes.experiments.specs import make_spec
from kdnotes.learning.problem import Problem
from kdnotes.models.encoders import make_student, small_bert, word_tokenizer
from kdnotes.models.export import to_onnx
from kdnotes.models.rows import Collate, encode, model_inputs, predict

TOKENIZER = word_tokenizer("good bad not very film book un ##for ##tunate".split())
LABELS = ("no", "yes")
QUICK = dict(steps=8, batch_size=16, width=8, max_depth=3)
OP = list(OPS)


def rows(n, kind="single", seed=0):
    rng = np.random.default_rng(seed)
    texts = [list(rng.choice(["good", "bad", "not", "film"], rng.integers(3, 9))) for _ in range(n)]
    if kind == "tokens":
        made = Dataset.from_dict({"text": texts, "label": [[int(word == "good") for word in text] for text in texts]})
        return encode(made, TOKENIZER, ("text",), "label", 16, "tokens")
    labels = [int("good" in text) for text in texts]
    made = Dataset.from_dict({"text": [" ".join(t) for t in texts], "other": [" ".join(t[::-1]) for t in texts], "label": labels})
    return encode(made, TOKENIZER, ("text", "other") if kind == "pair" else ("text",), "label", 24, kind)


@pytest.fixture(params=["single", "pair", "tokens"])
def problem(request):
    kind = request.param
    labels, metric = (("O", "B-good"), "entity_f1") if kind == "tokens" else (LABELS, "accuracy")
    set_seed(0)
    encoder = small_bert(TOKENIZER, 3, 16, 2)
    teacher = make_student(encoder, labels, kind, layers=3).eval().requires_grad_(False)
    training = dict(steps=3, lr=1e-3, batch_size=16)
    data = rows(48, kind), rows(24, kind, 1)
    return Problem(teacher, encoder, TOKENIZER, *data, labels, kind, metric, training=training)


def inputs_of(problem, n=6):
    return model_inputs(Collate(TOKENIZER)([problem.train[i] for i in range(n)]), TOKENIZER)


def drawn(ops, depth, max_depth):
    return Sample(torch.eye(len(OP))[[OP.index(op) for op in ops]], torch.eye(max_depth)[depth - 1])


def test_hard_samples_follow_the_softmax_of_the_logits():
    torch.manual_seed(0)
    arch = Architecture(4)
    with torch.no_grad():
        arch.alpha.normal_()
        arch.depth.normal_()
    samples = [arch.sample(0.3) for _ in range(4000)]
    ops, depths = (torch.stack(list(each)).mean(0) for each in zip(*((s.ops, s.depth) for s in samples)))
    assert_close(ops, arch.alpha.softmax(1), atol=0.035, rtol=0)  # more than four standard errors
    assert_close(depths, arch.depth.softmax(0), atol=0.035, rtol=0)


@pytest.mark.parametrize("tau", [1.0, 0.2])
def test_straight_through_gradients_are_those_of_the_soft_sample(tau):
    logits, weights = torch.randn(len(EDGES), len(OP), requires_grad=True), torch.randn(len(EDGES), len(OP))
    torch.manual_seed(3)
    (gumbel_softmax(logits, tau, hard=True) * weights).sum().backward()
    torch.manual_seed(3)
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / tau).softmax(1).detach()
    by_hand = soft * (weights - (soft * weights).sum(1, keepdim=True)) / tau
    assert_close(logits.grad, by_hand)


def test_the_score_function_compares_a_sample_with_the_others_only():
    torch.manual_seed(0)
    arch = Architecture(2)
    samples, losses = [arch.sample(1.0) for _ in range(3)], torch.tensor([1.0, 2.0, 4.0])

    def gradient(losses):
        return torch.autograd.grad(score_function(arch, samples, losses), [arch.alpha, arch.depth])

    usual = torch.tensor([3.0, 2.5, 1.5])  # the mean of the others
    by_hand = sum((loss - mean) * (one.ops.detach() - 0.1) / 3 for loss, mean, one in zip(losses, usual, samples))
    assert_close(gradient(losses)[0], by_hand)
    assert by_hand.abs().max() > 0.1
    assert_close(gradient(losses + 7.0), gradient(losses), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_kept_of_operations_that_were_not_drawn_changes_no_gradient(problem, seed):
    """A straight-through step beside one that keeps a gradient through everything: nothing is left out where none is zero."""
    torch.manual_seed(seed)
    net, arch = SuperNet(problem.teacher, 2, problem.kind, width=8, max_depth=3).eval(), Architecture(3)
    data = taught_rows(problem)
    batch = Collate(TOKENIZER)([data[i] for i in range(6)])
    inputs = model_inputs(batch, TOKENIZER)

    def plain():
        sample = arch.sample(0.5)
        whole = Sample(sample.ops + 1e-9, torch.eye(3)[2])  # all operations of all cells
        losses = losses_by_depth(net(whole, everything=True, **inputs), batch, problem.kind, 0.8)
        return sum(sample.depth[cells - 1] * loss for cells, loss in losses.items())

    def gradients(step):
        torch.manual_seed(seed)
        return torch.autograd.grad(step(), [arch.alpha, arch.depth])

    ours = gradients(lambda: architecture_loss(net, arch, batch, inputs, 0.8, 0.5, 0))
    assert_close(ours, gradients(plain), atol=1e-6, rtol=1e-4)
    assert all(one.abs().max() > 1e-6 for one in ours)


def test_a_sampled_path_is_what_all_operations_compute_there(problem):
    net = SuperNet(problem.teacher, 2, problem.kind, width=8, max_depth=3).eval()
    for seed in range(4):
        torch.manual_seed(seed)
        sample = Architecture(3).sample(1.0)
        path, everything = (net(sample, everything=e, **inputs_of(problem))[sample.cells] for e in (False, True))
        assert_close(path, everything)


def test_a_derived_student_is_its_path_through_the_super_net(problem):
    found = search(problem, taught_rows(problem), **QUICK)
    student = derive(found, problem, width=8).eval()
    path = {edge[:2]: edge[2] for edge in found.genotype.edges}
    sample = drawn([path.get(edge, "zero") for edge in EDGES], found.genotype.depth, 3)
    theirs = found.net.eval()(sample, **inputs_of(problem))[found.genotype.depth][0]
    assert_close(student(**inputs_of(problem)).logits, theirs, atol=1e-5, rtol=1e-5)


def test_folded_tables_are_the_projected_embeddings(problem):
    words = Words(problem.teacher, 8)
    table, positions = words.fold()
    ids = inputs_of(problem)["input_ids"]
    assert_close(table[ids] + positions[: ids.shape[1]], words(ids), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_flops_is_what_torch_counts_in_a_cell(seed):
    genotype, width, length = random_genotype(np.random.default_rng(seed)), 16, 32
    cell = Cell(width, {(source, node): [op] for source, node, op in genotype.edges}).eval()
    x = torch.ones(1, width, length)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cell(x, x, torch.ones(1, 1, length))
    attention = 2 * 3 * width  # a score for each of three nodes
    parameters = sum(p.numel() for p in cell.edges.parameters())
    assert counter.get_total_flops() == sum(op_cost(op, width)[1] for *_, op in genotype.edges) * length + attention
    assert parameters == sum(op_cost(op, width)[0] for *_, op in genotype.edges)


@pytest.mark.parametrize("seed", range(3))
def test_neither_padding_nor_neighbours_change_logits(problem, seed):
    genotype = random_genotype(np.random.default_rng(seed), 3)
    student = derive(genotype, problem, width=8, start="scratch").eval()
    order = sorted(range(8), key=lambda i: problem.train[i]["length"])
    together = predict(student, problem.train.select(order), TOKENIZER, batch_size=8)
    alone = predict(student, problem.train.select(order), TOKENIZER, batch_size=1)
    for ours, theirs in zip(together, alone):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_rubbish_under_the_padding_changes_nothing(problem):
    student = derive(random_genotype(np.random.default_rng(5), 3), problem, width=8, start="scratch").eval()
    given = inputs_of(problem)
    spoilt = dict(given, input_ids=torch.where(given["attention_mask"].bool(), given["input_ids"], 7))
    real = given["attention_mask"].bool() if problem.kind == "tokens" else slice(None)
    assert_close(student(**spoilt).logits[real], student(**given).logits[real])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_genotypes_survive_their_config(seed):
    genotype = random_genotype(np.random.default_rng(seed))
    again = AdaBertConfig.from_dict(json.loads(AdaBertConfig(**genotype.plain()).to_json_string()))
    assert again.genotype == genotype and genotype_cost(genotype, 16) >= 0


@pytest.mark.parametrize("seed", range(4))
def test_rivals_cost_the_same_and_have_as_many_edges(seed):
    one = random_genotype(np.random.default_rng(100 + seed), 4)
    one = replace(one, edges=one.edges[: 6 - seed])
    cost, rivals = genotype_cost(one, 16, 4), same_cost(one, 16, 4, seed)[:5]
    assert all(abs(genotype_cost(rival, 16, 4) - cost) < 0.05 * cost + 1e-4 for rival in rivals)
    assert len({one, *rivals}) == 6 and {len(rival.edges) for rival in rivals} == {len(one.edges)}
    assert all(any(source < 2 for source, _, _ in rival.edges) for rival in rivals)


def test_the_cost_is_the_expected_cost_of_a_decided_architecture():
    genotype, arch = random_genotype(np.random.default_rng(0), 4), Architecture(4)
    path = {edge[:2]: edge[2] for edge in genotype.edges}
    with torch.no_grad():
        for i, edge in enumerate(EDGES):
            arch.alpha[i, OP.index(path.get(edge, "zero"))] = 50.0
        arch.depth[genotype.depth - 1] = 50.0
    assert abs(arch.expected_cost(16).item() - genotype_cost(genotype, 16, 4)) < 1e-6
    assert arch.derive().depth == genotype.depth


def test_a_dearer_price_makes_a_cheaper_architecture():
    """The price alone, and the negative control: without one, nothing moves."""
    costs = []
    for beta in (0.0, 1.0, 16.0):
        arch = Architecture(4)
        optimizer = torch.optim.SGD(arch.parameters(), lr=1.0)
        for _ in range(50):
            optimizer.zero_grad()
            (beta * arch.expected_cost(16)).backward()
            optimizer.step()
        costs.append(arch.expected_cost(16).item())
    assert costs[0] > costs[1] > costs[2] and abs(costs[0] - Architecture(4).expected_cost(16).item()) < 1e-7


class Killed(Exception):
    pass


@pytest.mark.parametrize("paths", [0, 3])
def test_a_search_killed_twice_ends_as_if_it_had_not_been(problem, tmp_path, monkeypatch, paths):
    data, wanted = taught_rows(problem), QUICK | dict(paths=paths)
    peace = search(problem, data, **wanted)
    advance, steps = _Loop.advance, itertools.count(1)

    def killed(self, *args):
        if next(steps) in (3, 8):
            raise Killed
        advance(self, *args)

    monkeypatch.setattr(_Loop, "advance", killed)
    there = replace(problem, folder=tmp_path)
    for _ in range(2):
        with pytest.raises(Killed):
            search(there, data, checkpoint_every=1, **wanted)
        torch.randn(5)  # whatever another process would have drawn
    again = search(there, data, checkpoint_every=1, **wanted)
    assert again.genotype == peace.genotype and again.history == peace.history
    assert all(torch.equal(a, b) for a, b in zip(again.net.state_dict().values(), peace.net.state_dict().values()))


def test_a_search_does_not_go_on_with_another_one(problem, tmp_path):
    there, data = replace(problem, folder=tmp_path), taught_rows(problem)
    search(there, data, checkpoint_every=1, **QUICK)
    for changes, rows in ((dict(beta=1.0), data), ({}, data.select(range(len(data) - 1)))):
        with pytest.raises(ValueError, match="holds a search of other rows or settings"):
            search(there, rows, **QUICK | changes)


def test_rows_too_long_for_phrases_leave_the_others_in_their_groups(problem):
    """One long row among sentences and their phrases does not deal the phrases out one by one."""
    words = [[2, *range(10 + 7 * i, 17 + 7 * i), 3] for i in range(20)]
    texts = [*words, *(ids[:6] + ids[-1:] for ids in words), [2, *range(200, 300), 3]]
    rows = Dataset.from_dict(dict(input_ids=texts, length=list(map(len, texts))))
    group, whole = _groups(rows)
    assert group[:20].tolist() == group[20:40].tolist() and len(set(group)) == 21
    assert whole[:20].all() and not whole[20:40].any() and whole[40]


def test_a_kept_search_is_found_and_the_same(problem, tmp_path, monkeypatch):
    there, data = replace(problem, cache=Store(tmp_path)), taught_rows(problem)
    wanted = QUICK | dict(gamma=0.8, beta=4.0, lr=1e-2, arch_lr=5e-2)
    first = kept_search(there, data, **wanted)
    monkeypatch.setattr("kdnotes.adabert.search.search", lambda *_, **__: pytest.fail("searched again"))
    second = kept_search(there, data, **wanted)
    assert first.genotype == second.genotype
    assert all(torch.equal(a, b) for a, b in zip(first.net.state_dict().values(), second.net.state_dict().values()))


def test_students_are_saved_exported_and_small(problem, tmp_path):
    student = fit_adabert(problem, vocabulary="task", copies=1, **tiny.SEARCH)
    auto = AutoModelForTokenClassification if problem.kind == "tokens" else AutoModelForSequenceClassification
    student.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert isinstance(again, AdaBert) and again.config.genotype == student.config.genotype
    own = student.tokenizer

    def in_own_tokens(row):
        return row | dict(input_ids=own.convert_tokens_to_ids(TOKENIZER.convert_ids_to_tokens(row["input_ids"])))

    few = problem.train.select(range(10)).map(in_own_tokens)
    assert len(own) == len(student.table.weight) and own.unk_token_id not in {i for ids in few["input_ids"] for i in ids}
    for ours, theirs in zip(predict(student, few, own), predict(again.eval(), few, own)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for ours, theirs in zip(predict(student, few, own), predict(to_onnx(student), few, own)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert set(student.details["measures"]) == {"depth", "cost", "network_params"}


@pytest.mark.parametrize("problem", ["tokens"], indirect=True)
def test_a_student_that_tags_words_runs_in_a_pipeline(problem):
    student = fit_adabert(problem, **tiny.SEARCH | dict(cnn_steps=90, cnn_lr=1e-2))
    tagger = pipeline("token-classification", model=student, tokenizer=TOKENIZER)
    assert {found["entity"] for found in tagger("good film not good")} == {"B-good"}  # the pipeline leaves out what is O


@pytest.mark.parametrize("problem", ["single"], indirect=True)
def test_an_undecided_number_of_cells_is_settled_by_what_its_students_score(problem, monkeypatch):
    data = taught_rows(problem)
    found = search(problem, data, **QUICK)
    last = found.history[-1]
    open_ones = replace(found, history=[last | dict(depths=[0.3, 0.2, 0.5])])
    assert likely_depths(open_ones) == [1, 3] and likely_depths(
        replace(found, history=[last | dict(depths=[0.1, 0.8, 0.1])])
    ) == [2]
    for scores, best in (({1: 0.6, 3: 0.7}, 3), ({1: 0.7, 3: 0.7}, 1)):
        monkeypatch.setattr("kdnotes.adabert.student.on_select", lambda student, _, scores=scores: scores[student.config.depth])
        settled = settle_depth(open_ones, problem, data, 0.8, 1e-3, trial_steps=1)
        assert settled.genotype == replace(found.genotype, depth=best)


@pytest.mark.parametrize("problem", ["single"], indirect=True)
def test_the_best_of_several_random_networks_is_that_of_select(problem, monkeypatch):
    scores = iter([0.5, 0.9, 0.7, 0.0])
    monkeypatch.setattr("kdnotes.adabert.rivals.on_select", lambda *_: next(scores))
    best = fit_adabert_random(problem, best_of=3, **tiny.SEARCH)
    assert best.config.genotype == fit_adabert_random(problem, draw=1, **tiny.SEARCH).config.genotype


@pytest.mark.parametrize("problem", ["single"], indirect=True)
def test_a_label_that_no_training_row_has_is_as_good_as_impossible(problem):
    labels = ("no", "never", "yes")
    depth = problem.teacher.config.num_hidden_layers
    wider = replace(problem, labels=labels, teacher=make_student(problem.teacher, labels, layers=depth).eval())
    wider.train = wider.train.map(lambda row: dict(labels=2 * row["labels"]))
    probes = torch.tensor(taught_rows(wider)["probes"][:])
    *layers, teacher = probes.unbind(1)
    assert probes.shape == (48, 5, 3) and all((layer[:, 1] == -30).all() for layer in layers)
    for layer in layers:
        assert_close(layer[:, [0, 2]].exp().sum(-1), torch.ones(48), atol=1e-5, rtol=0)
    assert_close(teacher.exp().sum(-1), torch.ones(48), atol=1e-5, rtol=0)


@pytest.mark.parametrize("problem", ["single"], indirect=True)
def test_a_student_learns_from_probes_that_are_certain(problem, monkeypatch):
    certain = lambda probes, states: np.broadcast_to([-np.inf, 0.0], (*states.shape[:2], 2))  # noqa: E731
    monkeypatch.setattr("kdnotes.adabert.loss_tradeoff.probe_log_probabilities", certain)
    probes = torch.tensor(taught_rows(problem)["probes"][:])
    assert probes.isfinite().all() and (probes[:, :-1, 0] == -30).all()
    assert fit_adabert(problem, **tiny.SEARCH).classifier.weight.isfinite().all()


def test_every_operation_is_exported_for_any_length(problem):
    edges = list(zip(((0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4)), OP))
    student = derive(Genotype(tuple((*edge, op) for edge, op in edges), 2), problem, width=8, start="scratch").eval()
    exported = to_onnx(student)
    for ours, theirs in zip(predict(student, problem.train, TOKENIZER), predict(exported, problem.train, TOKENIZER)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


REFUSED = {
    "gamma": (dict(gamma=1.2), "gamma=1.2 should be from 0 to 1"),
    "beta": (dict(beta=-1.0), "beta=-1.0 should not be negative"),
    "steps": (dict(search_steps=0), "steps=0 should be positive"),
    "start": (dict(start="bert"), "unknown start 'bert'"),
    "vocabulary": (dict(vocabulary="mine"), "unknown vocabulary 'mine'"),
    "width": (dict(channels=99), "channels=99 should be from 1 to the teacher's 16"),
    "genotype": (dict(genotype="{}"), "genotype='{}'"),
    "no json": (dict(genotype="sst3"), "genotype='sst3'"),
    "no weights": (dict(genotype=json.dumps(random_genotype(np.random.default_rng(0)).plain())), "start='scratch'"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("problem", ["single"], indirect=True)
def test_wrong_settings_are_refused(problem, case):
    wrong, message = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        fit_adabert(problem, **tiny.SEARCH | wrong)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("problem", ["single"], indirect=True)
def test_a_label_without_rows_and_few_rows(problem):
    one_class = problem.train.filter(lambda row: row["labels"] == 1)
    with pytest.raises(ValueError, match="at least 4"):
        search(problem, taught_rows(problem).select(range(3)), **QUICK)
    probes = torch.full((2, 4, 2), 0.5).log()
    assert torch.isfinite(knowledge_loss([torch.zeros(2, 2)], torch.zeros(2, 2), probes, torch.tensor([1, 1])))
    assert len(one_class) > 4


def test_an_architecture_comes_from_the_run_on_the_named_task(tmp_path):
    store = Store(tmp_path)
    sizes = tiny.usual("adabert") | tiny.SEARCH
    spec = make_spec("adabert", "mrpc", genotype="sst2", start="scratch", setting="searched on sst2", **sizes)
    found = completed_settings(spec, store)
    assert spec["settings"]["genotype"] == "sst2" and found["start"] == "scratch"
    searched = store.get(make_spec("adabert", "sst2", **sizes))
    assert json.loads(found["genotype"]) == searched["details"]["genotype"]
    again = completed_settings(make_spec("adabert", "sst2", genotype="sst2", start="scratch", **sizes), store)
    assert again["genotype"] == found["genotype"]
