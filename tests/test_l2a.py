"""L2A: what may be changed, exact gradients, the loop that reduces to plain distillation, resumes, and never reads report."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, concatenate_datasets
from transformers import set_seed

from kdnotes.baselines.kd import fit_kd
from kdnotes.cli import artefacts
from kdnotes.core.records import address
from kdnotes.core.store import Store
from kdnotes.data import worlds
from kdnotes.data.reviews import ASPECTS
from kdnotes.experiments import runs as experiments
from kdnotes.experiments import specs
from kdnotes.experiments.plans import grid
from kdnotes.l2a import learning, rounds, student
from kdnotes.l2a import loop as l2a
from kdnotes.l2a.augment_policy import AugmentPolicy, group_rewards, policy_loss, sample_gains
from kdnotes.l2a.chain import chain, row_keys, transition
from kdnotes.l2a.critic import chain_log_probs, reinforce
from kdnotes.l2a.generator import Generator, Words, corrupt, fit_generator
from kdnotes.l2a.learning import learn_to_augment
from kdnotes.l2a.loop import Loop, LoopPlan, folds
from kdnotes.l2a.rounds import play_round
from kdnotes.l2a.source_teacher import source_teacher
from kdnotes.l2a.student import fit_kd_fixed_aug, fit_kd_source_mix, fit_l2a, fit_teacher_l2a
from kdnotes.learning.problem import Problem
from kdnotes.methods import METHODS, distill
from kdnotes.models.encoders import make_student, small_bert, word_tokenizer
from kdnotes.models.rows import Collate, encode

PLANS = {name: one.plan for name, one in artefacts().items()}
NAMES = ("kitchen", "books", "dvd")
WORLD = worlds.world("sentiment", domains=NAMES, noise=0.0)
PAIRS = worlds.world("paraphrase", domains=NAMES, noise=0.0)
TOKENIZER = word_tokenizer(sorted({*WORLD.vocabulary(), *PAIRS.vocabulary()}))
SHAPE = dict(layers=1, width=16)
ABLATIONS = ("l2a_no_critic", "l2a_no_selector", "l2a_fixed_generator", "l2a_no_source", "l2a_no_generator")
QUICK = dict(warm=2, rounds=2, groups=2, group_rows=4, refine=1, learn=1, read=2, extra=8)


def raw(domain, n, seed=0):
    rows = WORLD.sample(n, seed, domain)
    return Dataset.from_list([dict(text=r["text"], label=WORLD.labels.index(r["label"]), domain=domain) for r in rows])


def encoded(domain, n, seed=0):
    return encode(raw(domain, n, seed), TOKENIZER, ("text",), "label", 32)


def problem(rows=24, select=12, source=30, cache=None, folder=None, **training):
    """Few kitchen reviews, more of books and films, an untrained encoder."""
    set_seed(0)
    encoder = small_bert(TOKENIZER, 2, 32, 2).eval()
    teacher = make_student(encoder, WORLD.labels, layers=2).eval().requires_grad_(False)
    parts = [encoded(name, source).add_column("domain", [i] * source) for i, name in enumerate(NAMES) if i and source]
    return Problem(teacher, encoder, TOKENIZER, encoded("kitchen", rows), encoded("kitchen", select, 1), WORLD.labels,
                   training=dict(seed=0, steps=6, looks=2, lr=1e-3, batch_size=8) | training, cache=cache, folder=folder,
                   source=concatenate_datasets(parts) if parts else None, domains=NAMES if parts else NAMES[:1])  # fmt: skip


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pairs(n=60, seed=0):
    rows = PAIRS.sample(n, seed, "kitchen")
    encoded = [TOKENIZER(r["text_a"], r["text_b"]) for r in rows]
    return Collate(TOKENIZER)([dict(one, labels=0, length=len(one["input_ids"])) for one in encoded]), rows


def generator():
    set_seed(0)
    return Generator(small_bert(TOKENIZER, 1, 16, 2).eval(), 3, 2, TOKENIZER)


# --- the generator ----------------------------------------------------------------------------------------------------


def test_padding_special_tokens_and_the_boundary_of_a_pair_are_left_alone():
    batch, _ = pairs()
    torch.manual_seed(0)
    zero = torch.zeros(60, dtype=int)
    after, moves = chain(generator(), batch, zero, torch.full((60,), 0.9), torch.full((60,), 4))
    special = torch.isin(batch["input_ids"], torch.tensor(TOKENIZER.all_special_ids))
    assert torch.equal(after["input_ids"][special], batch["input_ids"][special]) and moves
    assert not torch.isin(after["input_ids"][~special], torch.tensor(TOKENIZER.all_special_ids)).any()
    assert (after["input_ids"] != batch["input_ids"]).float().mean() > 0.3
    assert all(torch.equal(after[name], batch[name]) for name in ("attention_mask", "token_type_ids", "labels"))


def test_a_word_of_both_halves_stays_the_same_in_both():
    """Checked on texts, not on ids: each word that stood in both halves is replaced by one word in all its places."""
    batch, rows = pairs()
    torch.manual_seed(1)
    after, _ = transition(generator(), batch, torch.zeros(60, dtype=int), torch.full((60,), 0.7))
    changed = 0
    for row, ids in zip(rows, after["input_ids"]):
        first, second = (text.split() for text in (row["text_a"], row["text_b"]))
        new = TOKENIZER.convert_ids_to_tokens(ids[: len(first) + len(second) + 3].tolist())
        halves = new[1 : len(first) + 1], new[len(first) + 2 : -1]
        for word in set(first) & set(second):
            found = {b for old, made in zip((first, second), halves) for a, b in zip(old, made) if a == word}
            assert len(found) == 1, (row, new)
            changed += found != {word}
    assert changed > 20


def test_corruptions_are_grouped_row_by_row_whatever_the_order_of_places():
    batch, _ = pairs(20)
    words = Words(TOKENIZER, len(TOKENIZER) + 7)
    torch.manual_seed(0)
    made = corrupt(batch["input_ids"], words, torch.full((20,), 0.6))
    leaders = words.leaders(batch["input_ids"])
    for group in range(len(made.leader)):
        mine = made.group == group
        assert len(set(made.rows[mine].tolist())) == 1
        places = made.at[mine].tolist()
        assert {leaders[made.rows[mine][0], place].item() for place in places} == {made.at[made.leader[group]].item()}


def test_the_probability_of_a_chain_is_that_of_what_it_drew():
    batch, _ = pairs(6)
    made, zero = generator(), torch.zeros(6, dtype=int)
    torch.nn.init.normal_(made.domain.weight)
    torch.manual_seed(0)
    _, moves = chain(made, batch, zero, torch.full((6,), 0.5), torch.full((6,), 2))
    total, count = torch.zeros(6), torch.zeros(6)
    for move in moves:
        said = made.log_probs(batch, move.made, zero)
        for group, word in enumerate(move.drawn):
            row = move.made.row[group]
            total[row] += said[group, word].detach()
            count[row] += 1
    assert torch.allclose(chain_log_probs(made, batch, moves, zero), total / count.clamp(min=1), atol=1e-5)


def test_a_transition_that_would_lose_is_refused():
    """A worth that no change can keep refuses all, one that all changes keep refuses none, and refused words do not count."""
    batch, _ = pairs(20)
    made, zero, half = generator(), torch.zeros(20, dtype=int), torch.full((20,), 0.5)
    known = set(row_keys(batch))
    same = lambda given: torch.tensor([key in known for key in row_keys(given)])  # noqa: E731
    for worth, taken in ((lambda given: 1e6 * same(given), False), (lambda given: 0.0 * same(given), True)):
        torch.manual_seed(0)
        after, moves = transition(made, batch, zero, half, worth=worth)
        assert torch.equal(after["input_ids"], batch["input_ids"]) is not taken
        assert bool(chain_log_probs(made, batch, moves, zero).any()) is taken


def test_a_refusing_chain_draws_from_the_product_of_generator_and_worth():
    """One masked word, two values of worth: the share of rows whose word is worth more is what the product says."""
    words, rows = ("sturdy", "flimsy"), 4000
    ids = torch.tensor([TOKENIZER("the lid is sturdy")["input_ids"]]).repeat(rows, 1)
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.zeros(rows, dtype=int))
    made, (good, bad) = generator(), (TOKENIZER.vocab[word] for word in words)
    made.words.whole[:] = False
    made.words.whole[[good, bad]] = True  # only these may be said, and so only this place is masked
    strength, steps = torch.full((rows,), 0.9), torch.full((rows,), 8)
    worth = lambda given: 1.5 * (given["input_ids"] == bad).any(1)  # noqa: E731
    torch.manual_seed(0)
    share = {}
    for name, value in (("plain", None), ("worth", worth)):
        after, _ = chain(made, batch, torch.zeros(rows, dtype=int), strength, steps, worth=value)
        share[name] = (after["input_ids"] == bad).any(1).float().mean().item()
    odds = lambda p: p / (1 - p)  # noqa: E731
    assert abs(np.log(odds(share["worth"]) / odds(share["plain"])) - 1.5) < 0.15, share


def test_words_that_only_others_say_are_masked_first():
    batch, _ = pairs(60)
    made, zero, the = generator(), torch.zeros(60, dtype=int), TOKENIZER.vocab["the"]
    with torch.no_grad():
        made.domain.weight[1, the] = 20.0
    torch.manual_seed(0)
    _, moves = transition(made, batch, zero, torch.full((60,), 0.05), passes=1)
    masked = moves[0].made.ids == TOKENIZER.mask_token_id
    said = batch["input_ids"] == the
    assert masked[said].float().mean() > 0.95 and masked[~said].float().mean() < 0.15


def test_chains_from_different_starts_end_in_the_same_distribution():
    """Permutation test on word counts: books and films differ at the start, and no more than by chance in the end."""
    given = problem(rows=48, source=200)
    walker, zero = fit_generator(given), torch.zeros(200, dtype=int)
    starts = [Collate(TOKENIZER)(list(encoded(name, 200, 5))) for name in ("books", "dvd")]

    def counts(batch):
        words = walker.words.places(batch["input_ids"])
        found = torch.zeros(len(words), len(TOKENIZER))
        return found.scatter_add(1, batch["input_ids"], words.float())

    def chance(a, b, draws=200):
        both, rng = torch.cat([a, b]), np.random.default_rng(0)
        far = lambda order: (both[order[:200]].sum(0) - both[order[200:]].sum(0)).abs().sum().item()  # noqa: E731
        real = far(np.arange(400))
        return np.mean([far(rng.permutation(400)) >= real for _ in range(draws)])

    torch.manual_seed(0)
    size, steps = torch.full((200,), 0.5), torch.full((200,), 15)
    ends = [chain(walker, start, zero, size, steps)[0] for start in starts]
    assert chance(*map(counts, starts)) < 0.01 < 0.05 < chance(*map(counts, ends))


def test_the_tables_learn_the_words_of_a_domain():
    given = problem(rows=48, source=100)
    made = fit_generator(given)
    own = {name: set(ASPECTS[name].split()) for name in NAMES}
    for i, name in enumerate(NAMES):
        weights = {word: made.domain.weight[i, TOKENIZER.vocab[word]].item() for words in own.values() for word in words}
        others = np.mean([weights[word] for other in NAMES if other != name for word in own[other]])
        assert np.mean([weights[word] for word in own[name]]) > others + 0.5, name


# --- the policy -------------------------------------------------------------------------------------------------------


def test_policy_gradients_agree_with_the_exact_one_on_three_samples():
    """All eight ways to keep three samples are summed; the sampled estimate and the closed form must agree with that."""
    gains, states = torch.tensor([1.0, 0.2, -0.8]), torch.tensor([[1.0, 0.0], [0.3, 1.0], [-0.5, 0.7]])
    policy = AugmentPolicy((2,), 2)
    with torch.no_grad():
        policy.keep.weight.copy_(torch.tensor([[0.4, -0.3]]))
    ways = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    p = policy.keep_probs(states)
    log_probs = (ways * p.log() + (1 - ways) * (1 - p).log()).sum(1)
    (exact,) = torch.autograd.grad(((log_probs.exp()) * (ways @ gains)).sum(), policy.keep.weight, retain_graph=True)
    (closed,) = torch.autograd.grad((p * gains).sum(), policy.keep.weight, retain_graph=True)
    assert torch.allclose(closed, exact, atol=1e-6)
    torch.manual_seed(0)
    draws = torch.multinomial(log_probs.exp().detach(), 40_000, replacement=True)
    for baseline in (0.0, 0.3):
        loss = reinforce(log_probs[draws], (ways @ gains)[draws], baseline)
        (sampled,) = torch.autograd.grad(loss, policy.keep.weight, retain_graph=True)
        assert torch.allclose(-sampled, exact, atol=0.02), baseline


def test_the_leave_one_out_baseline_leaves_the_gradient_as_it_is():
    """Two groups, one choice of three: the mean over all nine pairs of draws is the exact gradient."""
    values = torch.tensor([0.5, 2.0, -1.0])
    policy = AugmentPolicy((3,), 2)
    with torch.no_grad():
        policy.how[0].copy_(torch.tensor([0.3, -0.2, 0.5]))
    logits = policy.how[0]
    (exact,) = torch.autograd.grad((logits.softmax(0) * values).sum(), logits)
    total = torch.zeros(3)
    for a in range(3):
        for b in range(3):
            drawn = torch.tensor([[a], [b]])
            rewards = values[drawn[:, 0]]
            loss = reinforce(policy.how_log_probs(drawn), rewards, rewards.sum() - rewards)
            chance = (logits.softmax(0)[a] * logits.softmax(0)[b]).detach()
            total -= chance * torch.autograd.grad(loss, logits)[0]
    assert torch.allclose(total, exact, atol=1e-6)


def test_gains_are_the_products_of_gradients():
    set_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    x, y, held_x, held_y = torch.randn(6, 4), torch.randint(2, (6,)), torch.randn(5, 4), torch.randint(2, (5,))
    loss = torch.nn.functional.cross_entropy
    before = [p.detach().clone() for p in model.parameters()]
    found = sample_gains(model, lambda: loss(model(held_x), held_y), lambda: loss(model(x), y, reduction="none"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    flat = lambda value: torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])  # noqa: E731
    target = flat(loss(model(held_x), held_y))
    slow = torch.stack([flat(loss(model(x[i : i + 1]), y[i : i + 1])) @ target for i in range(6)])
    assert torch.allclose(found, slow, atol=1e-3)


def test_groups_are_paid_for_what_they_bring():
    gains, keep = torch.tensor([1.0, 3.0, -2.0, 5.0]), torch.tensor([1.0, 0.5, 1.0, 0.0])
    rewards = group_rewards(gains, keep, torch.tensor([0, 0, 1, 1]), 3)
    assert rewards.tolist() == [1.25, -1.0, 0.0]


def test_the_policy_finds_the_better_samples_and_random_gains_teach_it_nothing():
    def learned(signal):
        set_seed(0)
        policy = AugmentPolicy((2, 3, 3))
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
        for _ in range(40):
            drawn, states = policy.draw(4), torch.randn(64, 8)
            gains = signal * states[:, 2] + torch.randn(64)
            optimizer.zero_grad()
            group = torch.arange(4).repeat_interleave(16)
            policy_loss(policy, drawn, group, states, gains, torch.ones(64, dtype=bool)).backward()
            optimizer.step()
        return policy.keep.weight[0]

    sure, noise = learned(1.0), learned(0.0)
    assert sure.argmax() in (1, 2) and sure[2] > 0.8 and noise[2].abs() < sure[2] / 2


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_a_teacher_that_has_seen_the_sources_is_found_again(tmp_path):
    given, store = problem(), Store(tmp_path)
    first, again = (source_teacher(problem(cache=store), 3) for _ in range(2))
    assert equal(first, again) and equal(first, source_teacher(given, 3)) and not equal(first, given.teacher)
    assert not equal(first, source_teacher(given, 3, lr=1e-2)) and equal(source_teacher(problem(source=0), 3), given.teacher)


def test_without_manipulation_and_with_all_kept_the_student_is_that_of_plain_distillation():
    """No step of the chain, begun at the target, everything kept: no sample is news, and the student is kd's bit for bit."""
    given = problem()
    settings = QUICK | dict(cross_domain=False, generator=False, share=1.0)
    student = fit_l2a(given, **SHAPE, **settings)
    assert student.details["measures"]["kept_samples"] == 0
    assert equal(student, fit_kd(given, **SHAPE))
    assert equal(fit_teacher_l2a(given, **SHAPE, **settings), given.teacher)
    assert not equal(fit_l2a(given, **SHAPE, **QUICK), fit_kd(given, **SHAPE))


