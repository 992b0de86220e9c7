"""What every method of the registry has to do; a new method is tested here without a line of its own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.methods.base import NEEDS, MethodContext, concatenate
from unlearn.models.decoder import blocks_of
from unlearn.registry import entries, find
from unlearn.types import STREAMS

METHODS = [name for name in entries("method") if name != "none"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def losses(made: Toy, name: str, batch: dict) -> torch.Tensor:
    torch.manual_seed(0)
    return made.method(name).loss(made.lm, batch).total


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_a_finite_differentiable_scalar_in_full_precision(made: Toy, name: str) -> None:
    lm = copy.deepcopy(made.lm)
    for p in lm.parameters():
        p.requires_grad_(True)
    out = made.method(name).loss(lm, made.batch())
    assert out.total.shape == ()
    assert out.total.dtype in (torch.float32, torch.float64)
    assert torch.isfinite(out.total)
    assert all(torch.isfinite(v).all() and v.numel() == 1 for v in out.terms.values())
    out.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in lm.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_loss_does_not_see_padding(made: Toy, name: str) -> None:
    batch = made.batch()
    wide = {s: concatenate([b, _one_long_row(b)]) for s, b in batch.items()}
    padded = {s: type(b)(*(t[: len(batch[s].row_id_B)] for t in b)) for s, b in wide.items()}
    assert padded["forget"].input_ids_BT.shape[1] > batch["forget"].input_ids_BT.shape[1]
    assert losses(made, name, padded).item() == pytest.approx(losses(made, name, batch).item(), rel=1e-4, abs=1e-6)


def _one_long_row(batch):  # noqa: ANN001, ANN202
    return type(batch)(*(torch.nn.functional.pad(t[:1], (0, 7)) if t.ndim == 2 else t[:1] for t in batch))


@pytest.mark.parametrize("name", METHODS)
def test_loss_does_not_depend_on_row_order(made: Toy, name: str) -> None:
    batch = made.batch()
    turned = {s: type(b)(*(t.flip(0) for t in b)) for s, b in batch.items()}
    assert losses(made, name, turned).item() == pytest.approx(losses(made, name, batch).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_stay_in_trained_blocks_and_below_the_deepest_layer(made: Toy, name: str) -> None:
    lm = copy.deepcopy(made.lm)
    method = made.method(name)
    for p in lm.parameters():
        p.requires_grad_(True)
    method.loss(lm, made.batch()).total.backward()
    deepest = method.deepest_layer()
    if deepest is not None:
        above = [p for block in blocks_of(lm)[deepest + 1 :] for p in block.parameters()]
        assert all(p.grad is None or p.grad.abs().sum() == 0 for p in above)
    assert all(p.grad is None for p in made.sae.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_reads_only_the_streams_and_needs_it_declares(made: Toy, name: str) -> None:
    entry = find("method", name)
    cls = entry.load()
    assert set(cls.streams) <= set(STREAMS)
    assert cls.needs <= NEEDS
    batch = {s: b for s, b in made.batch().items() if s in cls.streams}
    assert torch.isfinite(made.method(name).loss(made.lm, batch).total)
    required = cls.required(cls.Config(name=name))
    if required:
        with pytest.raises(ConfigError, match="needs"):
            cls(cls.Config(name=name), MethodContext(n_blocks=4))


@pytest.mark.parametrize("name", METHODS)
def test_five_steps_move_what_they_should_move(made: Toy, name: str) -> None:
    """On a random model the forget answers get less likely, or the target's activation leaves its place."""
    lm = copy.deepcopy(made.lm)
    method = made.method(name)
    trained = [p for block in blocks_of(lm)[: LAYER + 1] for p in block.parameters()]
    for p in trained:
        p.requires_grad_(True)
    batch = made.batch()
    before = method.loss(lm, batch).terms["forget"].item()
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        method.loss(lm, batch).total.backward()
        optimizer.step()
    assert method.loss(lm, batch).terms["forget"].item() < before


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_agrees_with_float32(made: Toy, name: str) -> None:
    full = losses(made, name, made.batch()).item()
    half = copy.deepcopy(made.lm).to(torch.bfloat16)
    torch.manual_seed(0)
    rough = made.method(name).loss(half, made.batch()).total
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(full, rel=0.1, abs=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_state_survives_saving_and_loading(made: Toy, name: str) -> None:
    torch.manual_seed(0)
    first = made.method(name)
    first.loss(made.lm, made.batch())
    second = made.method(name)
    second.load_state_dict(first.state_dict(), strict=False)
    torch.manual_seed(1)
    a = first.loss(made.lm, made.batch()).total.item()
    torch.manual_seed(1)
    assert second.loss(made.lm, made.batch()).total.item() == a


@pytest.mark.parametrize("name", sorted(entries("method")))
def test_has_paper_summary_and_test_file(name: str) -> None:
    entry = find("method", name)
    assert entry.facts["summary"]
    assert entry.facts["family"]
    if name != "none":
        assert entry.facts["paper"].startswith("https://arxiv.org/abs/")
        stem = entry.module.rsplit(".", 1)[-1]
        assert (ROOT / "tests" / "methods" / f"test_{stem}.py").is_file()
