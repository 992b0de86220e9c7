from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.toys import Toy, toy
from unlearn.evaluation.scoring import score
from unlearn.functional.membership import attack_scores, membership_auc
from unlearn.functional.memorisation import exact_memorisation, extraction_strength
from unlearn.models.decoder import decoder_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_sixteen_forwards_feed_seven_metrics_on_two_sets_of_128_rows(made: Toy) -> None:
    known = [*made.data.evaluation["retain"], *made.data.evaluation["forget"]] * 15
    rows = [replace(row, row_id=i, prompt=f"{i}: {row.prompt}") for i, row in enumerate(known[:256])]
    sets = {"forget": rows[:128], "holdout": rows[128:]}
    reader, calls = made.reader(batch_size=16), []
    handle = decoder_of(made.lm).register_forward_hook(lambda *_: calls.append(1))
    try:
        scores = {name: score(made.lm, reader.tokens(r), reader, [row.answer for row in r]) for name, r in sets.items()}
        found = {name: attack_scores(s, eos_id=2) for name, s in scores.items()}
        areas = {attack: membership_auc(found["forget"][attack], found["holdout"][attack]) for attack in found["forget"]}
        values = [(s.probability(), s.exact_memorisation(2), s.extraction_strength(2)) for s in scores.values()]
    finally:
        handle.remove()
    assert len(calls) == 16
    assert list(areas) == ["loss", "zlib", "min_k", "min_k_plus_plus"]
    assert all(0 <= area <= 1 for area in areas.values())
    assert all(len(column) == 128 for columns in values for column in columns)


def test_the_pass_gives_what_the_logits_of_each_row_give(made: Toy) -> None:
    rows = made.data.evaluation["retain"][:5]
    reader = made.reader(batch_size=2)
    scores = score(made.lm, reader.tokens(rows), reader)
    for i, row in enumerate(reader.tokens(rows)):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            logits = made.lm(input_ids=ids).logits[0, row.answer_start - 1 : -1]
        targets, here = ids[0, row.answer_start :], torch.zeros(ids.shape[1] - row.answer_start, dtype=torch.long)
        logprobs = logits.double().log_softmax(-1)
        np.testing.assert_allclose(scores.nll()[i], -logprobs.gather(1, targets[:, None]).mean(), rtol=1e-4)
        assert scores.exact_memorisation()[i] == pytest.approx(exact_memorisation(logits, targets, here, 1).item())
        assert scores.extraction_strength()[i] == pytest.approx(extraction_strength(logits, targets, here, 1).item())
        spread = (logprobs.exp() * logprobs.square()).sum(-1) - (logprobs.exp() * logprobs).sum(-1).square()
        np.testing.assert_allclose(scores.variance_A[scores.row_A == i], spread, rtol=1e-3, atol=1e-6)