def test_the_final_student_makes_as_many_steps_whatever_its_rows(monkeypatch):
    given, made, true = problem(), [], student.kd_loss
    monkeypatch.setattr(student, "kd_loss", lambda *args: made.append(len(args[0])) or true(*args))
    for more in (None, encoded("books", 40)):
        student.distilled(given, given.teacher, more, SHAPE, 0.9, 2.0)
    assert made == [8] * 12


def test_the_critic_calls_none_but_target_rows_real():
    for rows in (24, 70):
        loop = Loop(problem(rows=rows), LoopPlan(**QUICK), dict(layers=1), 0.9, 2.0)
        assert len(loop.real) == rows and loop.own == set(map(tuple, loop.problem.train["input_ids"]))


def test_a_run_is_the_same_whether_generator_and_teacher_were_made_or_found(tmp_path):
    filled = Store(tmp_path / "filled")
    fit_l2a(problem(cache=filled), **SHAPE, **QUICK | dict(learn=2))  # another loop, with the same two before its rounds
    kinds = lambda: sorted(json.loads(path.read_text())["kind"] for path in filled.path.glob("models/*/spec.json"))  # noqa: E731
    assert kinds() == ["generator", "l2a", "source teacher"]
    found, made = (fit_l2a(problem(cache=store), **SHAPE, **QUICK) for store in (filled, Store(tmp_path / "empty")))
    assert kinds() == ["generator", "l2a", "l2a", "source teacher"]
    assert equal(found, made) and found.details == made.details


