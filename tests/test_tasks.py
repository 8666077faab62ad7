"""Tasks and splits: the three sources, what they ask of the hub, and what they say when something is wrong."""

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes.data import sources
from kdnotes.data.loading import as_dataset, folder_task, load_task
from kdnotes.data.sources import data_sha256, parquet_files
from kdnotes.data.splits import Groups, deal, phrase_groups, stratified_order, withhold
from kdnotes.data.tasks import TASKS, Task, register_task, task

datasets.disable_progress_bars()


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr("kdnotes.data.tasks.TASKS", dict(TASKS))


def frame(rows, start=0, labels=("no", "yes")):
    return pd.DataFrame(
        {
            "body": [f"ticket {i}" for i in range(start, start + rows)],
            "queue": [labels[i % len(labels)] for i in range(rows)],
            "site": [("north", "south")[i // 2 % 2] for i in range(rows)],
        }
    )


@pytest.fixture
def folder(tmp_path):
    frame(80).to_parquet(tmp_path / "train.parquet")
    frame(20, 80).to_parquet(tmp_path / "test.parquet")
    return tmp_path


@pytest.fixture
def tickets(folder):
    return folder_task("tickets", folder, text="body", label="queue", domain="site")


# ---- splits

rows = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), min_size=1, max_size=200)


