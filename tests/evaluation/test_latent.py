from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import EvaluationConfig
from unlearn.models.capture import capture


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_activations_are_in_row_order_for_any_batch_size(made: Toy) -> None:
    for size in (1, 3, 64):
        meter = made.meter(EvaluationConfig(batch_size=size))
        found = meter.activations(made.lm, "unknown")
        for i, row in enumerate(meter.groups["unknown"].tokens):
            batch = made.batch()["forget"]._replace(
                input_ids_BT=torch.tensor([row.ids]),
                attention_mask_BT=torch.ones(1, len(row.ids), dtype=torch.long),
                entity_end_B=torch.tensor([row.entity_end]),
            )
            torch.testing.assert_close(found[i], capture(made.lm, batch, LAYER)[0, row.entity_end], rtol=1e-4, atol=1e-5)


def test_distance_by_hand(made: Toy) -> None:
    meter = made.meter(EvaluationConfig())
    target = meter.activations(made.lm, "forget")
    latents = made.selection.latents_S
    x, known, unknown = (
        made.sae.preactivations(h)[:, latents] for h in (target, *(b["entity_end"] for b in (made.banks.known, made.banks.unknown)))
    )
    scale = torch.cat([known, unknown]).std(0)
    np.testing.assert_allclose(meter.distance(target, "known"), (((x - known.mean(0)) / scale) ** 2).mean(1), rtol=1e-4)
    np.testing.assert_allclose(meter.distance(target, "unknown"), (((x - unknown.mean(0)) / scale) ** 2).mean(1), rtol=1e-4)


def test_probe_tells_the_banks_apart_on_the_side_it_should(made: Toy) -> None:
    meter = made.meter(EvaluationConfig())
    assert meter.p_unknown(made.banks.unknown["entity_end"]).mean() > meter.p_unknown(made.banks.known["entity_end"]).mean()


def test_full_adds_the_test_and_the_interval_to_quick(made: Toy) -> None:
    meter = made.meter(EvaluationConfig(bootstrap=50, permutations=19))
    quick, full = meter.quick(made.lm), meter.full(made.lm)
    assert set(quick) == {"latent/distance_to_known", "latent/distance_to_unknown", "latent/p_unknown", "latent/c2st_auc"}
    assert {k: full[k] for k in quick} == pytest.approx(quick)
    assert set(full) - set(quick) == {"latent/p_unknown/ci_low", "latent/p_unknown/ci_high", "latent/mmd", "latent/mmd_p_value"}
    assert 0.05 <= full["latent/mmd_p_value"] <= 1.0