class Killed(Exception):
    pass


def test_a_loop_killed_and_resumed_ends_where_another_ends(tmp_path, monkeypatch):
    plan = LoopPlan(**QUICK | dict(rounds=5))
    monkeypatch.setattr(learning, "CHECKPOINT", 2)
    peace = learn_to_augment(problem(), plan, dict(layers=1), 0.9, 2.0)
    true = learning.play_round

    def dies(loop):
        if loop.round == 3:
            raise Killed
        true(loop)

    monkeypatch.setattr(learning, "play_round", dies)
    store = Store(tmp_path)
    with pytest.raises(Killed):
        learn_to_augment(problem(cache=store), plan, dict(layers=1), 0.9, 2.0)
    (place,) = tmp_path.glob("models/*.partial/loop.pt")
    assert torch.load(place, weights_only=True)["round"] == 2
    monkeypatch.setattr(learning, "play_round", true)
    again = learn_to_augment(problem(cache=store), plan, dict(layers=1), 0.9, 2.0)
    assert again.history == peace.history and again.pool == peace.pool and equal(again.teacher, peace.teacher)
    assert not list(tmp_path.glob("models/*/loop.pt"))


def test_one_loop_for_the_teacher_and_the_student(tmp_path, monkeypatch):
    store, made, true = Store(tmp_path), [], learning.play_round
    monkeypatch.setattr(learning, "play_round", lambda loop: made.append(1) or true(loop))
    student = fit_l2a(problem(cache=store), **SHAPE, **QUICK)
    teacher = fit_teacher_l2a(problem(cache=store), **SHAPE, **QUICK)
    assert len(made) == 2 and not equal(teacher, problem().teacher)
    assert equal(student, fit_l2a(problem(), **SHAPE, **QUICK)) and student.details["history"] == teacher.details["history"]
    kinds = [json.loads(path.read_text())["kind"] for path in tmp_path.glob("models/*/spec.json")]
    assert sorted(kinds) == ["generator", "l2a", "source teacher"]
    for name in ABLATIONS:
        METHODS[name].fit(problem(cache=store), **SHAPE, **QUICK)
    kinds = [json.loads(path.read_text())["kind"] for path in tmp_path.glob("models/*/spec.json")]
    assert kinds.count("generator") == 2 and kinds.count("l2a") == 1 + len(ABLATIONS)


