from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import EvaluationConfig
from unlearn.evaluation.collapse import generic_text, verdict
from unlearn.models.decoder import blocks_of

BASE = {"generic/perplexity": 4.0, "retain/accuracy": 1.0, "collapse/repetition": 0.1, "collapse/entropy": 4.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"generic/perplexity": 6.1}, "generic perplexity 6.1 is 1.5 times the original 4"),
        ({"generic/perplexity": float("nan")}, "generic perplexity nan"),
        ({"retain/accuracy": 0.5}, "retain accuracy fell from 1.00 to 0.50"),
        ({"collapse/repetition": 0.5}, "repetition rose from 0.10 to 0.50"),
        ({"collapse/entropy": 1.0}, "answer entropy fell from 4.0 to 1.0 bits"),
    ],
)
def test_verdict_names_each_reason(change: dict[str, float], words: str) -> None:
    judged = verdict({**BASE, **change}, BASE, EvaluationConfig())
    assert judged.flag == bool(change)
    assert words in judged.reason


def test_generic_text_against_the_stock_model(made: Toy) -> None:
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).mul_(1.5)
    losses, divergences, norms, old_norms = [], [], [], []
    for row in made.datamodule.generic:
        ids = torch.tensor([row.ids])
        new = changed(input_ids=ids, output_hidden_states=True)
        old = made.lm(input_ids=ids, output_hidden_states=True)
        losses.append(cross_entropy(new.logits[0, :-1], ids[0, 1:], reduction="none"))
        divergences.append(
            kl_div(log_softmax(new.logits[0, :-1], -1), log_softmax(old.logits[0, :-1], -1), log_target=True, reduction="none").sum(-1)
        )
        norms.append(new.hidden_states[LAYER + 1][0, 1:].norm(dim=-1))
        old_norms.append(old.hidden_states[LAYER + 1][0, 1:].norm(dim=-1))
    found = generic_text(changed, made.datamodule.generic, made.reader(), made.reference, LAYER)
    assert found["generic/perplexity"] == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)
    assert found["generic/kl_to_base"] == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-3)
    drift = torch.cat(norms).mean() / torch.cat(old_norms).mean() - 1
    assert found["collapse/hidden_norm_drift"] == pytest.approx(drift.item(), rel=1e-3, abs=1e-5)
