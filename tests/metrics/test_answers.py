from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from unlearn.errors import ConfigError, DataError
from unlearn.metrics import AnswerAccuracy, RefusalRate, RougeL

PREDICTIONS = ["Paris.", "He was a painter of note", "unknown", "I don’t know that", ""]
REFERENCES = ["Paris", "a painter", "Rome", "Athens", "Berlin"]


def test_accuracy_over_batches() -> None:
    metric = AnswerAccuracy()
    metric.update(PREDICTIONS[:2], REFERENCES[:2])
    assert metric.compute().item() == pytest.approx(1 / 2)
    metric.update(PREDICTIONS[2:], REFERENCES[2:])
    assert metric.compute().item() == pytest.approx(1 / 5)


def test_refusal_rate() -> None:
    metric = RefusalRate(["unknown", "I don't know"])
    metric.update(PREDICTIONS)
    assert metric.compute().item() == pytest.approx(2 / 5)


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize(("value", "field"), [("recall", "recall"), ("f1", "fmeasure")])
def test_rouge_is_the_mean_of_the_package(value: str, field: str, stem: bool) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    expected = np.mean([getattr(scorer.score(r, p)["rougeL"], field) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)])
    metric = RougeL(value, stem)
    metric.update(PREDICTIONS[:3], REFERENCES[:3])
    metric.update(PREDICTIONS[3:], REFERENCES[3:])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_merge_and_reset() -> None:
    left, right = AnswerAccuracy(), AnswerAccuracy()
    left.update(PREDICTIONS[:1], REFERENCES[:1])
    right.update(PREDICTIONS[1:], REFERENCES[1:])
    left.merge_state(right)
    assert left.compute().item() == pytest.approx(1 / 5)
    left.reset()
    left.update(["x"], ["y"])
    assert left.compute().item() == 0.0


def test_errors() -> None:
    with pytest.raises(DataError, match="equal length; found 1 and 2"):
        AnswerAccuracy().update(["a"], ["a", "b"])
    with pytest.raises(DataError, match="must be lists of texts; found a single text"):
        RougeL().update("a text", "a text")
    with pytest.raises(ConfigError, match="refusals must be a list of at least one answer; found \\(\\)"):
        RefusalRate(())
    with pytest.raises(ConfigError, match="refusals must be a list of at least one answer; found 'unknown'"):
        RefusalRate("unknown")
    with pytest.raises(ConfigError, match="value must be one of recall, f1; found 'precision'"):
        RougeL("precision")


def test_traits() -> None:
    assert (AnswerAccuracy.key, RougeL.key, RefusalRate.key) == ("accuracy", "rouge_l", "refusal_rate")
    assert AnswerAccuracy.higher_is_better
    assert RougeL.higher_is_better
    assert RefusalRate.higher_is_better is None
