from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.mmd import mmd2
from unlearn.methods.sae_guided import OBJECTIVES, SPACES, SAEGuidedConfig, distribution_loss, extent, outlier_loss
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of
from unlearn.types import NO_ENTITY


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_distribution_loss_vanishes_on_the_unknown_sample_and_is_bounded_by_the_push() -> None:
    generator = torch.Generator().manual_seed(0)
    unknown, known = torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator) + 3
    assert distribution_loss(unknown, known, unknown, push=0.5).item() == pytest.approx(0.0, abs=1e-6)
    far = torch.full((50, 4), 100.0)
    assert distribution_loss(far, known, unknown, push=0.5) == pytest.approx(mmd2(far, unknown).item(), rel=1e-5)
    at_known = distribution_loss(known, known, unknown, push=0.5).item()
    assert at_known == pytest.approx(1.5 * mmd2(known, unknown).item(), rel=1e-5)


def test_outlier_loss_by_hand() -> None:
    unknown = torch.tensor([[-1.0], [1.0], [-2.0], [2.0], [0.0]])  # mean 0, squared distances 1, 1, 4, 4, 0; the 95 % quantile is 4
    assert outlier_loss(torch.tensor([[0.5], [-2.0]]), *extent(unknown)).item() == 0.0
    assert outlier_loss(torch.tensor([[3.0], [0.0]]), *extent(unknown)).item() == pytest.approx((9 - 4) / 2)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("position", ["entity_end", "answer_start", "both"])
def test_every_combination_has_a_finite_loss(made: Toy, objective: str, space: str, position: str) -> None:
    method = made.method("sae_guided", objective=objective, space=space, position=position)
    out = method.loss(made.lm, made.batch())
    assert torch.isfinite(out.total)
    assert set(out.terms) == {"forget", "retain_kl", "retain_hidden"}


def test_features_are_standardised_preactivations_of_the_selected_latents(made: Toy) -> None:
    method = made.method("sae_guided")
    known = made.banks.known["entity_end"]
    expected = made.sae.preactivations(known)[:, made.selection.latents_S]
    pooled = torch.cat([expected, made.sae.preactivations(made.banks.unknown["entity_end"])[:, made.selection.latents_S]])
    torch.testing.assert_close(method.known_entity_end, expected / pooled.std(0).clamp(min=1e-3))


def test_retain_terms_are_zero_on_the_original_model_and_positive_after_a_change(made: Toy) -> None:
    method = made.method("sae_guided")
    terms = method.loss(made.lm, made.batch()).terms
    assert terms["retain_kl"].item() == pytest.approx(0.0, abs=1e-5)
    assert terms["retain_hidden"].item() == pytest.approx(0.0, abs=1e-6)
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    terms = method.loss(changed, made.batch()).terms
    assert terms["retain_kl"].item() > 1e-6
    assert terms["retain_hidden"].item() > 1e-6


def test_retain_hidden_by_hand(made: Toy) -> None:
    method = made.method("sae_guided")
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    batch = made.batch()
    before, after = [], []
    for stream in ("retain", "known", "unknown"):
        keep = batch[stream].attention_mask_BT.bool()
        keep[:, 0] = False
        before.append(capture(made.lm, batch[stream], LAYER)[keep])
        after.append(capture(changed, batch[stream], LAYER)[keep])
    old, new = torch.cat(before), torch.cat(after)
    expected = (new - old).square().mean() / old.var(0).mean()
    assert method.loss(changed, batch).terms["retain_hidden"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_without_the_kl_term_nothing_above_the_hook_runs(made: Toy) -> None:
    method = made.method("sae_guided", retain_kl=0.0, retain_hidden=0.0)
    assert method.forget_layer() == LAYER
    assert method.deepest_layer() == LAYER
    calls = []
    handle = blocks_of(made.lm)[LAYER + 1].register_forward_hook(lambda *a: calls.append(1))
    try:
        method.loss(made.lm, made.batch())
    finally:
        handle.remove()
    assert not calls


def test_training_brings_the_target_to_the_unknown_mean(made: Toy) -> None:
    lm = copy.deepcopy(made.lm)
    method = made.method("sae_guided", objective="prototype", retain_kl=0.0, retain_hidden=0.0)
    trained = [p.requires_grad_(True) for block in blocks_of(lm)[: LAYER + 1] for p in block.parameters()]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    batch = made.batch()
    first = method.loss(lm, batch).terms["forget"].item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = method.loss(lm, batch).total
        loss.backward()
        optimizer.step()
    assert method.loss(lm, batch).terms["forget"].item() < 0.2 * first


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", "prototyp"),
        ("space", "latents"),
        ("position", "end"),
        ("push", -1.0),
        ("outlier_pull", -1.0),
        ("temperature", 0.0),
        ("forget_weight", -1.0),
        ("retain_kl", -0.1),
        ("retain_hidden", -2.0),
        ("retain_noise", -1.0),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        SAEGuidedConfig(name="sae_guided", **{key: value})


def test_draws_continue_after_a_checkpoint(made: Toy, tmp_path: Path) -> None:
    first = made.method("sae_guided")
    first.loss(made.lm, made.batch())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = made.method("sae_guided")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=False)
    batch = made.batch()
    assert second.loss(made.lm, batch).total.item() == first.loss(made.lm, batch).total.item()


def test_noise_below_the_hook_raises_the_retain_terms_and_leaves_the_reference(made: Toy) -> None:
    batch = made.batch()
    quiet = made.method("sae_guided").loss(made.lm, batch).terms
    shaken = made.method("sae_guided", retain_noise=2.0).loss(made.lm, batch).terms
    assert quiet["retain_hidden"].item() == pytest.approx(0.0, abs=1e-6)
    assert shaken["retain_hidden"].item() > 1e-5
    assert made.method("sae_guided").loss(made.lm, batch).terms["retain_hidden"].item() == pytest.approx(0.0, abs=1e-6)


def test_noise_touches_entity_tokens_and_what_follows_only(made: Toy) -> None:
    method = made.method("sae_guided", retain_noise=2.0)
    batch = made.batch()["retain"]
    before = capture(made.lm, batch, LAYER)
    with method._noise(made.lm, batch):
        after = capture(made.lm, batch, LAYER)
    for row, end in enumerate(batch.entity_end_B.tolist()):
        assert torch.equal(before[row, :end], after[row, :end])
        assert not torch.allclose(before[row, end], after[row, end])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_in_which_no_row_names_its_entity_asks_for_nothing(made: Toy, objective: str) -> None:
    method, batch = made.method("sae_guided", objective=objective), made.batch()
    nobody = batch["forget"]._replace(entity_end_B=torch.full_like(batch["forget"].entity_end_B, NO_ENTITY))
    found = method.loss(made.lm, {**batch, "forget": nobody})
    assert found.terms["forget"].item() == 0
    assert torch.isfinite(found.total)
