from __future__ import annotations

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.methods.adaptive_rmu import AdaptiveRMU, AdaptiveRMUConfig, adaptive_target
from unlearn.methods.rmu import control_vector, token_mask
from unlearn.models.capture import capture


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def lengths(made: Toy) -> torch.Tensor:
    """Norms of the original activations at every token after the first of every forget row, one row at a time."""
    found = []
    for row in made.datamodule.streams["forget"]:
        states = made.lm(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states[LAYER + 1]
        found.append(states[0, 1:].norm(dim=-1))
    return torch.cat(found)


def test_coefficient_is_the_mean_norm_over_all_forget_tokens(made: Toy) -> None:
    _, method = made.ready("adaptive_rmu", scale=3.0)
    expected = 3.0 * lengths(made).mean()
    assert method.coefficient == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(method.target(made.batch()["forget"]), expected * control_vector(32, 0))


def test_the_norm_is_that_of_the_original_model_when_it_is_measured_and_stays(made: Toy) -> None:
    lm, method = made.ready("adaptive_rmu")
    before = method.coefficient
    with torch.no_grad():
        for p in lm.parameters():
            if p.requires_grad:
                p.mul_(3.0)
    method.loss(lm, made.batch())
    assert method.coefficient == before


def test_token_form_gives_every_token_its_own_length(made: Toy) -> None:
    _, method = made.ready("adaptive_rmu", form="token", scale=2.0)
    batch = made.batch()["forget"]
    mask = token_mask(batch, "all")
    target = method.target(batch)[mask]
    torch.testing.assert_close(target.norm(dim=-1), 2.0 * capture(made.lm, batch, LAYER)[mask].norm(dim=-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target / target.norm(dim=-1, keepdim=True), control_vector(32, 0).expand_as(target))


def test_both_forms_agree_where_every_token_has_the_same_norm() -> None:
    hidden = torch.nn.functional.normalize(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), dim=-1) * 4
    torch.testing.assert_close(adaptive_target(hidden, control_vector(8, 0), 5.0), (5.0 * 4 * control_vector(8, 0)).expand(2, 3, 8))


def test_loss_by_hand(made: Toy) -> None:
    lm, method = made.ready("adaptive_rmu", scale=2.0)
    batch = made.batch()
    h = capture(lm, batch["forget"], LAYER)[token_mask(batch["forget"], "all")]
    expected = (h - 2.0 * lengths(made).mean() * control_vector(32, 0)).square().mean()
    assert method.loss(lm, batch).terms["forget"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_needs_what_its_form_needs() -> None:
    batch, token = AdaptiveRMUConfig(name="adaptive_rmu"), AdaptiveRMUConfig(name="adaptive_rmu", form="token")
    assert AdaptiveRMU.required(batch) == {"reference_hidden", "rows"}
    assert AdaptiveRMU.reference_streams_of(batch) == ("retain",)
    assert AdaptiveRMU.required(token) == {"reference_hidden"}
    assert set(AdaptiveRMU.reference_streams_of(token)) == {"forget", "retain"}


@pytest.mark.parametrize(("key", "value"), [("scale", 0.0), ("scale", float("nan")), ("form", "row"), ("retain_weight", -1.0)])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        AdaptiveRMUConfig(name="adaptive_rmu", **{key: value})