@given(rows, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_prefix_is_stratified(rows, seed):
    labels, domains = map(list, zip(*rows, strict=True))
    order = stratified_order(labels, domains, seed)
    assert sorted(order) == list(range(len(rows)))
    strata, distinct = set(rows), len(set(labels))
    assert len({labels[i] for i in order[:distinct]}) == distinct
    for n in {1, len(rows) // 3, len(rows) // 2, len(rows)}:
        for stratum in strata:
            size = rows.count(stratum)
            taken = sum(rows[i] == stratum for i in order[:n])
            assert abs(taken - n * size / len(rows)) <= 1 + len(strata) * size / len(rows) + distinct


@given(rows.filter(lambda rows: len(rows) >= 16), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_deal_is_disjoint_and_nested(rows, seed):
    labels, domains = map(list, zip(*rows, strict=True))
    everything, select = deal(labels, domains, seed=seed)
    assert sorted([*everything, *select]) == list(range(len(rows)))
    small, same = deal(labels, domains, n_train=len(everything) // 2, seed=seed)
    assert list(small) == list(everything[: len(small)]) and list(same) == list(select)
    for less, more in [(4, 8), (8, len(rows))]:
        few, many = deal(labels, domains, budget=less, seed=seed), deal(labels, domains, budget=more, seed=seed)
        assert sum(map(len, few)) == less and not set(few[0]) & set(few[1])
        assert set(few[0]) <= set(many[0]) and set(few[1]) <= set(many[1])


@pytest.mark.parametrize("asked", [dict(n_train=95), dict(n_select=100), dict(n_select=101), dict(budget=101)])
def test_deal_has_only_the_rows_it_has(asked):
    with pytest.raises(ValueError, match="to select on: there are only 100"):
        deal([0, 1] * 50, **asked)


def within(phrase, text):
    return f" {phrase} " in f" {text} "


def phrases(rng, sentences=60):
    """Sentences of few words, and phrases of them."""
    rows = []
    for _ in range(sentences):
        words = [f"w{i}" for i in rng.integers(30, size=rng.integers(5, 12))]
        rows.append(" ".join(words))
        for start, size in zip(rng.integers(0, 4, size=4), rng.integers(1, 7, size=4)):
            rows.append(" ".join(words[start : start + size]))
    return rows


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_rows_that_share_a_long_phrase_are_dealt_out_together(seed):
    rng = np.random.default_rng(seed)
    texts = phrases(rng)
    groups = phrase_groups(texts)
    wholes = {text for text in texts if not any(within(text, other) for other in set(texts) - {text})}
    assert groups.whole.tolist() == [text in wholes for text in texts]
    left, second = withhold(groups, 10)
    assert set(second) <= set(np.flatnonzero(groups.whole)) and not set(second) & set(left)
    labels = rng.integers(2, size=len(left)).tolist()
    train, select = deal(labels, n_select=30, groups=groups.among(left))
    assert groups.whole[left[select]].all()
    for held in (second, left[select]):
        for text in np.take(texts, left[train]):
            if len(text.split()) >= 4:
                assert not any(within(text, texts[i]) for i in held)
    assert len(select) == 30 and not any(within(texts[i], text) for i in left[select] for text in np.take(texts, left[train]))


def test_too_few_groups_are_named():
    with pytest.raises(ValueError, match="3 groups to withhold: there are only 2"):
        withhold(phrase_groups(["a b c d", "e f g h"]), 3)
    with pytest.raises(ValueError, match="2 rows to select on: there are only 0 whole texts in groups that can be held out"):
        deal([0, 1] * 4, n_select=2, groups=Groups(np.zeros(8, int), np.ones(8, bool)))


def test_order_of_a_small_stratum_is_fair():
    """A stratum of one row comes early as often as late."""
    places = [list(stratified_order([[0]] * 9 + [[0, 0, 0]], ["a"] * 9 + ["b"], seed)).index(9) for seed in range(600)]
    assert 4 < np.mean(places) < 5


def test_order_covers_tags():
    tags = [[0, 0]] * 50 + [[0, 1, 2]] + [[0, 3]]
    assert {tag for i in stratified_order(tags, seed=3)[:4] for tag in tags[i]} == {0, 1, 2, 3}


# ---- the registry


def test_registry_is_consistent():
    assert all(name == this.name for name, this in TASKS.items())
    assert all((this.kind == "tokens") == (this.metrics == ("entity_f1",)) for this in TASKS.values())
    for this in (this for this in TASKS.values() if this.kind == "tokens"):
        assert this.labels[0] == "O" and all(label[:2] in ("B-", "I-") for label in this.labels[1:])
    assert task(TASKS["sst2"]) is TASKS["sst2"]


def test_register_refuses_another_task_of_the_same_name(registry, tickets):
    assert register_task(tickets) is register_task(tickets)
    with pytest.raises(ValueError, match="'tickets' is taken"):
        register_task(Task("tickets", "single", ("body",), "queue", ("a", "b")))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(kind="triple"), "unknown kind 'triple'"),
        (dict(text="body"), "takes a tuple of 1"),
        (dict(text=("a", "b")), "takes a tuple of 1"),
        (dict(labels=("a",)), "at least two names"),
        (dict(labels=("a", "a")), "all different"),
        (dict(metrics=("acuracy",)), "unknown metric 'acuracy'; expected perhaps accuracy"),
    ],
)
def test_a_task_that_contradicts_itself(fields, message):
    with pytest.raises(ValueError, match=message):
        Task(**{**dict(name="t", kind="single", text=("body",), label="y", labels=("a", "b")), **fields})


# ---- a folder of one's own


def test_three_lines(registry, folder):
    register_task(folder_task("tickets", folder, text="body", label="queue"))
    data = load_task("tickets", "local", n_train=16)
    assert data["train"].features["queue"].names == ["no", "yes"] and data["train"].column_names == ["body", "queue"]
    assert {split: len(part) for split, part in data.items()} == {"train": 16, "select": 8, "report": 20}
    truth = dict(zip(frame(80).body, frame(80).queue == "yes", strict=True))
    assert all(truth[row["body"]] == row["queue"] for split in ("train", "select") for row in data[split])


def test_splits_by_domain(tickets):
    assert tickets.domains == ("north", "south") and tickets.labels == ("no", "yes")
    data = load_task(tickets, "local", domains="south", n_report=6)
    assert {row["site"] for part in data.values() for row in part} == {"south"}
    assert len(data["report"]) == 6 and sum(data["report"]["queue"]) == 3


def test_report_is_the_same_for_every_seed_and_train_is_not(tickets):
    one, other = (load_task(tickets, "local", seed=seed, n_train=20) for seed in (0, 1))
    again = load_task(tickets, "local", seed=0, n_train=20)
    assert one["report"][:] == other["report"][:]
    assert all(one[split][:] == again[split][:] != other[split][:] for split in ("train", "select"))


def test_shards_and_pairs(tmp_path):
    rows = pd.DataFrame({"a": list("uvwxyz"), "b": list("abcdef"), "same": [True, False] * 3})
    rows[:3].to_parquet(tmp_path / "train-00000-of-00002.parquet")
    rows[3:].to_parquet(tmp_path / "train-00001-of-00002.parquet")
    rows.to_parquet(tmp_path / "validation.parquet")
    pair = folder_task("pair", tmp_path, text=["a", "b"], label="same")
    assert pair.kind == "pair" and len(parquet_files(pair)["train"]) == 2
    assert sum(load_task(pair, "local")["report"]["same"]) == 3


def test_tokens(tmp_path):
    rows = pd.DataFrame({"words": [["big", "apple"], ["go"]] * 5, "tags": [["O", "B-x"], ["O"]] * 5})
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    tokens = folder_task("tokens", tmp_path, text="words", label="tags")
    assert (tokens.kind, tokens.labels, tokens.metrics) == ("tokens", ("B-x", "O"), ("entity_f1",))
    tags = load_task(tokens, "local")["report"]["tags"][:]
    assert [1, 0] in tags and [0, 1] not in tags


def test_number_labels(tmp_path):
    for split in ("train", "test"):
        pd.DataFrame({"x": list("abcdefgh"), "y": [1.0, 2.0, 10.0, 1.0] * 2}).to_parquet(tmp_path / f"{split}.parquet")
    stars = folder_task("stars", tmp_path, text="x", label="y")
    assert stars.labels == ("1", "2", "10")
    assert sorted(load_task(stars, "local")["report"]["y"]) == [0, 0, 0, 0, 1, 1, 2, 2]


def test_a_rare_label_stays_in_train(tmp_path):
    rare = pd.concat([frame(50), frame(1, 50, ("rare",))])
    rare.to_parquet(tmp_path / "train.parquet")
    rare.to_parquet(tmp_path / "test.parquet")
    this = folder_task("rare", tmp_path, text="body", label="queue")
    for seed in range(5):
        assert this.labels.index("rare") in load_task(this, "local", n_train=5, seed=seed)["train"]["queue"]


# ---- errors, each one line


def fails(message, kind=ValueError, call=load_task, **arguments):
    with pytest.raises(kind, match=message) as caught:
        call(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="sst22"), "unknown task 'sst22'; expected perhaps sst2"),
        (dict(name="sst2", source="disk"), "unknown source 'disk'; expected .*world"),
        (dict(name="sst2", n_train=-1), "n_train=-1: expected a positive"),
        (dict(name="sst2", n_report=2.5), "n_report=2.5: expected a positive"),
        (dict(name="sst2", n_select=True), "n_select=True: expected a positive"),
        (dict(name="sst2", budget=3), "budget=3"),
        (dict(name="sst2", budget=30, n_select=3), "budget=30"),
        (dict(name="amazon", domains=["book"]), "unknown domain of task 'amazon' 'book'; expected perhaps books"),
        (dict(name="sst2", source="local", domains="books"), "'sst2' has no domain column"),
        (dict(name="agnews"), "'agnews' has no generated world"),
    ],
)
def test_arguments_are_checked_before_any_work(arguments, message, monkeypatch):
    monkeypatch.setenv("KDNOTES_DATA", "/nowhere")
    fails(message, **arguments)


