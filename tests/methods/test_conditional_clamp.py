from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

import unlearn.methods.conditional_clamp as module
from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.methods.conditional_clamp import ConditionalClampConfig, firing_quantile
from unlearn.models.capture import capture
from unlearn.models.intervene import Seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def seen(batch) -> Seen:  # noqa: ANN001
    content_BT = batch.attention_mask_BT.bool().clone()
    content_BT[:, 0] = False
    return Seen(content_BT)


def test_quantile_is_that_of_the_positive_activations() -> None:
    acts = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * (torch.arange(50)[:, None] % 3 > 0)
    acts[:, 2] = 0
    wanted = [np.quantile(acts[:, i][acts[:, i] > 0].numpy(), 0.9) for i in (0, 1)]
    torch.testing.assert_close(firing_quantile(acts, 0.9), torch.tensor([*wanted, 0.0]).float())


def test_thresholds_come_from_the_retain_rows(made: Toy) -> None:
    lm, method = made.ready("conditional_clamp", retain_threshold=0.5, n_features=5, retain_quantile=0.9)
    acts = torch.cat([made.sae.encode(capture(lm, b, LAYER))[0, 1:] for b in made.reader(1).batches(made.data.streams["retain"])])
    torch.testing.assert_close(method.threshold_S, firing_quantile(acts[:, method.latents_S], 0.9), atol=1e-4, rtol=1e-4)
    _, fixed = made.ready("conditional_clamp", retain_threshold=0.5, threshold=1.5)
    assert set(fixed.threshold_S.tolist()) == {1.5}


def test_threshold_zero_is_the_unconditional_clamp_and_a_high_one_does_nothing(made: Toy) -> None:
    batch = made.batch()["forget"]
    with torch.no_grad():
        hidden_BTD = capture(made.lm, batch, LAYER)
        _, plain = made.ready("sae_clamp", retain_threshold=0.5, multiplier=9.0)
        _, zero = made.ready("conditional_clamp", retain_threshold=0.5, multiplier=9.0, threshold=0.0)
        _, high = made.ready("conditional_clamp", retain_threshold=0.5, multiplier=9.0, threshold=1e6)
        assert not torch.equal(plain.edit(hidden_BTD, seen(batch)), hidden_BTD)
        assert torch.equal(zero.edit(hidden_BTD, seen(batch)), plain.edit(hidden_BTD, seen(batch)))
        assert torch.equal(high.edit(hidden_BTD, seen(batch)), hidden_BTD)


def test_refusal_features_are_raised_where_a_feature_is_clamped_and_nowhere_else(made: Toy) -> None:
    batch = made.batch()["forget"]
    settings = {"retain_threshold": 0.5, "n_features": 3, "threshold": 0.0}
    with torch.no_grad():
        hidden_BTD = capture(made.lm, batch, LAYER)
        _, plain = made.ready("conditional_clamp", **settings)
        _, refusing = made.ready("conditional_clamp", refusal_latents=[7], refusal_value=6.0, **settings)
        base, out = plain.edit(hidden_BTD, seen(batch)), refusing.edit(hidden_BTD, seen(batch))
    where_BT = (base != hidden_BTD).any(-1)
    assert 0 < where_BT.sum() < where_BT.numel()
    assert torch.equal(out[~where_BT], hidden_BTD[~where_BT])
    raised = (6.0 - made.sae.encode(base)[where_BT][:, 7:8]) * made.sae.sae.W_dec[7]
    torch.testing.assert_close(out[where_BT] - base[where_BT], raised, atol=1e-3, rtol=1e-3)


def test_a_refusal_latent_that_the_sae_has_not_is_refused(made: Toy) -> None:
    with pytest.raises(ConfigError, match=r"method\.refusal_latents must be a list of indices below 64"):
        made.method("conditional_clamp", refusal_latents=[64])


@pytest.mark.parametrize(
    ("key", "value"),
    [("threshold", -1.0), ("retain_quantile", 1.5), ("refusal_latents", [-2]), ("refusal_value", -1.0), ("multiplier", -1.0)],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        ConditionalClampConfig(name="conditional_clamp", **{key: value})


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
