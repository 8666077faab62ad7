"""What users did and what must not happen: a wrong student without a word, or a student that is lost after the work is done."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, DatasetDict, List
from test_methods import LABELS, QUICK, TOKENIZER, WORDS, data, small
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    ByT5Tokenizer,
    DebertaConfig,
    DebertaV2Config,
    MPNetConfig,
    RobertaConfig,
    XLNetConfig,
    set_seed,
)

import kdnotes
from kdnotes.core.metrics import score
from kdnotes.data.labels import read_rows
from kdnotes.experiments.specs import unused
from kdnotes.learning.problem import Problem
from kdnotes.learning.training import ObjectiveTrainer
from kdnotes.methods import METHODS, distill, fine_tune
from kdnotes.models.card import Card
from kdnotes.models.checks import load_teacher
from kdnotes.models.encoders import label_maps, longest_text, make_student, small_bert, word_tokenizer
from kdnotes.models.export import to_onnx
from kdnotes.models.rows import encode, predict, predicted_labels

LONGER = dict(epochs=12, lr=3e-3, max_length=16)
BRIEF = QUICK | dict(layers=1)


@pytest.fixture
def untrained(monkeypatch):
    """Nothing may begin to train."""
    monkeypatch.setattr(ObjectiveTrainer, "train", lambda *_, **__: pytest.fail("began to train"))


@pytest.fixture(scope="module")
def teacher():
    """One that is right about `good` in every text."""
    set_seed(0)
    return fine_tune(small_bert(TOKENIZER, 2, 32, 2), data(400), data(100, 1), tokenizer=TOKENIZER, **LONGER)


def answers(model, rows, tokenizer=TOKENIZER):
    return predicted_labels(predict(model, encode(rows, tokenizer, ("text",), "label", 16), tokenizer)).tolist()


def right(model, rows):
    return np.mean(np.array(answers(model, rows)) == np.array(rows["label"]))


# --- a wrong student without a word -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [dict(seed=1), dict(lr=2e-3), dict(alpha=0.5), dict(method="undistilled"), dict(steps=3), "rows"]
)
def test_a_folder_gives_back_no_other_students_weights(change, teacher, tmp_path):
    """1. A second student in the folder of the first is the one that is made in an empty folder."""
    train = data(64, 9) if change == "rows" else data(64)
    given = BRIEF | ({} if change == "rows" else change)
    distill(teacher, data(64), data(40, 1), folder=tmp_path / "used", **BRIEF)
    again, fresh = (distill(teacher, train, data(40, 1), folder=tmp_path / place, **given) for place in ("used", "empty"))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), fresh.state_dict().values()))


def test_a_student_in_the_folder_of_its_teacher_is_not_the_teacher(tmp_path):
    """1. And one of another width does not die in it."""
    given = dict(tokenizer=TOKENIZER, max_length=16, lr=1e-3, epochs=1, folder=tmp_path)
    own = fine_tune(small_bert(TOKENIZER, 2, 32, 2), data(64), data(40, 1), **given)
    for width in (32, 16):
        student = distill(own, data(64), data(40, 1), layers=1, width=width, heads=2, card=False, **given)
        assert student.config.num_hidden_layers == 1 and student.config.hidden_size == width


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_in_sixteen_bits_is_read_in_thirty_two(dtype, teacher, tmp_path):
    """2. From a file and from memory; every method that reads its weights."""
    half = copy.deepcopy(teacher).to(dtype)
    half.save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path), "single").dtype == torch.float32
    for method in ("kd", "tinybert", "albert", "int8_dynamic", "distilbert"):
        given = QUICK | small(method)
        student = distill(half if method == "kd" else tmp_path, data(60), data(40, 1), method, **given)
        assert next((w.dtype for w in student.parameters()), torch.float32) == torch.float32 and half.dtype == dtype
    assert right(distill(half, data(200), data(40, 1), "teacher", **QUICK), data(100, 2)) > 0.95


def test_labels_of_all_splits_are_matched_by_name(teacher):
    """3. Each split encoded alone has other ids for the same names."""
    names = {0: "no", 1: "yes"}
    parts = [
        Dataset.from_list([{"text": r["text"], "label": names[r["label"]]} for r in data(n, seed)])
        for n, seed in ((200, 0), (40, 1), (100, 2))
    ]
    swapped = ClassLabel(names=["yes", "no"])
    alone = [
        parts[0],
        parts[1].map(lambda r: {"label": swapped.str2int(r["label"])}).cast_column("label", swapped),
        parts[2].class_encode_column("label"),
    ]
    card = distill(teacher, alone[0], alone[1], report=alone[2], **BRIEF | dict(card=True, epochs=8, lr=3e-3)).card
    assert card.score > 0.9 and card.made["labels"] == ["no", "yes"]


def test_names_of_tags_are_read_from_a_list_of_class_labels():
    """3. NER data as the hub has them."""
    tags = Dataset.from_dict({"tokens": [["anna", "left"], ["hi"]], "ner_tags": [[1, 0], [0]]})
    tags = tags.cast_column("ner_tags", List(ClassLabel(names=["O", "B-who"])))
    columns, _ = read_rows(tags, label="ner_tags")
    assert columns.labels == ("O", "B-who") and columns.kind == "tokens"


def test_a_student_has_its_teachers_names_where_the_data_have_none(teacher):
    """3. And a name twice is refused."""
    plain = Dataset.from_list([{"text": r["text"], "label": r["label"]} for r in data(60)])
    assert distill(teacher, plain, plain, **BRIEF).config.id2label == {0: "no", 1: "yes"}
    with pytest.raises(ValueError, match="labels holds 'no' twice"):
        distill(teacher, plain, plain, labels=("no", "no"), **BRIEF)


@pytest.fixture
def of_other_words(tmp_path):
    """A folder with an encoder that has other ids for the teacher's words, and its tokenizer."""
    other = word_tokenizer(WORDS[::-1])
    small_bert(other, 2, 32, 2).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("method, kind", [("tinybert", "single"), ("minilm", "single"), ("kd", "tokens")])
