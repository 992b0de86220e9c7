from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.text import Perplexity as ReferencePerplexity

from tests.oracles.load import column, oracle, stacked
from unlearn.errors import DataError
from unlearn.functional.tokens import answer_logits
from unlearn.metrics import ExactMemorisation, ExtractionStrength, Perplexity, Probability, TruthRatio

METRICS = oracle("metrics")["metrics"]


def forget() -> dict[str, torch.Tensor]:
    names = ("logits_AV", "targets_A", "row_A")
    return dict(zip(names, answer_logits(*stacked(oracle("metrics")["inputs"]["forget"])), strict=True))


def split(batch: dict[str, torch.Tensor], row: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    first = batch["row_A"] < row
    head, tail = {k: v[first] for k, v in batch.items()}, {k: v[~first] for k, v in batch.items()}
    return head, tail | {"row_A": tail["row_A"] - row}


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (Probability(), "probability"),
        (ExactMemorisation(compat=True), "exact_memorization"),
        (ExtractionStrength(compat=True), "extraction_strength"),
    ],
)
def test_mean_over_rows_equals_open_unlearning_in_one_batch_and_in_two(metric: Metric, name: str) -> None:
    metric.reset()
    metric.set_dtype(torch.float64)
    expected = METRICS["forget"][name]["agg_value"]
    metric.update(**forget())
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    metric.reset()
    for part in split(forget(), 3):
        metric.update(**part)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("score", "name"), [("forget", "closer_to_1_better"), ("utility", "true_better"), ("probability", "prob_mean")])
def test_truth_ratio_equals_open_unlearning(score: str, name: str) -> None:
    right_B = column(METRICS["paraphrase_probability"]["value_by_index"], "avg_loss")
    wrong_BK = column(METRICS["perturbed_probability"]["value_by_index"], "avg_loss")
    metric = TruthRatio(score).set_dtype(torch.float64)
    metric.update(right_B[:4], wrong_BK[:4])
    metric.update(right_B[4:], wrong_BK[4:])
    expected = column(METRICS[f"truth_ratio_{name}"]["value_by_index"], "score")
    if score == "probability":
        assert metric.compute().item() == pytest.approx(expected.mean().item(), abs=1e-6)
    else:
        assert metric.compute().item() == pytest.approx(METRICS[f"truth_ratio_{name}"]["agg_value"], abs=1e-6)
    with pytest.raises(DataError, match="score must be one of forget, utility, probability; found 'best'"):
        TruthRatio("best")


def test_perplexity_equals_torchmetrics_and_weighs_tokens() -> None:
    logits_BTV, labels_BT = stacked(oracle("metrics")["inputs"]["forget"])
    reference = ReferencePerplexity(ignore_index=-100)
    reference.update(logits_BTV[:, :-1].float(), labels_BT[:, 1:])
    metric = Perplexity()
    for part in split(forget(), 7):
        metric.update(part["logits_AV"], part["targets_A"])
    assert metric.compute().item() == pytest.approx(reference.compute().item(), rel=1e-5)


def test_one_pass_feeds_a_collection_even_where_metrics_start_out_equal() -> None:
    """A collection shares the state of metrics that are equal after the first batch: ours must stay apart."""
    collection = MetricCollection([Probability(), ExactMemorisation(), ExtractionStrength(), Perplexity()])
    perfect = {"logits_AV": 100 * torch.eye(4), "targets_A": torch.arange(4), "row_A": torch.tensor([0, 0, 1, 1])}
    collection.update(**perfect)
    first = collection.compute()
    assert [first[k].item() for k in ("Probability", "ExactMemorisation", "ExtractionStrength", "Perplexity")] == [1.0, 1.0, 1.0, 1.0]
    collection.update(**perfect | {"targets_A": torch.tensor([0, 2, 2, 0])})
    second = collection.compute()
    assert second["ExactMemorisation"].item() == pytest.approx(0.75)
    assert second["ExtractionStrength"].item() == pytest.approx(0.5)


def test_rows_without_labels_do_not_count_and_nothing_is_nan_before() -> None:
    metric = ExactMemorisation(eos_id=1)
    metric.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert metric.compute().item() == 1.0
    metric.reset()
    metric.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert metric.compute().isnan()


def test_forward_returns_the_batch_and_keeps_the_whole() -> None:
    metric = ExactMemorisation()
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    row_A = torch.tensor([0, 0])
    assert metric(torch.eye(2), right, row_A).item() == 1.0
    assert metric(torch.eye(2), wrong, row_A).item() == 0.0
    assert metric.compute().item() == 0.5


@pytest.mark.parametrize("make", [Probability, ExactMemorisation, ExtractionStrength, Perplexity])
def test_metrics_pickle_clone_and_merge(make: type[Metric]) -> None:
    head, tail = split(forget(), 4)
    if make is Perplexity:
        head.pop("row_A"), tail.pop("row_A")
    whole, left, right = make(), make(), make()
    for metric, parts in ((whole, (head, tail)), (left, (head,)), (right, (tail,))):
        for part in parts:
            metric.update(**part)
    left.merge_state(right)
    restored: Any = pickle.loads(pickle.dumps(left.clone()))
    assert restored.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6)


def test_half_precision_logits_are_accepted() -> None:
    batch = forget() | {"logits_AV": forget()["logits_AV"].bfloat16()}
    for metric in (Probability(), ExactMemorisation(), ExtractionStrength()):
        metric.update(**batch)
        assert metric.compute().dtype == torch.float32


def test_traits() -> None:
    assert {m.key: m.higher_is_better for m in (Probability, ExactMemorisation, ExtractionStrength, TruthRatio, Perplexity)} == {
        "probability": True,
        "exact_memorisation": True,
        "extraction_strength": True,
        "truth_ratio": True,
        "perplexity": False,
    }
