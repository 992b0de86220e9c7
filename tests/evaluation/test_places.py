"""Recognition at other blocks, at the answer, in SAE latents."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import EvaluationConfig
from unlearn.errors import CacheError
from unlearn.evaluation.places import PlaceMeter, places, read_places
from unlearn.models.decoder import blocks_of
from unlearn.models.edit import edited


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def meter(made: Toy, **config: int) -> PlaceMeter:
    settings = EvaluationConfig(**{"bootstrap": 0, "permutations": 19, **config})
    where = places(LAYER, 4, made.sae, made.sae)
    return PlaceMeter(made.meter(settings).groups, where, settings, made.datamodule.pad_id, seed=0)


def test_places_and_their_names(made: Toy) -> None:
    assert [p.suffix for p in places(1, 4, made.sae, None)] == ["", "@layer2", "@layer3", "@answer", "@layer3@answer", "@sae"]
    assert [p.suffix for p in places(3, 4, made.sae, made.sae)] == ["", "@answer", "@heldout_sae"]


def test_reads_what_hidden_states_hold(made: Toy) -> None:
    rows = made.datamodule.latent["forget"]
    read = read_places(made.lm, rows, places(LAYER, 4, made.sae, None), batch_size=3, pad_id=0)
    for i, row in enumerate(rows):
        with torch.no_grad():
            hidden = made.lm.model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(read[2, "entity_end"][i], hidden[3][0, row.entity_end].numpy(), atol=1e-5)
        np.testing.assert_allclose(read[1, "answer_start"][i], hidden[2][0, row.answer_start - 1].numpy(), atol=1e-5)


def test_keys_ranges_and_intervals(made: Toy) -> None:
    tests = meter(made, bootstrap=100)
    tests.remember(made.lm)
    found = tests.measure(made.lm)
    for suffix in ("", "@layer2", "@layer3", "@answer", "@layer3@answer", "@sae", "@heldout_sae"):
        for name in ("c2st_auc", "ks_share", "mahalanobis", "p_unknown"):
            assert 0 <= found[f"latent/{name}{suffix}"] <= 1
            low, high = found[f"latent/{name}{suffix}/ci_low"], found[f"latent/{name}{suffix}/ci_high"]
            assert low <= high
        assert (f"latent/mmd{suffix}" in found) == bool(suffix)


def test_a_model_that_hides_its_target_at_the_hooked_block_alone_is_found_out_above_it(made: Toy) -> None:
    """Put unknown entities' activations into the targets at the hooked block, and the targets' own back in one block later."""
    tests = meter(made)
    tests.remember(made.lm)
    rows = tests.groups["forget"].tokens
    hidden = read_places(made.lm, rows, tests.where, 64, 0)[LAYER, "entity_end"]
    strangers = read_places(made.lm, tests.groups["unknown"].tokens, tests.where, 64, 0)[LAYER, "entity_end"]
    assert not np.allclose(hidden.mean(0), strangers.mean(0), atol=1e-3)
    shift = torch.from_numpy(10 * (strangers.mean(0) - hidden.mean(0)))
    lm = copy.deepcopy(made.lm)
    with edited(lm, 2, lambda h: h + shift):
        moved = tests.measure(lm)
    plain = tests.measure(lm)
    assert moved["latent/p_unknown"] == pytest.approx(plain["latent/p_unknown"], abs=1e-6)
    assert moved["latent/p_unknown@layer2"] != pytest.approx(plain["latent/p_unknown@layer2"], abs=1e-3)
    assert len(blocks_of(lm)) == 4


def test_what_the_frozen_model_was_is_kept(made: Toy, tmp_path: Path) -> None:
    first, again = meter(made), meter(made)
    first.remember(made.lm, tmp_path / "p.safetensors")
    again.remember(None, tmp_path / "p.safetensors")  # type: ignore[arg-type]
    assert again.measure(made.lm) == first.measure(made.lm)
    (tmp_path / "p.safetensors").write_bytes(b"x")
    with pytest.raises(CacheError, match=r"p\.safetensors is damaged .*; delete it and run again\."):
        meter(made).remember(made.lm, tmp_path / "p.safetensors")