def test_an_encoder_of_other_words_is_refused_where_teacher_and_student_meet_at_every_token(
    method, kind, teacher, untrained, of_other_words
):
    """4. Of the same size, by its ids."""
    rows, given, changes = data(60), teacher, {}
    if kind == "tokens":
        rows, changes = data(60, tokens=True), dict(labels=("O", "B-it"))
        given = make_student(small_bert(TOKENIZER, 1, 32, 2), changes["labels"], kind, layers=1)
    with pytest.raises(ValueError, match="one vocabulary, and the encoder reads 'book' as id 5, the tokenizer as 10"):
        distill(given, rows, rows, method, encoder=of_other_words, **QUICK | changes, layers=1)


@pytest.mark.parametrize("method", ["kd", "bilstm_soft", "static_embeddings"])
def test_a_student_may_read_with_a_tokenizer_of_its_own(method, teacher, of_other_words, tmp_path):
    """4. It learns from the teacher's answers to the same texts, and teacher, student and card are each right about them."""
    train, select, report = data(400), data(100, 1), data(200, 2)
    shape = dict(layers=2) if method == "kd" else {}
    student = distill(teacher, train, select, method, report=report, encoder=of_other_words, **LONGER | shape)
    words = student.tokenizer.get_vocab()
    assert words == word_tokenizer(WORDS[::-1]).get_vocab() != TOKENIZER.get_vocab()
    assert answers(student, report, student.tokenizer) != answers(student, report)  # in the teacher's tokens it reads other words
    assert right(teacher, report) == student.card.teacher_score > 0.95
    assert np.mean(np.array(answers(student, report, student.tokenizer)) == np.array(report["label"])) == student.card.score > 0.9
    kdnotes.save_student(student, tmp_path / "saved")
    assert kdnotes.models.encoders.load_tokenizer(str(tmp_path / "saved")).get_vocab() == words