def test_folder_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("KDNOTES_DATA", raising=False)
    fails("set the environment variable KDNOTES_DATA .* 'snips'", FileNotFoundError, name="snips_slots", source="local")
    fails("no folder '.*sst2' for task 'sst2'", FileNotFoundError, name="sst2", source="local", data_dir=tmp_path)
    (tmp_path / "sst2").mkdir()
    fails("no train.parquet in .*; found nothing", FileNotFoundError, name="sst2", source="local", data_dir=tmp_path)
    frame(4).to_parquet(tmp_path / "sst2" / "train.parquet")
    fails(
        "no test.parquet or validation_matched.parquet or validation.parquet in .*; found train.parquet",
        FileNotFoundError,
        name="sst2",
        source="local",
        data_dir=tmp_path,
    )
    frame(4).to_parquet(tmp_path / "sst2" / "validation.parquet")
    fails(
        "train.parquet' has no column 'sentence' or 'label'; found body, queue, site",
        name="sst2",
        source="local",
        data_dir=tmp_path,
    )


def test_data_errors(folder, tickets):
    def after(test=None, train=None):
        (frame(20) if test is None else test).to_parquet(folder / "test.parquet")
        (frame(80) if train is None else train).to_parquet(folder / "train.parquet")
        return dict(name=tickets, source="local")

    fails(
        "cannot read the files in .*: Couldn't cast array of type .*string to null", **after(train=frame(80).assign(queue=None))
    )
    fails("row 0 has queue='maybe'; expected no, yes or an id below 2", **after(frame(20, 0, ("maybe",))))
    fails("row 3 has body=None; expected a text", **after(frame(20).assign(body=["a", "b", "c", None] * 5)))
    fails("holds only the label 'yes'", **after(train=frame(80, 0, ("yes",))))
    fails("train.parquet' holds no rows", **after(train=frame(80)[:0]))
    fails("no labelled rows to train on; looked for train", **after(train=frame(80, 0, (None,)).astype({"queue": "str"})))
    fails("no labelled rows to report on; looked for test or", **after(frame(20, 0, (None,)).astype({"queue": "str"})))
    fails("no labelled rows of domain south to report on", **after(frame(20).assign(site="north")), domains="south")
    fails("999 rows to train on and 8 to select on: there are only 80", **after(), n_train=999)
    fails("n_report=999: local tickets has 20 rows", **after(), n_report=999)


