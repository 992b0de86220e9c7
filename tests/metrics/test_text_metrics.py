from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import entropy
from torchmetrics import Metric, MetricCollection

from unlearn.errors import ConfigError, DataError
from unlearn.functional.statistics import total_variation
from unlearn.functional.text import words
from unlearn.metrics import (
    AliasMatch,
    AnswerMix,
    AnswerMixDistance,
    ChoiceAccuracy,
    ExactMemorisation,
    NgramEntropy,
    Repetition,
    Rouge1,
    RougeL,
    TruthRatio,
)

SAID = ["He was running home to the house.", "nothing alike", "", "the cat sat on a mat and the cat sat on it"]
TRUTH = ["he runs home to his houses", "other words", "a reference", "on the mat the cat sat"]


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize(("value", "field"), [("recall", "recall"), ("f1", "fmeasure")])
@pytest.mark.parametrize(("make", "kind"), [(Rouge1, "rouge1"), (RougeL, "rougeL")])
def test_rouge_is_the_mean_over_rows_of_the_package(make: type[Metric], kind: str, value: str, field: str, stem: bool) -> None:
    scorer = RougeScorer([kind], use_stemmer=stem)
    expected = sum(getattr(scorer.score(r, p)[kind], field) for p, r in zip(SAID, TRUTH, strict=True)) / len(SAID)
    metric = make(value, stem)
    metric.update(SAID[:1], TRUTH[:1])
    metric.update(SAID[1:], TRUTH[1:])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_variants_in_one_collection_stay_apart_even_where_they_start_out_equal() -> None:
    collection = MetricCollection({f"{v}{s}": RougeL(v, s) for v in ("recall", "f1") for s in (False, True)})
    collection.update(["a b"], ["a b"])
    collection.compute()
    collection.update(["he runs home"], ["running home"])
    found = {key: value.item() for key, value in collection.compute().items()}
    assert len(set(found.values())) == 4
    scores = MetricCollection({"ours": ExactMemorisation(), "theirs": ExactMemorisation(compat=True)})
    right = {"logits_AV": torch.eye(2), "targets_A": torch.tensor([0, 1]), "row_A": torch.tensor([0, 0])}
    scores.update(**right)
    scores.update(**right | {"targets_A": torch.tensor([0, 0])})
    assert {k: v.item() for k, v in scores.compute().items()} == {"ours": 0.75, "theirs": 1.0}
    readings = MetricCollection({s: TruthRatio(s) for s in ("forget", "utility", "probability")})
    for nll in (1000.0, 1.5):
        readings.update(torch.tensor([1.0]), torch.tensor([[nll]]))
    assert len({v.item() for v in readings.compute().values()}) == 3


def test_entropy_is_that_of_rwku_by_scipy() -> None:
    metric, expected = NgramEntropy(), 0.0
    for text in SAID:
        tokens = words(text)
        grams = [list(Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).values()) for n in (2, 3)]
        h2, h3 = (entropy(counts, base=2) if counts else 0.0 for counts in grams)
        expected += (2 / 3 * h2 + 4 / 3 * h3) / 2 / len(SAID)
    metric.update(SAID)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    plain = NgramEntropy(split=str.split)
    plain.update(["a b c"])
    assert plain.compute().item() == pytest.approx(1 / 3)


def test_repetition_of_words() -> None:
    metric = Repetition(n=2, split=str.split)
    metric.update(["a b a b a", "a b c", ""])
    assert metric.compute().item() == pytest.approx(0.5 / 3)
    with pytest.raises(ConfigError, match="n must be at least 1; found 0"):
        Repetition(0)


def test_aliases() -> None:
    said, aliases = ["Paris.", "in Paris, France", "Rome", "Parisian"], [["paris", "Lutetia"]] * 4
    for match, share in (("exact", 0.25), ("begins", 0.25), ("contains", 0.5), ("popqa", 0.75)):
        metric = AliasMatch(match)
        metric.update(said, aliases)
        assert metric.compute().item() == share
    with pytest.raises(ConfigError, match="match must be one of exact, begins, contains, popqa; found 'fuzzy'"):
        AliasMatch("fuzzy")
    with pytest.raises(DataError, match="a list of lists; found a single text"):
        AliasMatch().update(["Paris"], ["Paris"])
    with pytest.raises(DataError, match="found 1 and 2"):
        AliasMatch().update(["Paris"], [["Paris"], ["Rome"]])


def test_choice_accuracy_over_batches() -> None:
    metric = ChoiceAccuracy()
    metric.update(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([1]))
    metric.update(torch.tensor([[0.3, 0.3, -torch.inf], [2.0, 1.0, 0.0]]), torch.tensor([0, 2]))
    assert metric.compute().item() == pytest.approx(0.5)


def test_mix_and_distance_between_two_mixes() -> None:
    target, strangers = ["refusal", "refusal", "correct", "plausible", "degenerate"], ["refusal", "plausible", "plausible"]
    mix, distance = AnswerMix(), AnswerMixDistance()
    assert distance.compute().isnan()
    for kind in target:
        mix.update([kind])
        distance.update([kind], unknown=False)
    assert distance.compute().isnan()
    distance.update(strangers, unknown=True)
    assert {kind: round(share.item(), 6) for kind, share in mix.compute().items()} == {
        "correct": 0.2,
        "plausible": 0.2,
        "refusal": 0.4,
        "off_topic": 0.0,
        "degenerate": 0.2,
    }
    assert distance.compute().item() == pytest.approx(total_variation(Counter(target), Counter(strangers)), abs=1e-6)
    for metric in (mix, distance):
        with pytest.raises(DataError, match="found 'right'"):
            metric.update(["right"], *([True] if metric is distance else []))


@pytest.mark.parametrize("metric", [NgramEntropy(), Repetition()])
def test_single_texts_are_refused_and_states_pickle(metric: Metric) -> None:
    with pytest.raises(DataError, match="found a single text"):
        metric.update("one text")
    metric.reset()
    metric.update(SAID)
    assert pickle.loads(pickle.dumps(metric)).compute().item() == metric.compute().item()


def test_traits() -> None:
    made = (Rouge1, RougeL, AliasMatch, ChoiceAccuracy, NgramEntropy, Repetition, AnswerMix, AnswerMixDistance)
    assert {m.key: m.higher_is_better for m in made} == {
        "rouge_1": True,
        "rouge_l": True,
        "alias_match": True,
        "choice_accuracy": True,
        "ngram_entropy": None,
        "repetition": False,
        "answer_mix": None,
        "answer_mix_distance": False,
    }