def test_the_teacher_itself_keeps_its_tokenizer_beside_students_of_other_words(teacher, of_other_words):
    """4. Asked for by its method's name, too."""
    report = data(100, 2)
    kept = METHODS["teacher"]
    assert kept.teacher_tokenizer
    with pytest.raises(ValueError, match="teacher follows the teacher token by token"):
        distill(teacher, data(60), data(40, 1), "teacher", report=report, encoder=of_other_words, **QUICK)


def test_copies_are_asked_about_in_the_teachers_own_tokens(teacher):
    """4. Rows that have no text of their own are read back from their tokens."""
    other = word_tokenizer(WORDS[::-1])
    rows = data(40)
    mine, theirs = (encode(rows, tokenizer, ("text",), "label", 16) for tokenizer in (other, TOKENIZER))
    problem = Problem(teacher, teacher, other, mine, None, LABELS, teacher_tokenizer=TOKENIZER)
    assert problem.for_teacher(mine)[0]["input_ids"][:] == theirs["input_ids"][:]
    said = Problem(teacher, teacher, TOKENIZER, theirs, None, LABELS).taught["teacher_logits"][:]
    assert np.allclose(problem.taught["teacher_logits"][:], said, atol=1e-5)


def test_padding_on_the_left_changes_no_label_of_words():
    """5. A tagger that reads on the left is as right as one that reads on the right."""
    rows, select = data(300, tokens=True), data(60, 1, tokens=True)
    found = []
    for side in ("right", "left"):
        tokenizer = word_tokenizer(WORDS)
        tokenizer.padding_side = side
        set_seed(0)
        tagger = fine_tune(small_bert(tokenizer, 1, 32, 2), rows, select, labels=("O", "B-praise"), tokenizer=tokenizer, **LONGER)
        coded = encode(data(100, 2, tokens=True), tokenizer, ("text",), "label", 16, "tokens")
        said = predicted_labels(predict(tagger, coded, tokenizer))
        found.append(score("entity_f1", data(100, 2, tokens=True)["label"][:], said, ("O", "B-praise")))
    assert min(found) > 0.95


def test_what_is_not_finite_stops_the_work(teacher, untrained):
    """6. A teacher of NaN is refused before any training."""
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        broken.classifier.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the teacher's weights classifier.weight hold nan or infinity"):
        distill(broken, data(60), data(40, 1), **BRIEF)


def test_a_learning_rate_that_blows_up_says_so(teacher):
    """6. With the step and the value."""
    with pytest.raises(ValueError, match=r"(the loss is (nan|inf) at step \d+|not finite).*"):
        distill(teacher, data(300), data(40, 1), **BRIEF | dict(lr=1e30, epochs=8))


def test_logits_that_are_not_finite_name_their_row(teacher):
    """6."""
    broken = copy.deepcopy(teacher)
    torch.nn.init.constant_(broken.classifier.bias, float("inf"))
    with pytest.raises(ValueError, match="logits of row .* are not finite"):
        answers(broken, data(5))


def test_large_ids_are_names_and_not_sizes():
    """7. And truth values and whole decimals are labels."""
    rows = Dataset.from_list([{"text": r["text"], "label": 4_000_000 + r["label"]} for r in data(100)])
    model = fine_tune(small_bert(TOKENIZER, 1, 16, 2), rows, rows, tokenizer=TOKENIZER, epochs=1, max_length=16)
    assert model.config.id2label == {0: "4000000", 1: "4000001"}
    for kind in (bool, float):
        rows = [{"text": r["text"], "label": kind(r["label"])} for r in data(20)]
        assert read_rows(rows)[1]["train"]["label"][:] == data(20)["label"][:]


