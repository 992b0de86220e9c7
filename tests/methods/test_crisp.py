from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path

import pytest
import torch

import unlearn.methods.crisp as module
from tests.oracles.load import OracleSAE, oracle, sae_hidden
from tests.tiny import tiny_sae
from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError, ModelError
from unlearn.methods.crisp import CRISP, CRISPConfig, hidden_mse, lifted_activations, positive_mean
from unlearn.models.capture import capture
from unlearn.models.sae import FrozenSAE

DATA = oracle("sae")
CRISP_DATA = DATA["crisp"]
pytestmark = pytest.mark.filterwarnings("ignore:method.min_ratio")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_unlearn_loss_and_gradient_are_those_of_the_reference_code() -> None:
    sae = OracleSAE()
    edited = torch.tensor(CRISP_DATA["hidden_target_edited"], dtype=torch.float64, requires_grad=True)
    parts = []
    for layer in DATA["layers"]:
        before_BTD, mask_BT = sae_hidden("target", layer)
        latents_S = torch.tensor(CRISP_DATA[f"salient_for_loss_layer{layer}"])
        on_NS = sae.encode(before_BTD[mask_BT], latents_S) > 0
        parts.append(positive_mean(lifted_activations(sae, edited[layer][mask_BT], latents_S, on_NS, 5.0)))
    loss = torch.stack(parts).mean()
    loss.backward()
    wanted = CRISP_DATA["unlearn_loss_alpha5"]
    assert loss.item() == pytest.approx(wanted["loss"], abs=1e-6)
    torch.testing.assert_close(edited.grad[1], torch.tensor(wanted["grad_layer1"], dtype=torch.float64), atol=1e-6, rtol=0)
    assert [edited.grad[i].norm().item() for i in range(4)] == pytest.approx(wanted["grad_l2"], abs=1e-6)


def test_retain_and_coherence_losses_are_those_of_the_reference_code() -> None:
    edited = torch.tensor(CRISP_DATA["hidden_benign_edited"], dtype=torch.float64)
    layers = {i: sae_hidden("benign", i) for i in range(4)}
    mse = {i: hidden_mse(edited[i], before, mask, compat=True).item() for i, (before, mask) in layers.items()}
    assert (mse[1] + mse[2]) / 2 == pytest.approx(CRISP_DATA["retain_loss_sae_layers"], abs=1e-9)
    assert mse[3] == pytest.approx(CRISP_DATA["coherence_loss_last"], abs=1e-9)
    assert (mse[2] + mse[3]) / 2 == pytest.approx(CRISP_DATA["retain_loss_all_from_2"], abs=1e-9)


def test_mean_squared_error_over_the_tokens_that_are_there() -> None:
    after, before = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    mask = torch.tensor([[False, True, True], [False, True, False]])
    wanted = torch.cat([(after - before)[0, 1:], (after - before)[1, 1:2]]).square().mean()
    torch.testing.assert_close(hidden_mse(after, before, mask), wanted)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard", "gated"])
def test_a_feature_below_its_threshold_still_has_a_gradient(architecture: str) -> None:
    sae = FrozenSAE(tiny_sae(32, 64, architecture))
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(40, 32, generator=generator).requires_grad_(True)
    latents_S = torch.arange(64)
    off_NS = sae.encode(hidden_ND) == 0
    plain = positive_mean(lifted_activations(sae, hidden_ND, latents_S, torch.zeros_like(off_NS), 5.0))
    torch.testing.assert_close(plain, sae.encode(hidden_ND)[~off_NS].mean())
    lifted = lifted_activations(sae, hidden_ND, latents_S, off_NS, 50.0)
    rescued = lifted[off_NS & (lifted > 0)]
    assert len(rescued) > 10
    rescued.sum().backward()
    assert hidden_ND.grad.abs().sum() > 0


def test_the_sae_reads_the_output_of_its_block_and_the_input_when_published(made: Toy) -> None:
    ours, theirs = CRISPConfig(name="crisp"), CRISPConfig(name="crisp", hook="published")
    assert CRISP.reference_layers(ours, 1, 4) == (1,)
    assert CRISP.reference_layers(theirs, 1, 4) == (0,)
    with pytest.raises(ConfigError, match=r"method\.hook must leave"):
        CRISP.reference_layers(theirs, 0, 4)
    method = made.method("crisp", hook="published")
    assert method.forget_layer() == 0
    assert made.ready("crisp")[1].latents[0].tolist() != made.ready("crisp", hook="published")[1].latents[0].tolist()