def test_damaged_files(folder, tickets):
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[:200])
    fails("cannot read '.*train.parquet'", name=tickets, source="local")
    middle = bytearray(whole)
    middle[4:600] = bytes(596)
    (folder / "train.parquet").write_bytes(middle)
    fails("cannot read the files in", name=tickets, source="local")


def test_words_and_tags_must_match():
    fails(
        "row 0 has 2 words and 1 tags", call=as_dataset, task=task("conll2003"), rows={"tokens": [["a", "b"]], "ner_tags": [[0]]}
    )
    fails(
        "row 0 has ner_tags=0; expected a list of O, B-PER",
        call=as_dataset,
        task=task("conll2003"),
        rows={"tokens": [["a"]], "ner_tags": [0]},
    )
    fails(
        "row 0 has tokens=3; expected a list of words",
        call=as_dataset,
        task=task("conll2003"),
        rows={"tokens": [3], "ner_tags": [[0]]},
    )
    fails(
        "row 1 has label=7; expected negative, positive or an id below 2",
        call=as_dataset,
        task=task("sst2"),
        rows={"sentence": ["a", "b"], "label": [0, 7]},
    )
    fails(
        r"row 0 has label=\[0\]; expected negative, positive",
        call=as_dataset,
        task=task("sst2"),
        rows={"sentence": ["a"], "label": [[0]]},
    )


# ---- the hub, its network replaced

HUB_CALLS = {
    **{name: ("nyu-mll/glue", name, None) for name in ("sst2", "mrpc", "qqp", "qnli", "rte")},
    "mnli": ("nyu-mll/multi_nli", None, None),
    "scitail": ("allenai/scitail", "tsv_format", None),
    "clinc150": ("clinc/clinc_oos", "plus", None),
    "conll2003": ("eriktks/conll2003", None, "refs/convert/parquet"),
    "snips": ("bkonkle/snips-joint-intent", None, None),
    "snips_slots": ("bkonkle/snips-joint-intent", None, None),
    "agnews": ("fancyzhx/ag_news", None, None),
    "imdb": ("stanfordnlp/imdb", None, None),
}


def hub(monkeypatch, splits):
    calls = []

    def load_dataset(path, name=None, *, revision=None):
        calls.append((path, name, revision))
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def raw(this, labels, where="", names=None):
    """A hub split with the task's columns under the hub's names, and one column that nobody asked for."""
    theirs = {ours: old for old, ours in this.hub_columns.items()}
    tokens = this.kind == "tokens"
    rows = {
        theirs.get(name, name): [f"{where} {i}".split() if tokens else f"{where} {i}" for i in range(len(labels))]
        for name in this.text
    }
    rows |= {this.label: [[0, i] for i in labels] if tokens else labels, "idx": list(range(len(labels)))}
    rows |= {this.domain: [this.domains[i % len(this.domains)] for i in range(len(labels))]} if this.domain else {}
    split = datasets.Dataset.from_dict(rows)
    label = datasets.ClassLabel(names=list(names or this.labels))
    return split.cast_column(this.label, datasets.List(label) if tokens else label)


@pytest.mark.parametrize("name", HUB_CALLS)
def test_hub_calls(name, monkeypatch):
    this = task(name)
    labels = [i % len(this.labels) for i in range(2 * len(this.labels) + 20)]
    calls = hub(
        monkeypatch,
        {"train": raw(this, labels, "train"), "test": raw(this, labels, "test"), "validation": raw(this, labels, "dev")},
    )
    data = load_task(name, "hub")
    assert calls == [HUB_CALLS[name]]
    assert data["train"].column_names == list(this.columns)
    assert "test" in str(data["report"][0][this.text[0]]) and len(data["report"]) == len(labels)