def test_f1_is_of_two_labels(teacher, untrained):
    """8. And a metric that is none is found out before any training."""
    three = data(60).cast_column("label", ClassLabel(names=["a", "b", "c"]))
    encoder = small_bert(TOKENIZER, 1, 16, 2)
    for metric, expected in (("f1", "this task has 3: use macro_f1"), ("auc", "metric='auc' should be one of")):
        with pytest.raises(ValueError, match=expected):
            fine_tune(encoder, three, three, tokenizer=TOKENIZER, metric=metric, max_length=16)
    cost = dict(size_bytes=1, params=1, latency_ms=1, speedup=1)
    card = Card("kd", "f1", "report", 1, 1, 1, 1, 1, cost, cost, dict(labels=LABELS))
    assert "f1 of 'yes'" in str(card)


def test_an_encoder_is_no_teacher(untrained, tmp_path):
    """9. Its head would be drawn when it is loaded."""
    small_bert(TOKENIZER, 2, 16, 2).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no trained .*, it would be drawn at random: fine_tune it first"):
        distill(tmp_path, data(60), data(40, 1), **BRIEF)


def test_a_card_shows_what_knows_nothing_and_doubts_a_student_that_is_not_better(teacher):
    """10."""
    with pytest.warns(UserWarning, match="a doubtful student: it is not better than the bag of words"):
        card = distill(teacher, data(60), data(40, 1), report=data(70, 2), **BRIEF | dict(card=True, init="random")).card
    assert set(card.baselines) == {"bag of words", "majority class"} and card.doubts
    assert "bag of words" in str(card) and "doubtful" in str(card)
    good = distill(teacher, data(400), data(100, 1), "teacher", report=data(70, 2), **QUICK | dict(card=True)).card
    assert not good.doubts


def test_a_card_doubts_a_student_that_still_learned_when_training_ended(teacher, monkeypatch):
    monkeypatch.setattr(Problem, "curve", property(lambda _: (0.5, 0.7, 0.8), lambda *_: None))
    with pytest.warns(UserWarning, match="it still rose, from 0.700 to 0.800"):
        card = distill(teacher, data(60), data(400, 1), **BRIEF | dict(card=True)).card
    assert any("still rose" in doubt for doubt in card.doubts)


def test_without_settings_a_student_learns_long_enough_and_its_head_faster(teacher):
    """4 passes over 60 rows are 8 steps, too few for anything; a rate that is given counts for all."""
    given = dict(tokenizer=TOKENIZER, max_length=16, layers=1)
    rates = ({}, 100, 2e-4, 1e-3), (dict(lr=1e-3), 100, 1e-3, 0.0), (dict(head_lr=0.01, epochs=1), 2, 2e-4, 0.01)
    for asked, steps, lr, head_lr in rates:
        training = distill(teacher, data(60), data(40, 1), **given, **asked).card.made["training"]
        assert (training["steps"], training["lr"], training["head_lr"]) == (steps, lr, head_lr)


def test_a_tokenizer_in_python_trains_students_and_is_refused_where_words_are_replaced():
    """`tinybert` writes copies of the rows, which needs to know where words begin."""
    slow = ByT5Tokenizer(model_max_length=32)
    assert not slow.is_fast
    given = QUICK | dict(tokenizer=slow)
    bytes_teacher = fine_tune(small_bert(slow, 1, 16, 2), data(60), data(40, 1), tokenizer=slow, steps=2, max_length=16)
    assert distill(bytes_teacher, data(60), data(40, 1), "kd", **given, layers=1).tokenizer is slow
    with pytest.raises(ValueError, match=r"WordPiece tokenizer only, got ByT5Tokenizer \(no fast one\): copies=0"):
        distill(bytes_teacher, data(60), data(40, 1), "tinybert", **given, layers=1)
    distill(bytes_teacher, data(60), data(40, 1), "tinybert", **given, layers=1, copies=0)


def test_an_encoder_as_wide_inside_as_outside_is_refused_in_one_line(untrained):
    config = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(ValueError, match="width and feed-forward size are both 16"):
        distill(BertForSequenceClassification(config), data(60), data(40, 1), **BRIEF)