def test_each_part_that_is_taken_away_is_away(monkeypatch):
    given, starts = problem(), []
    true = rounds.chain
    monkeypatch.setattr(rounds, "chain", lambda g, batch, *rest: starts.append(batch["domain"]) or true(g, batch, *rest))
    fit_l2a(given, **SHAPE, **QUICK, cross_domain=False)
    assert not torch.cat(starts).any()
    starts.clear()
    made = fit_l2a(given, **SHAPE, **QUICK, generator=False).details["examples"]
    assert torch.cat(starts).all() and all(one["start"] == one["text"] for one in made)
    loop = Loop(given, LoopPlan(**QUICK | dict(critic=False)), dict(layers=1), 0.9, 2.0)
    before = [p.clone() for p in loop.critic.parameters()]
    play_round(loop)
    assert all(torch.equal(a, b) for a, b in zip(before, loop.critic.parameters()))


def test_a_random_selector_keeps_as_many():
    given = problem()
    kept = [fit_l2a(given, **SHAPE, **QUICK, selector=on).details["measures"]["kept_samples"] for on in (True, False)]
    assert kept == [8, 8]


def test_below_a_hundred_rows_nobody_is_scored_on_what_it_learned():
    parts = folds(problem(rows=24, select=12))
    assert len(parts) == 2 and all(len(held) == 24 for _, held in parts)
    given = problem(rows=24, select=12)
    for mine, held in parts:
        assert not {tuple(given.train[i]["input_ids"]) for i in mine} & {tuple(row["input_ids"]) for row in held[:12]}
    ((mine, held),) = folds(problem(rows=90, select=12))
    assert len(mine) == 90 and len(held) == 12