def test_loss_by_hand_on_the_original_model(made: Toy) -> None:
    lm, method = made.ready("crisp", alpha=0.0, beta=0.25)
    batch = made.batch()
    out = method.loss(lm, batch)
    mask_BT = batch["forget"].attention_mask_BT.bool().clone()
    mask_BT[:, 0] = False
    acts = made.sae.encode(capture(lm, batch["forget"], LAYER)[mask_BT], method.latents[0])
    assert out.terms["forget"].item() == pytest.approx(acts[acts > 0].mean().item(), rel=1e-4)
    assert out.terms["retain"].item() == pytest.approx(0.0, abs=1e-8)
    assert out.terms["coherence"].item() == pytest.approx(0.0, abs=1e-8)
    assert out.total.item() == pytest.approx(0.75 * out.terms["forget"].item(), rel=1e-6)


def test_retain_statistics_are_scaled_to_as_many_tokens(made: Toy) -> None:
    """Three times the same retain rows choose the same features."""
    _, once = made.ready("crisp")
    tripled = dataclasses.replace(made.data, streams={**made.data.streams, "retain": made.data.streams["retain"] * 3})
    method = CRISP(CRISPConfig(name="crisp"), dataclasses.replace(made.context(data=tripled), banks=None))
    method.setup(made.lm)
    assert method.latents[0].tolist() == once.latents[0].tolist()


def test_training_silences_the_features_and_holds_the_rest(made: Toy) -> None:
    lm, method = made.trained("crisp", steps=15, lr=3e-3, beta=0.3)
    batch = made.batch()

    def loudness(model, stream: str) -> float:  # noqa: ANN001
        with torch.no_grad():
            acts = made.sae.encode(capture(model, batch[stream], LAYER), method.latents[0])
        return acts[:, 1:].mean().item()

    assert loudness(lm, "forget") < 0.6 * loudness(made.lm, "forget")


def test_further_saes_are_loaded_and_each_has_its_features(made: Toy, tmp_path: Path) -> None:
    tiny_sae(32, 48, "jumprelu", 2, tmp_path / "sae", seed=3)
    lm, method = made.ready("crisp", extra_saes=[str(tmp_path / "sae")], features=4)
    assert method.layers == (1, 2)
    assert method.forget_layer() == 2
    assert [len(latents) for latents in method.latents] == [4, 4]
    out = method.loss(lm, made.batch())
    single = made.ready("crisp", features=4)[1].forget(made.lm, made.batch()["forget"])
    assert out.terms["forget"].item() != pytest.approx(single.item())
    out.total.backward()
    assert all(p.grad is None for p in method.saes[1].parameters())
    with pytest.raises(ModelError, match="no_such_folder"):
        made.method("crisp", extra_saes=[str(tmp_path / "no_such_folder")])


def test_without_coherence_nothing_above_the_sae_runs(made: Toy) -> None:
    assert made.method("crisp").deepest_layer() is None
    lm, method = made.ready("crisp", gamma=0.0)
    assert method.deepest_layer() == LAYER
    assert set(method.loss(lm, made.batch()).terms) == {"forget", "retain"}


def test_coherence_needs_neutral_text_and_takes_it_in_turn(made: Toy) -> None:
    bare = dataclasses.replace(made.data, generic=())
    with pytest.raises(ConfigError, match=r"method\.gamma must be 0"):
        CRISP(CRISPConfig(name="crisp"), made.context(data=bare)).setup(made.lm)
    lm, method = made.ready("crisp")
    assert len(method.neutral) == len(made.data.generic) == 2
    with torch.no_grad():
        next(lm.parameters()).add_(0.05)
    seen = []
    for step in range(4):
        method.before_step(lm, step, 4)
        seen.append(method.coherence(lm).item())
    assert seen[0] == seen[2] != seen[1] == seen[3]


def test_no_feature_of_the_ratio_is_said(made: Toy) -> None:
    with pytest.warns(UserWarning, match="leaves no feature"):
        made.ready("crisp", min_ratio=1e6)


@pytest.mark.parametrize(
    ("key", "value"),
    [("features", 0), ("min_ratio", -1.0), ("alpha", -1.0), ("beta", 1.5), ("gamma", -0.1), ("hook", "input"), ("coherence_texts", 0)],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        CRISPConfig(name="crisp", **{key: value})


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