def test_an_id_is_no_second_sentence():
    """11."""
    rows = data(20).add_column("id", [f"r{i}" for i in range(20)])
    columns, _ = read_rows(rows)
    assert columns.text == ("text",) and columns.kind == "single"
    with pytest.raises(ValueError, match="a, b could be text"):
        read_rows([{"a": "x", "b": "y", "label": i} for i in (0, 1)])


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.reads_source and method.needs_source])
def test_a_method_without_what_it_learns_from_is_refused(method, teacher, untrained, tmp_path):
    """12. In the front door and in an experiment, there with the tasks that fit."""
    with pytest.raises(ValueError, match=f"{method} learns from rows of other domains too, but there are none"):
        distill(teacher, data(60), data(40, 1), method, **QUICK)
    with pytest.raises(ValueError, match=f"{method} learns from other domains too, and 'sst2' has none: .*amazon"):
        kdnotes.run(method, "sst2", store=tmp_path)


def test_a_setting_that_a_method_does_not_use_is_refused(tmp_path):
    """13. Under the name by which a user knows it."""
    for method, name in (("adabert", "width"), ("bag_of_words", "layers"), ("undistilled", "teacher_steps")):
        with pytest.raises(ValueError, match=f"unknown parameter '{name}' of {method}"):
            kdnotes.run(method, "sst2", store=tmp_path, **{name: 3})
    with pytest.raises(ValueError, match="channels=999 should be from 1 to the teacher's 32"):
        tiny.run(tmp_path, "adabert", **tiny.SEARCH | dict(channels=999))


# --- lost after the work is done --------------------------------------------------------------------------------------

