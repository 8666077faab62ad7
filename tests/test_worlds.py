"""The worlds: sampler and sums agree, truth is unambiguous, controls show nothing, the content is frozen."""

import math
import random
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.data import worlds
from kdnotes.data.grammar import Grammar, expand
from kdnotes.data.worlds import KINDS, LEXICONS, World, content_hash, plain_text, vocabulary, world

# A change of this number is a change of every published result: bump VERSION and run everything again.
FROZEN = (2, "bb492fd4fa9a84749c7bae7e15d6f4f2ae6e6df34eb25a5bab269381ce292e5f")

each_kind = pytest.mark.parametrize("kind", KINDS)
REVIEWS = [kind for kind in KINDS if KINDS[kind].domains == LEXICONS]
MADE = {kind: World(kind) for kind in KINDS}


def text_of(row):
    return row["text"] if "text" in row else (row["text_a"], row["text_b"])


def shown(row):
    return row["label"] if "label" in row else row["tags"]


def test_frozen():
    assert (worlds.VERSION, content_hash()) == FROZEN


# ---- grammar


def test_expand_nests_and_weighs():
    assert expand("a [b/[c/d] e/]") == {
        ("a", "b"): pytest.approx(1 / 3), ("a", "c", "e"): pytest.approx(1 / 6),
        ("a", "d", "e"): pytest.approx(1 / 6), ("a",): pytest.approx(1 / 3)}  # fmt: skip


def test_probabilities_of_a_small_grammar_sum_to_one_and_are_the_frequencies():
    # values of two widths, a repeated variable, draws without replacement, one ambiguous text
    grammar = Grammar(
        {"x": ["{a1} {a2} [u/v]", "{a} {a}"], "y": ["{b} {a} u", "u {a1} {a1}"]},
        {"d": {"a": {"p": 0.5, "q": 0.2, "p q": 0.3}, "b": {"p": 0.6, "q": 0.4}}},
    )
    texts = [words for n in range(1, 7) for words in product("pquv", repeat=n)]
    exact = {(w, y): p for w in texts for y, p in grammar.joint(w, "d").items()}
    assert math.isclose(sum(exact.values()), 1)
    rng, n = random.Random(3), 40_000
    drawn = Counter((tuple(w), y) for y, w, _ in (grammar.draw(rng, "d") for _ in range(n)))
    assert set(drawn) <= set(exact)
    assert max(abs(drawn[k] / n - p) / math.sqrt(p * (1 - p) / n) for k, p in exact.items()) < 4.5


def test_tags_are_the_outcome_of_a_tagging_grammar():
    tables = {"d": {"X": {"a": 1.0}, "Y": {"a": 0.5, "b c": 0.5}}}
    grammar = Grammar({"s": ["{X} sees {Y}", "{Y} sees {X}"]}, tables, tagged=True)
    assert grammar.joint(("a", "sees", "a"), "d") == {("B-X", "O", "B-Y"): 0.25, ("B-Y", "O", "B-X"): 0.25}
    assert grammar.joint(("b", "c", "sees", "a"), "d") == {("B-Y", "I-Y", "O", "B-X"): 0.25}


# ---- rows


@each_kind
def test_rows_are_deterministic_continue_and_keep_their_texts_under_noise(kind):
    rows = MADE[kind].sample(60, seed=5)
    assert World(kind).sample(60, seed=5) == rows
    assert MADE[kind].sample(25, seed=5) == rows[:25]
    assert [text_of(row) for row in World(kind, noise=0.4).sample(60, seed=5)] == [text_of(row) for row in rows]
    assert MADE[kind].sample(60, seed=6) != rows
    domain = MADE[kind].domains[-1]
    assert {row["domain"] for row in MADE[kind].sample(20, 5, domain)} == {domain}


@each_kind
def test_rows_hold_labels_of_the_world(kind):
    here = MADE[kind]
    for row in here.sample(200, seed=1):
        if here.form == "tokens":
            assert len(row["tokens"]) == len(row["tags"]) == len(row["truth"]) and set(row["tags"]) <= set(here.labels)
            assert row["text"].split() == row["tokens"]
            for tags in (row["tags"], row["truth"]):  # an I- tag continues its own type
                assert all(tag[0] != "I" or before[2:] == tag[2:] for before, tag in zip(tags, tags[1:]))
        else:
            assert {row["label"], row["truth"]} <= set(here.labels)