def test_every_task_is_on_the_hub_or_says_so(monkeypatch):
    assert set(TASKS) - set(HUB_CALLS) == {"amazon", "amazon_flat", "mnli_flat"}
    calls = hub(monkeypatch, {})
    fails("'amazon': the hub has no copy with columns text, label, domain; use source='local'", name="amazon", source="hub")
    assert not calls


def test_unlabelled_test_split_is_not_reported_on(monkeypatch):
    this = task("sst2")
    hub(monkeypatch, {"train": raw(this, [0, 1, -1] * 10), "test": raw(this, [-1] * 9), "validation": raw(this, [0, 1, -1])})
    data = load_task("sst2", "hub")
    assert len(data["report"]) == 2 and sum(len(data[split]) for split in ("train", "select", "report2")) == 20


def test_mnli_reports_on_matched(monkeypatch):
    this = task("mnli")
    hub(
        monkeypatch,
        {
            "train": raw(this, [0, 1, 2] * 20),
            "validation_matched": raw(this, [0, 1, 2] * 5, "matched"),
            "validation_mismatched": raw(this, [0, 1, 2] * 5, "mismatched"),
        },
    )
    data = load_task("mnli", "hub", domains=["slate", "travel"])
    assert all(row["premise"].startswith("matched") for row in data["report"])
    assert {row["genre"] for part in data.values() for row in part} == {"slate", "travel"}