def test_no_sample_is_a_row_of_the_target_or_stands_twice():
    given = problem()
    learned = learn_to_augment(given, LoopPlan(**QUICK), dict(layers=1), 0.9, 2.0)
    keys = [tuple(row["input_ids"]) for row in learned.pool]
    assert len(set(keys)) == len(keys) and not set(keys) & set(map(tuple, given.train["input_ids"]))
    assert sum(row["kept"] for row in learned.pool) == len(keys) // 2


def test_rows_are_known_by_their_tokens_without_padding():
    one = Collate(TOKENIZER)([encoded("kitchen", 1)[0]])
    several = Collate(TOKENIZER)(list(encoded("kitchen", 8)))
    assert row_keys(one)[0] == row_keys(several)[0]


# --- odd input --------------------------------------------------------------------------------------------------------


def finite(model):
    return all(torch.isfinite(weight).all() for weight in model.state_dict().values())


@pytest.mark.parametrize("case", ["five rows", "a missing class", "no source", "an empty source"])
def test_degenerate_problems_give_a_student(case):
    given = problem(rows=5, select=4) if case == "five rows" else problem()
    if case == "a missing class":
        given = dataclasses.replace(given, train=given.train.filter(lambda row: row["labels"] == 1))
    if case == "no source":
        given = problem(source=0)
    if case == "an empty source":
        given = dataclasses.replace(given, source=given.source.select([]))
    for fit in (fit_l2a, fit_kd_source_mix, fit_kd_fixed_aug):
        settings = QUICK if fit is fit_l2a else dict(extra=8)
        assert finite(fit(given, **SHAPE, **settings)), fit