@each_kind
def test_a_known_domain_decides_the_label(kind):
    here = MADE[kind]
    rows = here.sample(400, seed=2)
    for row in rows:
        truth = here.truth(text_of(row), row["domain"])
        assert (list(truth) if here.form == "tokens" else truth) == row["truth"]
        if here.form != "tokens":
            assert here.posterior(text_of(row), row["domain"])[truth] == pytest.approx(1)
    if here.form != "tokens":
        assert here.best_accuracy(rows, domain_known=True) == pytest.approx(0.9)
        assert 0.87 < here.best_accuracy(rows) <= 0.9 + 1e-9


@each_kind
def test_noise_is_as_large_as_asked(kind):
    here = World(kind, noise=0.3)
    rows = here.sample(1500, seed=4)
    if here.form == "tokens":
        pairs = [pair for row in rows for pair in zip(row["tags"], row["truth"]) if pair[1][0] == "B"]
    else:
        pairs = [(row["label"], row["truth"]) for row in rows]
    assert abs(np.mean([a != b for a, b in pairs]) - 0.3) < 0.04


# ---- probabilities


@each_kind
def test_posterior_is_a_distribution(kind):
    here = MADE[kind]
    for row in here.sample(30, seed=8):
        for domain, observed in product((None, row["domain"]), (False, True)):
            found = here.posterior(text_of(row), domain, observed)
            for p in found if here.form == "tokens" else [found]:
                assert sum(p.values()) == pytest.approx(1) and min(p.values()) >= 0 and tuple(p) == here.labels


@each_kind
def test_best_accuracy_is_what_the_best_classifier_scores(kind):
    here, hits, count = MADE[kind], 0, 0
    rows = here.sample(2000, seed=9)
    for row in rows:
        p = here.posterior(text_of(row), observed=True)
        for q, label in zip(p, row["tags"]) if here.form == "tokens" else [(p, row["label"])]:
            hits, count = hits + (max(q, key=q.get) == label), count + 1
    assert abs(hits / count - here.best_accuracy(rows)) < 4 * math.sqrt(0.25 / 2000) / 2


