"""The metrics equal scikit-learn's and seqeval's; the bootstrap is paired, deterministic and strict."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kdnotes.core import metrics
from kdnotes.core.metrics import (
    METRICS,
    Comparison,
    bootstrap,
    count_entities,
    flatten,
    interval,
    kept,
    majority,
    paired_difference,
    pooled_difference,
    replicates,
    score,
)

TAGS = ("O", "B-a", "I-a", "B-b", "I-b")


@st.composite
def pairs(draw, classes):
    """Labels and predictions of one length."""
    n = draw(st.integers(1, 40))
    ids = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)
    return np.array(draw(ids)), np.array(draw(ids))


@st.composite
def tagged(draw):
    """Sentences of tag ids, some of them empty, and predictions of the same lengths."""
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    row = lambda n: draw(st.lists(st.integers(0, len(TAGS) - 1), min_size=n, max_size=n))  # noqa: E731
    return [row(n) for n in lengths], [row(n) for n in lengths]


@given(pairs(2))
def test_f1_is_sklearns(arrays):
    assert score("f1", *arrays) == pytest.approx(f1_score(*arrays, labels=[1], average="micro", zero_division=0))


@given(pairs(5))
def test_multiclass_metrics_are_sklearns(arrays):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks on single-class input
        assert score("accuracy", *arrays) == pytest.approx(accuracy_score(*arrays))
        assert score("macro_f1", *arrays) == pytest.approx(f1_score(*arrays, average="macro", zero_division=0))
        assert score("mcc", *arrays) == pytest.approx(matthews_corrcoef(*arrays), abs=1e-12)


@given(tagged())
@settings(deadline=None)
def test_entity_f1_is_seqevals(rows):
    from seqeval.metrics import f1_score as seqeval_f1

    words = [[[TAGS[i] for i in sentence] for sentence in x] for x in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = seqeval_f1(*words, zero_division=0)
    assert score("entity_f1", *rows, TAGS) == pytest.approx(expected)
    assert score("entity_f1", *map(flatten, rows), TAGS) == pytest.approx(expected)


@given(tagged())
@settings(deadline=None)
def test_entity_counts_belong_to_their_sentence(rows):
    together = count_entities(*rows, TAGS)
    apart = [count_entities([g], [p], TAGS)[0] for g, p in zip(*rows, strict=True)]
    assert np.array_equal(together, np.stack(apart))


@given(st.integers(0, 10_000), st.sampled_from(["accuracy", "f1", "macro_f1", "mcc"]))
@settings(max_examples=20, deadline=None)
def test_replicates_equal_the_slow_bootstrap(number, metric):
    rng = np.random.default_rng(number)
    labels, predictions = rng.integers(3, size=17), rng.integers(3, size=(2, 17))
    fast = replicates(metric, labels, predictions, draws=5, seed=3)
    for b in range(6):
        drawn = np.repeat(np.arange(17), metrics._weights(17, 5, (3, 0))[b])
        seeds = np.repeat([0, 1], metrics._weights(2, 5, (3, 1))[b])
        assert fast[b] == pytest.approx(np.mean([score(metric, labels[drawn], predictions[s][drawn]) for s in seeds]))


def test_flattened_tokens_are_resampled_by_sentence():
    gold, answer = [[1, 2, 0], [3, 4]] * 20, [[1, 2, 0], [0, 0]] * 20
    found = bootstrap("entity_f1", flatten(gold), [flatten(answer), flatten(gold)], TAGS)
    assert found.value == pytest.approx((2 / 3 + 1) / 2)
    assert found.low < found.value < found.high


def test_predictions_where_labels_are_ignored_do_not_matter():
    gold, answer = flatten([[1, 2], [0]]), flatten([[1, 2], [0]])
    answer[gold == -100] = 4
    assert score("entity_f1", gold, answer, TAGS) == 1
    assert score("entity_f1", gold, majority(gold, len(gold)), TAGS) == 0


def test_bootstrap_is_deterministic_and_has_its_own_seed():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(2, size=200), rng.integers(2, size=(3, 200))
    first = bootstrap("mcc", labels, predictions)
    np.random.seed(1)
    metrics._weights.cache_clear()
    assert bootstrap("mcc", labels, predictions) == first
    assert bootstrap("mcc", labels, predictions, seed=1) != first


def test_large_splits_are_scored_in_blocks():
    labels = np.random.default_rng(0).integers(2, size=30_000)
    found = replicates("accuracy", labels, [1 - labels, labels], draws=300)
    assert set(found) <= {0.0, 0.5, 1.0}
    assert found[0] == 0.5


def test_equal_methods_differ_by_exactly_nothing():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(2, size=100), rng.integers(2, size=(3, 100))
    assert paired_difference("macro_f1", labels, predictions, predictions) == (0, 0, 0)


def test_unequal_numbers_of_seeds_can_be_compared():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=100)
    found = paired_difference("accuracy", labels, [labels], rng.integers(2, size=(3, 100)))
    assert found.low > 0


def test_pooling_is_the_mean_over_tasks():
    rng = np.random.default_rng(0)
    parts = [
        Comparison(m, rng.integers(2, size=n), rng.integers(2, size=(2, n)), rng.integers(2, size=(2, n)))
        for m, n in (("accuracy", 50), ("mcc", 80))
    ]
    expected = np.mean([paired_difference(*p).value for p in parts])
    assert pooled_difference(parts).value == pytest.approx(expected)


def test_kept_on_scores_and_on_replicates():
    assert kept(0.8, 0.9, 0.5) == pytest.approx((8 / 9, 0.75))
    assert np.isnan(kept(0.8, 0.0, 0.0)).all()
    assert kept(np.array([0.8, 0.7]), np.array([0.9, 0.5]), 0.5).chance_corrected == pytest.approx([0.75, np.nan], nan_ok=True)


def test_interval_leaves_out_undefined_draws():
    assert interval(np.array([1.0, np.nan, 1.0, 1.0])) == (1, 1, 1)
    assert np.isnan(interval(np.array([1.0, np.nan])).low)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: score("accuracy", [0, 1], [0]), "expected two equal"),
        (lambda: score("accuracy", [], []), "expected two equal"),
        (lambda: score("accuracy", [0, 3], [0, 1], ("no", "yes")), "label ids reach from 0 to 3, expected 0 to 1"),
        (lambda: score("accuracy", [0, 1], [-100, 1]), "prediction ids reach from -100"),
        (lambda: score("entity_f1", [0, -100], [0, -100]), "label_names"),
        (lambda: score("entity_f1", [0, 1], [0, 1], TAGS), "close every sentence"),
        (lambda: score("entity_f1", [0, -100], [9, -100], TAGS), "expected 0 to 4"),
        (lambda: bootstrap("accuracy", [0, 1], [0, 1]), "expected two equal"),
        (lambda: bootstrap("accuracy", [0, 1], [[0, 1]], level=95), "level is 95"),
        (lambda: pooled_difference([]), "no comparisons"),
        (lambda: majority([], 3), "no training labels"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_metric_is_named():
    with pytest.raises(KeyError, match="unknown metric 'bleu', expected one of accuracy"):
        score("bleu", [0], [0])


def test_every_metric_is_in_its_range():
    rng = np.random.default_rng(0)
    for name in METRICS:
        ids = flatten(rng.integers(5, size=(30, 4))), flatten(rng.integers(5, size=(30, 4)))
        if name != "entity_f1":
            ids = tuple(x[x != -100] for x in ids)
        names = ["oos", *TAGS[1:]] if "scope" in name else TAGS
        assert -1 <= score(name, *ids, names) <= 1


@given(st.integers(0, 10_000))
def test_in_and_out_of_scope_are_accuracies_of_parts(number):
    rng, names = np.random.default_rng(number), ["pay", "oos", "call"]
    labels, said = rng.integers(3, size=(2, 40))
    labels[:2] = 0, 1
    right, outside = labels == said, labels == 1
    assert score("in_scope_accuracy", labels, said, names) == pytest.approx(right[~outside].mean())
    assert score("out_of_scope_recall", labels, said, names) == pytest.approx(right[outside].mean())
    assert np.isnan(score("out_of_scope_recall", [0, 2], [0, 0], names)), "there are none"


def test_import_is_light():
    heavy = "{'torch', 'sklearn', 'seqeval', 'matplotlib', 'pandas'}"
    code = f"import kdnotes.core.metrics, sys; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
