from __future__ import annotations

import copy

import pytest
import torch

from tests.oracles.load import oracle
from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import ModelConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.methods.base import MethodContext
from unlearn.methods.rmu import DOWN_PROJECTION, RMU, RMUConfig, block_number, control_vector, masked_mse, token_mask
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of
from unlearn.models.trainable import select_trainable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_compat_agrees_with_open_unlearning_in_value_and_gradient() -> None:
    given = oracle("losses")["losses"]["RMU_activation_loss"]
    a, b = (torch.tensor(given[key], dtype=torch.float64) for key in ("a1", "a2"))
    mask = torch.tensor(given["mask"]).bool()
    a.requires_grad_()
    loss = masked_mse(a, b, mask, "compat")
    (gradient,) = torch.autograd.grad(loss, a)
    assert loss.item() == pytest.approx(given["loss"], abs=1e-6)
    assert gradient.norm().item() == pytest.approx(given["grad_l2"], abs=1e-6)


def test_both_averages_are_one_where_rows_have_equally_many_tokens() -> None:
    a, b = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0]]).bool()
    expected = torch.nn.functional.mse_loss(a[mask], b[mask]).item()
    assert masked_mse(a, b, mask).item() == pytest.approx(expected, rel=1e-6)
    assert masked_mse(a, b, mask, "compat").item() == pytest.approx(expected, rel=1e-6)


def test_mean_over_tokens_by_hand_and_zero_without_any() -> None:
    a = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[0.0, 2.0], [5.0, 5.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert masked_mse(a, torch.ones(2), mask).item() == pytest.approx((2.0 + 1.0 + 1.0) / 3)
    assert masked_mse(a, torch.ones(2), torch.zeros_like(mask)).item() == 0.0


def test_control_vector_is_positive_of_length_one_and_fixed_by_the_seed() -> None:
    u = control_vector(1000, 3)
    assert u.min() >= 0
    assert u.norm().item() == pytest.approx(1.0)
    assert (u / u.max()).mean().item() == pytest.approx(0.5, abs=0.03)  # uniform: a Gaussian's absolute value would have a mean near 0.25
    assert torch.equal(u, control_vector(1000, 3))
    assert not torch.equal(u, control_vector(1000, 4))


def test_token_masks_by_hand() -> None:
    batch = tiny_batch(rows=1, length=10, answer=3)  # answer at 7, 8, 9
    wide = type(batch)(
        *(torch.nn.functional.pad(t, (0, 2), value=-100 if i == 2 else 0) if t.ndim == 2 else t for i, t in enumerate(batch))
    )
    assert token_mask(wide, "all").nonzero()[:, 1].tolist() == list(range(1, 10))
    assert token_mask(wide, "answers").nonzero()[:, 1].tolist() == [7, 8, 9]
    assert token_mask(wide, "predictors").nonzero()[:, 1].tolist() == [6, 7, 8]


@pytest.mark.parametrize("tokens", ["all", "answers", "predictors"])
def test_loss_by_hand(made: Toy, tokens: str) -> None:
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    _, method = made.ready("rmu", tokens=tokens, steering_coefficient=3.0, retain_weight=7.0)
    batch = made.batch()
    forget, retain = (token_mask(batch[s], tokens) for s in ("forget", "retain"))
    h = capture(changed, batch["forget"], LAYER)[forget]
    away = torch.nn.functional.mse_loss(h, (3.0 * control_vector(32, 0)).expand_as(h))
    near = torch.nn.functional.mse_loss(capture(changed, batch["retain"], LAYER)[retain], capture(made.lm, batch["retain"], LAYER)[retain])
    out = method.loss(changed, batch)
    assert out.terms["forget"].item() == pytest.approx(away.item(), rel=1e-4)
    assert out.terms["retain"].item() == pytest.approx(near.item(), rel=1e-4)
    assert out.total.item() == pytest.approx((away + 7 * near).item(), rel=1e-4)


def test_retain_term_is_zero_on_the_original_model(made: Toy) -> None:
    lm, method = made.ready("rmu")
    assert method.loss(lm, made.batch()).terms["retain"].item() == pytest.approx(0.0, abs=1e-9)


def test_another_layer_is_read_and_its_reference_asked_for(made: Toy) -> None:
    assert RMU.reference_layers(RMUConfig(name="rmu", layer=2), LAYER, 4) == (2,)
    assert RMU.reference_layers(RMUConfig(name="rmu"), LAYER, 4) == (LAYER,)
    lm, method = made.ready("rmu", layer=2)
    assert method.deepest_layer() == method.forget_layer() == 2
    assert torch.isfinite(method.loss(lm, made.batch()).total)


def test_training_brings_the_target_to_the_control_vector(made: Toy) -> None:
    lm, method = made.ready("rmu", retain_weight=0.0)
    optimizer = torch.optim.Adam([p for p in lm.parameters() if p.requires_grad], lr=1e-2)
    batch = made.batch()
    first = method.loss(lm, batch).terms["forget"].item()
    for _ in range(30):
        optimizer.zero_grad()
        method.loss(lm, batch).total.backward()
        optimizer.step()
    assert method.loss(lm, batch).terms["forget"].item() < 0.3 * first


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_trains_the_down_projections_of_the_three_blocks_up_to_the_layer(build, made: Toy) -> None:  # noqa: ANN001
    method = RMU(RMUConfig(name="rmu", layer=3), made.context())
    suggested = method.trainable(4)
    assert suggested == TrainableConfig(mode="modules", blocks="1-3", modules=[DOWN_PROJECTION])
    _, report = select_trainable(build(), ModelConfig(trainable=suggested), method.deepest_layer())
    assert [name.split(".")[2] for name in report.names] == ["1", "2", "3"]
    assert all(name.endswith(("mlp.down_proj.weight", "mlp.c_proj.weight")) for name in report.names)
    assert RMU(RMUConfig(name="rmu"), made.context()).trainable(4).blocks == "0-1"


def test_a_block_that_is_not_there_is_refused(made: Toy) -> None:
    with pytest.raises(ConfigError, match=r"method.layer must be a block of the model, 0 to 3; found 4"):
        RMU(RMUConfig(name="rmu", layer=4), made.context())
    with pytest.raises(ConfigError, match="method.layer must be"):
        RMU(RMUConfig(name="rmu"), MethodContext(n_blocks=4, reference=made.reference))
    assert block_number(0, None, 1) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer", -1),
        ("retain_weight", -1.0),
        ("retain_weight", float("nan")),
        ("steering_coefficient", 0.0),
        ("steering_coefficient", float("nan")),
        ("tokens", "answer"),
        ("average", "rows"),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        RMUConfig(name="rmu", **{key: value})