SIZES = dict(vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
FAMILIES = {
    "DeBERTa": DebertaConfig(**SIZES, relative_attention=True, pos_att_type=["c2p"], max_position_embeddings=64),
    "DeBERTa v2": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p"], max_position_embeddings=64),
    "RoBERTa": RobertaConfig(**SIZES, max_position_embeddings=40),
    "MPNet": MPNetConfig(**SIZES, max_position_embeddings=40),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_students_of_other_families_have_a_card(family):
    """Models that read fewer tokens than the usual text, or hand weights from part to part."""
    config = FAMILIES[family]
    config.update(label_maps(LABELS))
    set_seed(0)
    teacher = AutoModelForSequenceClassification.from_config(config)
    student = distill(teacher, data(40), data(40, 1), **BRIEF | dict(card=True))
    assert student.card.cost["flops"] > 0 and student.card.cost["length"] <= 64


def test_a_card_that_fails_loses_no_student(teacher, monkeypatch):
    monkeypatch.setattr("kdnotes.methods.make_card", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="the student is made, its card is not"):
        assert distill(teacher, data(40), data(40, 1), **BRIEF | dict(card=True)).config.num_hidden_layers == 1


def test_a_speed_that_cannot_be_measured_leaves_the_rest_of_the_card(teacher, monkeypatch):
    monkeypatch.setattr("kdnotes.methods.measure", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="speed was not measured"):
        card = distill(teacher, data(40), data(40, 1), **BRIEF | dict(card=True)).card
    assert np.isnan(card.cost["latency_ms"]) and card.cost["params"] > 0 and card.score >= 0


def test_how_much_a_model_reads_is_known():
    """RoBERTa's positions start at 2, XLNet has none."""
    assert [longest_text(AutoModelForMaskedLM.from_config(FAMILIES[name])) for name in ("RoBERTa", "MPNet")] == [38, 38]
    sizes = dict(vocab_size=len(TOKENIZER), d_model=16, n_layer=2, n_head=2, d_inner=32)
    xlnet = AutoModelForSequenceClassification.from_config(XLNetConfig(**sizes))
    assert longest_text(xlnet) > 10_000
    teacher = AutoModelForSequenceClassification.from_config(FAMILIES["RoBERTa"])
    with pytest.raises(ValueError, match="max_length=39 is outside 3..38, what the teacher can read"):
        distill(teacher, data(40), data(40, 1), **BRIEF | dict(max_length=39))


def test_an_exported_student_can_be_copied_and_answers_alike(teacher):
    exported = to_onnx(copy.deepcopy(teacher))
    assert answers(copy.deepcopy(exported), data(20)) == answers(exported, data(20)) == answers(teacher, data(20))


# --- early, in one line -----------------------------------------------------------------------------------------------

NEVER = {
    "temperature": (dict(temperature=-1), "temperature=-1 should be a number above 0"),
    "alpha": (dict(alpha=1.5), "alpha=1.5 should be a number from 0 to 1"),
    "batch_size": (dict(batch_size=2.5), "batch_size=2.5 should be a whole number from 1"),
    "epochs": (dict(epochs=float("inf")), "epochs=inf should be a number above 0"),
    "seed": (dict(seed="a"), "seed='a' should be a whole number from 0"),
    "max_length": (dict(max_length=32.5), "max_length=32.5 should be a whole number from 1"),
    "patience": (dict(patience=0), "patience=0 should be a whole number from 1 or nothing"),
    "lr": (dict(lr=-1), "lr=-1 should be a number above 0"),
    "init": (dict(init="zeros"), "init='zeros' should be one of layers, first, random"),
    "layers": (dict(layers=0), "layers=0 should be a whole number from 1"),
    "several labels": (dict(train=[{"text": "a", "label": [0, 1]}] * 2), "several labels for one text are not supported"),
    "a text is missing": (dict(train=[{"text": "good", "label": 1}, {"text": None, "label": 0}]), "row 1 of train has None"),
    "labels of ids that are none": (dict(labels={0: "no", 7: "yes"}), "labels has the ids 0, 7, expected 0 to 1"),
    "a metric": (dict(metric="accuracies"), "metric='accuracies' should be one of"),
    "no tokenizer": (dict(tokenizer=None), "the teacher is a model in memory, so its tokenizer must be given"),
    "rows that are none": (dict(train="rows.csv"), "train is a str, expected a Dataset"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEVER)
def test_what_can_never_work_is_one_line_before_any_work(case, untrained):
    changes, expected = NEVER[case]
    set_seed(0)
    own = make_student(small_bert(TOKENIZER, 2, 16, 2), LABELS, layers=2)
    with pytest.raises(ValueError) as error:
        distill(**dict(teacher=own, train=data(60), select=data(40, 1)) | BRIEF | changes)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value", [("rows", -5), ("teacher_rows", 0), ("steps", 0), ("lr", -1), ("looks", 0.5), ("init", "zeros")]
)
def test_an_experiment_checks_the_same_settings(name, value, untrained, tmp_path):
    with pytest.raises(ValueError, match=f"{name}={value!r} should be"):
        kdnotes.run("kd", "sst2", store=tmp_path, **{name: value})


@pytest.mark.parametrize("words, tags, expected", [
    ([["good", "film"]], [[1]], "row 0 of train has 2 words and 1 labels"),
    ([["good", "film"]], [[1, 0, 0, 0]], "row 0 of train has 2 words and 4 labels"),
])  # fmt: skip
def test_each_word_has_its_label(words, tags, expected):
    with pytest.raises(ValueError, match=expected):
        read_rows(dict(text=words, label=tags))


def test_words_need_no_kind_and_a_checkpoint_of_three_classes_serves_for_two(tmp_path):
    tags = data(40, tokens=True)
    assert read_rows(tags)[0].kind == "tokens"
    make_student(small_bert(TOKENIZER, 1, 16, 2), ("a", "b", "c"), layers=1).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    assert fine_tune(tmp_path, data(40), data(40, 1), epochs=1, max_length=16).config.num_labels == 2


def test_a_multi_label_teachers_problem_type_is_not_inherited(teacher):
    own = copy.deepcopy(teacher)
    own.config.problem_type = "multi_label_classification"
    student = distill(own, data(40), data(40, 1), **BRIEF)
    assert student.config.problem_type is None
    assert student(input_ids=torch.tensor([[2, 5, 3]]), labels=torch.tensor([1])).loss > 0


def test_without_select_the_last_weights_are_kept_and_the_card_says_so(teacher):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        card = distill(teacher, data(60), **BRIEF | dict(card=True)).card
    assert card.split == "train"


def test_the_teacher_comes_back_as_it_was(teacher):
    own = copy.deepcopy(teacher).train()
    distill(own, data(40), data(40, 1), **BRIEF)
    assert own.training and all(weight.requires_grad for weight in own.parameters())


# --- data and models as people have them ------------------------------------------------------------------------------


def test_rows_in_any_form_make_the_same_student(teacher):
    table = pd.DataFrame(data(60).with_format(None)[:]).assign(label=lambda t: t.label.map({0: "no", 1: "yes"}))
    forms = [
        (table, table), (table.to_dict("records"), table.to_dict("list")), (data(60).with_format("torch"), data(60)),
        (DatasetDict(train=data(60), validation=data(60)), None),
    ]  # fmt: skip
    students = [distill(teacher, train, select, **BRIEF) for train, select in forms]
    first, *others = [[*student.state_dict().values()] for student in students]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))