def test_snips_text_is_split_into_words(monkeypatch):
    rows = {
        "input": ["play some jazz", "rate it 5"] * 10,
        "intent": ["PlayMusic", "RateBook"] * 10,
        "slots": ["O O B-genre", "O O B-rating_value"] * 10,
    }
    hub(monkeypatch, {"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(rows)})
    row = next(row for row in load_task("snips_slots", "hub")["report"] if row["tokens"][0] == "play")
    assert row["tokens"] == ["play", "some", "jazz"]
    assert [task("snips_slots").labels[tag] for tag in row["slots"]] == ["O", "O", "B-genre"]
    row = next(row for row in load_task("snips", "hub")["report"] if row["text"].startswith("play"))
    assert task("snips").labels[row["intent"]] == "PlayMusic"


def test_swapped_label_names_are_an_error(monkeypatch):
    this = task("rte")
    hub(monkeypatch, {"train": raw(this, [0, 1] * 9, names=this.labels[::-1]), "test": raw(this, [0, 1])})
    fails(
        "hub rte/train: the labels are not_entailment, entailment; expected entailment, not_entailment", name="rte", source="hub"
    )


def test_no_network(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fails(
        "cannot load 'nyu-mll/glue' from the hub .Couldn't reach the hub.; source='world' needs no network",
        name="sst2",
        source="hub",
    )


# ---- fingerprints


def test_fingerprints(tickets, folder, monkeypatch):
    before = data_sha256(tickets, "local")
    assert before == data_sha256(tickets, "local") and len(before) == 64
    assert data_sha256(Task(**{**vars(tickets), "labels": ("yes", "no")}), "local") != before
    frame(21, 80).to_parquet(folder / "test.parquet")
    assert data_sha256(tickets, "local") != before
    this, digests = task("rte"), []
    for labels in ([0, 1, 0], [0, 1, 0], [0, 1, 1]):
        hub(monkeypatch, {"train": raw(this, labels), "test": raw(this, labels)})
        sources._rows_sha256.cache_clear()  # the hub's rows do not change while we run, but those of this test do
        digests.append(data_sha256("rte", "hub"))
    assert digests[0] == digests[1] != digests[2]
    fails("unknown source", call=data_sha256, name="rte", source="web")


# ---- worlds


@pytest.mark.parametrize("name", [name for name, this in TASKS.items() if this.world])
def test_world(name):
    pytest.importorskip("kdnotes.data.worlds")
    this, data = task(name), load_task(name)
    assert {split: len(part) for split, part in data.items()} == {"train": 5400, "select": 600, "report": 1500}
    texts = {split: {str([row[column] for column in this.text]) for row in part} for split, part in data.items()}
    assert not texts["report"] & (texts["train"] | texts["select"])
    assert data["train"].column_names == list(this.columns)
    labels = data["train"][this.label][:]
    assert len({tag for label in labels for tag in (label if this.kind == "tokens" else [label])}) > 1
    if this.domain:
        assert set(data["report"][this.domain]) == set(this.domains)


def test_world_of_other_domains():
    pytest.importorskip("kdnotes.data.worlds")
    assert load_task("sst2", domains="kitchen")["train"][:] != load_task("sst2")["train"][:]
    assert data_sha256("sst2") == data_sha256("sst2") != data_sha256("mrpc")


# ---- the real data sets

REAL = {  # train rows, report rows, train rows of each label where few
    "sst2": (67349, 872, None),
    "mrpc": (3668, 408, [1194, 2474]),
    "rte": (2490, 277, [1249, 1241]),
    "qnli": (4462, 1001, None),
    "qqp": (31436, 10000, None),
    "mnli": (43748, 9815, None),
    "amazon": (5600, 1600, [2800, 2800]),
    "scitail": (548, 2126, [273, 275]),
    "snips": (13084, 700, None),
    "snips_slots": (13084, 700, None),
    "clinc150": (15250, 5500, None),
    "conll2003": (14041, 3453, None),
    "imdb": (25000, 25000, [12500, 12500]),
    "agnews": (18278, 7600, None),
}


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name, this in TASKS.items() if this.world_noise is None])
def test_real(name):
    this, (n_train, n_report, counts) = task(name), REAL[name]
    data = load_task(name, "local")
    assert len(data["report"]) == n_report
    if not this.phrases:  # where some are, groups of them are put aside
        assert len(data["select"]) == min(1000, n_train // 10)
        assert len(data["train"]) + len(data["select"]) == n_train
    if this.kind != "tokens":
        labels = [*data["train"][this.label], *data["select"][this.label]]
        assert set(labels) == set(range(len(this.labels)))
        assert counts is None or np.bincount(labels).tolist() == counts
    assert len(data_sha256(name, "local")) == 64


@pytest.mark.data
def test_real_label_ids():
    sst2, clinc = task("sst2"), task("clinc150")
    films = load_task("sst2", "local")["report"]
    charming = next(row for row in films if row["sentence"].startswith("it 's a charming and often affecting"))
    assert sst2.labels[charming["label"]] == "positive"
    files = pd.read_parquet(parquet_files(clinc)["test"][0])
    assert all(clinc.labels[i] == name for i, name in files[["intent", "intent_name"]].drop_duplicates().to_numpy())
    news = load_task("conll2003", "local")
    german = next(row for split in ("train", "select") for row in news[split] if row["tokens"][:2] == ["EU", "rejects"])
    assert [task("conll2003").labels[tag] for tag in german["ner_tags"][:3]] == ["B-ORG", "O", "B-MISC"]


@pytest.mark.data
def test_real_phrases_are_dealt_out_by_group():
    every = sources.read_source(task("sst2"), "local")["train"]["sentence"]
    by_word, by_four = phrase_groups(every, words=1), phrase_groups(every)
    assert by_word.whole.sum() == 6885
    assert [np.bincount(found.of[found.whole]).max() for found in (by_word, by_four)] == [6620, 18]
    data = load_task("sst2", "local")
    train = "|".join(f" {text.strip()} " for text in data["train"]["sentence"][:])
    inside = [f" {text.strip()} " in train for text in data["select"]["sentence"][:]]
    assert len(inside) == 626 and not any(inside), "by row it would be .876"
    second = data["report2"]["sentence"][:]
    assert len(second) >= 600 and not any(f" {text.strip()} " in train for text in second) and len(data["report"]) == 872
    assert load_task("sst2", "local", seed=1)["report2"]["sentence"][:] == second


@pytest.mark.data
def test_real_budget_of_a_scarce_task():
    data = load_task("amazon", "local", budget=64, domains="dvd")
    assert len(data["train"]) == 48 and len(data["select"]) == 16 and len(data["report"]) == 400
    assert sum(data["train"]["label"]) == 24
    every = load_task("scitail", "local", budget=548)
    assert len(every["train"]) + len(every["select"]) == 548


def test_no_two_tasks_of_the_world_have_the_same_rows():
    seen = {}
    for name in ("sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "scitail"):
        report = load_task(name)["report"]
        rows = repr(report[:20][task(name).text[0]])
        assert rows not in seen, f"{name} has the rows of {seen[rows]}"
        seen[rows] = name