def test_a_source_with_other_labels_is_refused_in_one_line():
    source = raw("books", 20).map(lambda row: {"label": 4})
    with pytest.raises(ValueError, match="source holds the label 4, expected ids 0 to 1") as error:
        rows, select = (raw("kitchen", n, n).remove_columns("domain") for n in (20, 9))
        distill(problem().teacher, rows, select, "l2a", tokenizer=TOKENIZER, labels=WORLD.labels, source=source,
                target="kitchen", card=False, **SHAPE)  # fmt: skip
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong, expected", [
    (dict(share=0.0), "share=0.0"), (dict(share=1.5), "share=1.5"), (dict(rounds=0), "rounds=0"), (dict(extra=-1), "extra=-1"),
    (dict(sampling=0.0), "sampling=0.0"),
    (dict(refine_lr=-1.0), "refine_lr=-1.0"), (dict(gives="both"), "gives='both'"), (dict(layers=9), "layers=9"),
])  # fmt: skip
def test_wrong_settings_are_one_line_before_any_work(wrong, expected, monkeypatch):
    monkeypatch.setattr(l2a, "fit_generator", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(ValueError, match=expected) as error:
        fit_l2a(problem(), **SHAPE | QUICK | wrong)
    assert "\n" not in str(error.value)


# --- in experiments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fig10", "fig12", "fig13"])
@pytest.mark.parametrize("profile", ["world", "laptop", "paper"])
def test_no_source_of_an_artefact_is_its_target(name, profile, monkeypatch):
    if profile != "world":
        monkeypatch.setattr(specs, "data_sha256", lambda *_: "0" * 64)
    runs = grid(PLANS[name], profile, seeds=2)
    for spec in runs:
        sources = spec.get("sources", [])
        assert bool(sources) is METHODS[spec["method"]].reads_source and f"{spec['task']}/{spec['domain']}" not in sources
        assert spec["task"] not in sources
        assert ("flat" in spec["setting"]) is any("_flat/" in source for source in sources)
        assert profile == "world" or "flat" not in spec["setting"]
    taught = {(s["task"], s["setting"], s["steps"], s["rows"]) for s in runs}
    assert len(taught) == len({one[:2] for one in taught})  # every method of a table makes as many steps
    if name != "fig10":
        assert any(s["method"] == "teacher" and s["seed"] == 1 for s in runs)  # a budget is drawn anew for every seed


def test_figures_12_and_13_share_their_runs():
    keys = [{address(spec) for spec in grid(PLANS[name], "world", 2)} for name in ("fig12", "fig13")]
    assert len(keys[0] & keys[1]) == 2 * (8 + 3)  # with 64 rows, on kitchen reviews: eight methods and three controls


def test_teachers_of_many_rows_train_longer_unless_told_otherwise():
    names = "teacher_steps", "teacher_lr"

    def shown(**told):
        specs = [spec for spec in grid(PLANS["fig13"], "world", 1, **told) if spec["method"] == "l2a"]
        return {spec["setting"]: [*(spec[name] for name in names), spec["settings"].get("refine_lr")] for spec in specs}

    assert shown()["n=16"] == shown()["n=64"] == [100, 1e-3, 1e-3] and shown()["n=256"] == [300, 1e-3, 1e-3]
    assert shown()["n=1024"] == shown()[""] == [500, 4e-4, 4e-4]
    assert shown(teacher_lr=2e-4)["n=1024"] == [500, 2e-4, 4e-4]


@pytest.mark.parametrize("method", ["l2a", "kd_source_mix"])  # each method with a sealed report: test_experiments.py
def test_report_is_never_seen(method, tmp_path, monkeypatch):
    """Other texts and labels in report change nothing in the student."""
    weights, true, real = [], experiments.distill, experiments._load

    def kept(*args, **kwargs):
        made = true(*args, **kwargs)
        weights.append({name: value.clone() for name, value in made.state_dict().items()})
        return made

    def other(*args, **kwargs):
        data = real(*args, **kwargs)
        return type(data)(train=data["train"], select=data["select"], report=data["report"].select(range(5, 300)))

    monkeypatch.setattr(experiments, "distill", kept)
    settings = {k: v for k, v in QUICK.items() if k in METHODS[method].settings}
    given = dict(domain="kitchen", budget=24, sources=("amazon/books",), source_rows=30, **settings)
    tiny.run(tmp_path / "a", method, "amazon", **given)
    monkeypatch.setattr(experiments, "_load", other)
    tiny.run(tmp_path / "b", method, "amazon", **given)
    a, b = weights
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_tells_what_it_measured(tmp_path):
    given = dict(domain="kitchen", budget=24, sources=("amazon/books",), source_rows=30)
    record = tiny.run(tmp_path, "l2a", "amazon", **given, **QUICK)
    details = record["details"]
    assert details["measures"]["student_evaluations"] == 4 and len(details["history"]) == 2
    assert {part["name"] for part in details["parts"]} >= {"generator", "critic", "teacher", "student"}
    part = details["parts"][0]
    name = f"{part['name']}: {part['takes']} -> {part['gives']}"
    assert details["measures"][name] == part["parameters"] and details["examples"]