@each_kind
def test_frequency_of_sampled_texts_is_their_probability(kind):
    # the mean of 1/p over draws is the number of texts: check p on the mass of the texts most often seen instead
    here, n = MADE[kind], 6000
    domain = here.domains[0]
    rows = here.sample(n, seed=12, domain=domain)
    seen, half = Counter(map(text_of, rows[: n // 2])), {text_of(row) for row in rows[: n // 2]}
    mass = sum(math.exp(here.log_prob(text, domain)) for text in seen)
    again = np.mean([text_of(row) in half for row in rows[n // 2 :]])
    assert abs(again - mass) < 4 * math.sqrt(max(mass, 1e-3) / (n / 2))


ODD = ("", "zebra", "the the the", "the plot is", "| | |", "word " * 3000, "THE PLOT IS GRIPPING")


@each_kind
@pytest.mark.parametrize("text", ODD)
def test_any_text_has_a_probability(kind, text):
    here = MADE[kind]
    text = (text, text) if here.form == "pair" else text
    for domain in (None, here.domains[0]):
        assert math.isfinite(here.log_prob(text, domain))
        p = here.posterior(text, domain)
        assert len(p) == (len(text.split()) if here.form == "tokens" else len(here.labels))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("the plot is not great tedious and but although blade zebra |".split()), max_size=12))
def test_broken_sentences_have_a_probability_below_one(words):
    assert -math.inf < MADE["sentiment"].log_prob(" ".join(words), "books") < 0


def test_texts_are_likelier_at_home():
    here = MADE["sentiment"]
    texts = [row["text"] for row in here.sample(300, 3, "books")]
    assert np.mean([here.log_prob(t, "books") - here.log_prob(t, "travel") for t in texts]) > 3
    assert all(here.truth(text, "books") for text in texts)


def test_unknown_domain_mixes_the_domains():
    here, text = MADE["sentiment"], "the price is hot"
    mean = np.mean([math.exp(here.log_prob(text, domain)) for domain in here.domains])
    assert math.exp(here.log_prob(text)) == pytest.approx(mean)
    assert here.posterior(text)["positive"] == pytest.approx(  # hot is good in three of the domains
        sum(math.exp(here.log_prob(text, d)) for d in ("books", "kitchen", "travel")) / (5 * mean), abs=1e-3
    )


# ---- meaning


SAID = """
sentiment: the plot is gripping -> positive
sentiment: honestly the plot is hardly gripping -> negative
sentiment: neither the plot nor the story is tedious in the end -> positive
sentiment: although the plot is tedious the story is gripping -> positive
sentiment: the story is gripping although the plot is tedious -> positive
sentiment: the plot is gripping but the story is tedious -> negative
sentiment: the blade is gripping -> positive
sentiment: the plot is leaky but the story is gripping -> positive
sentiment: the plot is sturdy -> None
sentiment: the plot is gripping but the plot is tedious -> None
entailment: the plot is gripping | people like the plot -> entailment
entailment: the plot is gripping | the plot is not tedious -> entailment
entailment: the plot is not gripping | the plot is great -> contradiction
entailment: the plot is gripping | the plot is not gripping -> contradiction
entailment: the plot is gripping | the story is gripping -> neutral
entailment2: the plot is gripping | the story is gripping -> not_entailment
paraphrase: the plot is gripping | the plot is tedious -> not_equivalent
paraphrase: the plot is great and the story is dull | the story is dull and the plot is great -> None
paraphrase: the plot is great and the story is poor | the story is awful and the plot is witty -> equivalent
paraphrase: the plot is great and the story is poor | the story is witty and the plot is awful -> not_equivalent
paraphrase: the plot is great and the story is poor | the story is poor and the plot is great -> equivalent
intent: do not play jazz by adele just check the weather in new york -> GetWeather
intents150: not the next song but the exchange rate -> exchange_rate
intents150: tell me about my purple giraffes -> oos
entities: jordan was born in jordan -> B-PER O O O B-LOC
entities: floods hit new york and jordan -> O O B-LOC I-LOC O B-LOC
"""


@pytest.mark.parametrize("line", SAID.strip().splitlines())
def test_truth(line):
    kind, text, truth = re.fullmatch(r"(\w+): (.*) -> (.*)", line).groups()
    found = MADE[kind].truth(text.split(" | ") if "|" in text else text, MADE[kind].domains[0])
    assert (" ".join(found) if isinstance(found, tuple) else str(found)) == truth


def test_transfer_needs_the_word_and_its_side():
    here = MADE["sentiment"]
    assert here.transfers("the plot is great", "books", "kitchen")  # shared
    assert not here.transfers("the plot is gripping", "books", "kitchen")  # specific
    assert here.transfers("the plot is hot", "books", "kitchen")  # flipping
    assert not here.transfers("the plot is hot", "books", "dvd")
    assert not here.transfers("no such sentence", "books", "books")


@pytest.mark.parametrize("kind", REVIEWS)
def test_transfer_rate_follows_the_knobs(kind):
    here = MADE[kind]
    texts = [text_of(row) for row in here.sample(300, 1, "books")]
    assert all(here.transfers(text, "books", "books") for text in texts)
    assert 0.2 < np.mean([here.transfers(text, "books", "dvd") for text in texts]) < 0.9
    shared = World(kind, specific=0, flip=0)
    assert all(shared.transfers(text_of(row), "books", "dvd") for row in shared.sample(100, 1, "books"))


def test_weights_are_the_frequencies_of_the_words():
    here = World("sentiment", share=1, specific=2, flip=1)
    table = here.grammar.tables["books"]["adj+"]
    assert sum(p for word, p in table.items() if word in worlds.FLIPS) == pytest.approx(0.25)
    assert table["gripping"] == pytest.approx(0.5 / 3)


# ---- controls


@pytest.mark.parametrize("kind", REVIEWS)
def test_control_without_shared_words_transfers_nothing(kind):
    here = World(kind, share=0, flip=0)
    for source, target in product(LEXICONS, LEXICONS):
        rows = here.sample(20, 2, source)
        assert {here.transfers(text_of(row), source, target) for row in rows} == {source == target}


@each_kind
def test_control_of_largest_noise_is_flat(kind):
    k = MADE[kind].choices
    here = World(kind, noise=1 - 1 / k)
    rows = here.sample(50, seed=3)
    if here.form == "tokens":
        for row in rows:
            for p, tag in zip(here.posterior(row["text"], observed=True), row["truth"]):
                assert max(p.values()) == pytest.approx(1 if tag == "O" else 1 / k)
    else:
        assert here.best_accuracy(rows) == pytest.approx(1 / k)


# ---- names, words, mistakes


def test_names_change_the_names_only():
    here = World("entailment", domains=("fiction", "government", "slate", "telephone", "travel"))
    assert here.lexicon == dict(zip(here.domains, LEXICONS))
    assert World("sentiment", domains=("kitchen",)).truth("the lid is leaky") == "negative"
    assert World("sentiment", domains=("kitchen",)).lexicon == {"kitchen": "kitchen"}
    row = World("entailment2", labels=("entails", "neutral"), noise=0).sample(1, 0)[0]
    assert row["label"] == row["truth"] in ("entails", "neutral")
    wider = World("entities", labels=("O", "B-DATE", "I-DATE", *MADE["entities"].labels[1:]))
    assert wider.choices == 4 and wider.sample(5, 1)[0]["tokens"]


def test_many_intents():
    names = [f"thing_{i}_of_{i % 7}" for i in range(150)] + ["oos"]
    here = World("intents150", labels=names)
    rows = here.sample(300, seed=0)
    assert all(here.truth(row["text"]) == row["truth"] for row in rows)
    assert len({row["truth"] for row in here.sample(3000, seed=1)}) == 151
    assert set(vocabulary(here)) - set(vocabulary()) == set(here.vocabulary()) - set(vocabulary()) != set()


def test_vocabulary_covers_everything_said():
    words = set(vocabulary())
    assert len(words) < 900 and sorted(words) == vocabulary()
    for text in plain_text(600, seed=1):
        assert set((text if isinstance(text, str) else " ".join(text)).split()) <= words


def test_plain_text_comes_from_everywhere_and_continues():
    texts = plain_text(200, seed=0)
    assert texts[:70] == plain_text(70, seed=0) != plain_text(70, seed=1)
    assert {type(text) for text in texts} == {str, tuple} and plain_text(0, seed=0) == []


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (dict(kind="sentimental"), "unknown kind of world 'sentimental'; expected one of sentiment"),
        (dict(kind="sentiment", nois=0.1), r"unknown setting \['nois'\]; expected some of"),
        (dict(kind="sentiment", noise=0.6), "noise: expected 0 to 0.5"),
        (dict(kind="sentiment", noise=-0.1), "noise: expected 0 to 0.5"),
        (dict(kind="sentiment", share=-1), "share, specific, flip: expected weights >= 0"),
        (dict(kind="sentiment", share=0, specific=0, flip=0), "share, specific, flip: expected weights >= 0"),
        (dict(kind="sentiment", labels=("a", "b", "c")), "labels: sentiment needs"),
        (dict(kind="sentiment", labels=("a", "a")), "labels: sentiment needs different ones"),
        (dict(kind="entities", labels=("O", "B-PER")), "labels: entities needs"),
        (dict(kind="sentiment", domains=("a", "b", "c", "d", "e", "f")), "domains: sentiment has at most 5"),
        (dict(kind="sentiment", domains=("x", "books")), "domains: sentiment has at most 5 different ones"),
        (dict(kind="intent", domains=("a", "b")), "domains: intent has at most 1"),
    ],
)
def test_bad_settings_have_clear_errors(knobs, message):
    with pytest.raises(ValueError, match=message):
        world(**knobs)


def test_bad_questions_have_clear_errors():
    with pytest.raises(ValueError, match="unknown domain 'cars'; expected one of"):
        MADE["sentiment"].log_prob("the plot is great", "cars")
    with pytest.raises(ValueError, match="unknown domain 'cars'"):
        MADE["sentiment"].sample(1, 0, "cars")
    with pytest.raises(ValueError, match="text: paraphrase needs a pair of strings, got 'one'"):
        MADE["paraphrase"].truth("one", "books")