def test_a_saved_student_needs_nothing_else(teacher, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        student = distill(teacher, data(60), data(40, 1), **BRIEF | dict(card=True))
    folder = kdnotes.save_student(student, tmp_path / "mine")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {path.name for path in folder.iterdir()}
    assert kdnotes.load_tokenizer(str(folder)).get_vocab() == TOKENIZER.get_vocab()


def test_cached_states_stay_on_disk(teacher, tmp_path):
    """BERT-PKD's states of all rows are mapped, not read."""
    from kdnotes.baselines.pkd import add_teacher_cls
    from kdnotes.core.store import Store

    rows = encode(data(50), TOKENIZER, ("text",), "label", 16)
    states = add_teacher_cls(rows, teacher, TOKENIZER, (1,), cache=Store(tmp_path)).columns["teacher_cls"]
    assert isinstance(states, np.memmap) and states.shape == (50, 1, 32)


class Began(Exception):
    """A method has accepted everything and begins to train."""


PLACES = {"single": ("amazon", "books"), "pair": ("mnli", "fiction"), "tokens": ("snips_slots", "")}
SHORT = dict(rows=60, teacher_rows=80, teacher_steps=2, steps=2, looks=1, world_encoder=dict(sentences=400, steps=7))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with a teacher of each kind of task."""
    place = tmp_path_factory.mktemp("world")
    for task, domain in PLACES.values():
        kdnotes.run("teacher", task, store=place, domain=domain, **SHORT)
    return place


ONE_OF_A_FAMILY = ("adabert", "tinybert", "kd", "static_embeddings", "single_tinybert_kd")


@pytest.mark.parametrize(
    "method, kind",
    [(name, "single") for name in METHODS] + [(name, kind) for name in ONE_OF_A_FAMILY for kind in ("pair", "tokens")],
)
def test_every_method_begins_by_its_defaults_in_the_world(method, kind, world, monkeypatch):
    """Whatever a profile does not give suits its own teacher: nobody has to know it."""
    (task, domain), chosen = PLACES[kind], METHODS[method]

    def begin(*_, **__):
        raise Began

    monkeypatch.setattr(ObjectiveTrainer, "train", begin)
    monkeypatch.setattr("kdnotes.adabert.search._Loop.advance", begin)
    given = {name: value for name, value in SHORT.items() if name not in unused(chosen)}
    try:
        kdnotes.run(method, task, store=world, domain=domain, **given)
    except Began:
        pass
    except ValueError as error:  # what the method says it cannot do
        assert kind in str(error) or "label" in str(error)


def test_auto_classes_know_every_student():
    """Whatever kind of task: see test_methods for their answers."""
    from transformers import AutoConfig

    for kind in (
        "kdnotes-bilstm",
        "kdnotes-bag-of-words",
        "kdnotes-static-embeddings",
        "kdnotes-adabert",
        "kdnotes-qbert",
        "kdnotes-onnx",
    ):
        config = type(AutoConfig.for_model(kind))
        for auto in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
            assert config in auto._model_mapping, (kind, auto)
