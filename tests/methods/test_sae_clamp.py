from __future__ import annotations

import pytest
import torch

from tests.oracles.load import OracleSAE, oracle, sae_hidden
from tests.tiny import tiny_sae
from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.latents.features import FeatureStats, stats_of
from unlearn.methods.sae_clamp import SAEClampConfig, choose_below_ceiling, clamp
from unlearn.models.capture import capture
from unlearn.models.intervene import Seen
from unlearn.models.sae import FrozenSAE

SAE = oracle("sae")
FEATURES = torch.tensor(SAE["clamp_input"]["features"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def after_bos(hidden_BTD: torch.Tensor) -> torch.Tensor:
    content_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.bool)
    content_BT[:, 0] = False
    return content_BT


@pytest.mark.parametrize("multiplier", [0, 25])
def test_clamped_output_is_that_of_saebench(multiplier: int) -> None:
    hidden_BTD, _ = sae_hidden("target", 1)
    sae = OracleSAE()
    where_BTS = (sae.encode(hidden_BTD, FEATURES) > 0) & after_bos(hidden_BTD)[..., None]
    wanted = torch.tensor(SAE["saebench"][f"clamp_multiplier{multiplier}"], dtype=torch.float64)
    torch.testing.assert_close(clamp(sae, hidden_BTD, FEATURES, where_BTS, -float(multiplier)), wanted, atol=1e-6, rtol=0)


def test_only_firing_features_on_their_tokens_move_and_along_their_decoder_vectors() -> None:
    sae = OracleSAE()
    hidden_BTD, _ = sae_hidden("target", 1)
    where_BTS = torch.zeros(*hidden_BTD.shape[:2], 1, dtype=torch.bool)
    where_BTS[1, 4] = True
    out = clamp(sae, hidden_BTD, FEATURES[:1], where_BTS, -3.0)
    same = torch.ones(hidden_BTD.shape[:2], dtype=torch.bool)
    same[1, 4] = False
    assert torch.equal(out[same], hidden_BTD[same])
    moved = (-3.0 - sae.encode(hidden_BTD)[1, 4, FEATURES[0]]) * sae.W_dec[FEATURES[0]]
    torch.testing.assert_close(out[1, 4] - hidden_BTD[1, 4], moved)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard", "gated"])
def test_every_architecture_and_half_precision(architecture: str) -> None:
    sae = FrozenSAE(tiny_sae(32, 64, architecture))
    hidden_BTD = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    latents_S = sae.encode(hidden_BTD).mean((0, 1)).topk(3).indices
    where_BTS = sae.encode(hidden_BTD, latents_S) > 0
    out = clamp(sae, hidden_BTD, latents_S, where_BTS, -4.0)
    acts = sae.encode(hidden_BTD)
    new = acts.clone()
    new[..., latents_S] = torch.where(where_BTS, torch.full_like(acts[..., latents_S], -4.0), acts[..., latents_S])
    torch.testing.assert_close(out, hidden_BTD + sae.decode(new) - sae.decode(acts), atol=1e-5, rtol=1e-5)
    assert clamp(sae, hidden_BTD.bfloat16(), latents_S, where_BTS, -4.0).dtype == torch.bfloat16


def test_chosen_features_fire_on_forget_rows_and_below_the_threshold_on_retain_rows(made: Toy) -> None:
    lm, method = made.ready("sae_clamp", retain_threshold=0.1, n_features=4)
    rates = {}
    for stream in ("forget", "retain"):
        acts = [made.sae.encode(capture(lm, b, LAYER))[0, 1:] for b in made.reader(1).batches(made.data.streams[stream])]
        rates[stream] = (torch.cat(acts) > 0).float().mean(0)
    allowed = torch.where(rates["retain"] < 0.1, rates["forget"], 0.0)
    assert method.latents_S.tolist() == allowed.argsort(descending=True, stable=True)[:4].tolist()
    assert (allowed[method.latents_S] > 0).all()


def test_bos_and_padding_are_left_alone(made: Toy) -> None:
    _, method = made.ready("sae_clamp", retain_threshold=1.0)
    hidden_BTD = torch.randn(2, 6, 32)
    content_BT = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool()
    out = method.edit(hidden_BTD, Seen(content_BT))
    assert torch.equal(out[~content_BT], hidden_BTD[~content_BT])


def test_by_hand_chosen_latents_are_taken_and_checked(made: Toy) -> None:
    _, method = made.ready("sae_clamp", latents=[5, 2])
    assert method.latents_S.tolist() == [5, 2]
    with pytest.raises(ConfigError, match=r"method\.latents must be a list of indices below 64"):
        made.ready("sae_clamp", latents=[64])


def test_a_threshold_that_leaves_nothing_says_what_would() -> None:
    one = torch.ones(3, dtype=torch.float64)
    forget, retain = stats_of(torch.tensor([[0.0, 1.0, 1.0]])), FeatureStats(10, torch.tensor([0.0, 4.0, 2.0]), one, one)
    with pytest.raises(ConfigError, match=r"method\.retain_threshold must be above 0\.2, .*; found 0\.01"):
        choose_below_ceiling(SAEClampConfig(name="sae_clamp", retain_threshold=0.01), forget, retain)
    assert choose_below_ceiling(SAEClampConfig(name="sae_clamp", retain_threshold=0.3), forget, retain).tolist() == [2]


def test_the_edit_can_be_taken_off(made: Toy) -> None:
    lm, method = made.trained("sae_clamp", retain_threshold=1.0, multiplier=50.0)
    batch = made.batch()["forget"]
    with torch.no_grad():
        changed = capture(lm, batch, LAYER)
        method.handle.remove()
        assert torch.equal(capture(lm, batch, LAYER), capture(made.lm, batch, LAYER))
    assert not torch.allclose(changed, capture(made.lm, batch, LAYER))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("multiplier", -1.0),
        ("multiplier", float("inf")),
        ("retain_threshold", 0.0),
        ("retain_threshold", 1.1),
        ("n_features", 0),
        ("latents", [-1]),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        SAEClampConfig(name="sae_clamp", **{key: value})
