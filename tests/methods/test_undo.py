from __future__ import annotations

import copy
import doctest
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.config.schema import OptimConfig
from unlearn.errors import ConfigError
from unlearn.methods import undo
from unlearn.methods.grad_diff import GradDiff
from unlearn.methods.gradient_ascent import GradientAscentConfig
from unlearn.methods.sae_guided import SAEGuidedConfig
from unlearn.methods.undo import Undo, UndoConfig, shrink_and_perturb, swapped, trained_weights
from unlearn.models.forward import forward
from unlearn.module import UnlearningModule


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def copies(lm: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained_weights(lm).items()}


def step(lm: Any, method: Any, made: Toy, number: int, steps: int) -> None:
    optimizer = torch.optim.SGD([p for p in lm.parameters() if p.requires_grad], lr=0.05)
    method.before_step(lm, number, steps)
    optimizer.zero_grad()
    method.loss(lm, made.batch()).total.backward()
    method.adjust_gradients(lm)
    optimizer.step()


def test_doctests() -> None:
    assert doctest.testmod(undo).failed == 0


def test_shrink_and_perturb_by_hand() -> None:
    weight = torch.randn(40, 60)
    spoilt = shrink_and_perturb(weight, 0.3, 0.5, torch.Generator().manual_seed(1))
    noise = (spoilt - 0.7 * weight) / (0.3 * 0.5)
    bound = math.sqrt(6 / (40 + 60))  # Xavier-uniform
    assert noise.abs().max() <= bound * 1.001
    assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert noise.mean().abs().item() < 0.02
    again = shrink_and_perturb(weight, 0.3, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(spoilt, again)
    assert torch.equal(shrink_and_perturb(weight, 0.0, 1.0, torch.Generator()), weight)
    assert shrink_and_perturb(weight.bfloat16(), 0.3, 0.5, torch.Generator()).dtype == torch.bfloat16


def test_the_noise_comes_once_at_the_boundary_and_depends_on_the_seed(made: Toy) -> None:
    lm, method = made.ready("undo", alpha=0.5, beta=1.0, unlearn_fraction=0.4)
    before = copies(lm)
    for number in (0, 1):
        method.before_step(lm, number, 5)
        assert all(torch.equal(p, before[n]) for n, p in trained_weights(lm).items())
        assert not method.get_extra_state()
    method.before_step(lm, 2, 5)
    after = copies(lm)
    name = next(n for n in after if n.endswith("down_proj.weight"))
    assert (after[name] - 0.5 * before[name]).abs().max() > 1e-3
    norm = next(n for n in after if "norm" in n)
    assert torch.equal(after[norm], 0.5 * before[norm])
    assert all(torch.equal(w, before[n]) for n, w in method.get_extra_state().items())
    for number in (2, 3, 4):
        method.before_step(lm, number, 5)
        assert all(torch.equal(p, after[n]) for n, p in trained_weights(lm).items())
    other_lm, other = made.ready("undo", alpha=0.5, beta=1.0, unlearn_fraction=0.4)
    other.before_step(other_lm, 2, 5)
    assert all(torch.equal(p, after[n]) for n, p in trained_weights(other_lm).items())
    other_lm, other = made.ready("undo", alpha=0.5, beta=1.0, unlearn_fraction=0.4)
    other.context = made.context(seed=1)
    other.before_step(other_lm, 2, 5)
    assert not torch.equal(trained_weights(other_lm)[name], after[name])


def test_vectors_can_be_kept(made: Toy) -> None:
    lm, method = made.ready("undo", alpha=0.5, vectors="keep")
    before = copies(lm)
    method.before_step(lm, 5, 10)
    for name, p in trained_weights(lm).items():
        assert torch.equal(p, before[name]) == (p.ndim == 1)


@pytest.mark.parametrize("kept_after", [1, 2, 3])  # steps done when the checkpoint is written; the boundary is at 2
def test_a_resumed_run_is_the_uninterrupted_one(made: Toy, tmp_path: Path, kept_after: int) -> None:
    settings = {"alpha": 0.5, "beta": 1.0, "unlearn_fraction": 0.4}
    lm, method = made.ready("undo", **settings)
    for number in range(5):
        if number == kept_after:
            module = UnlearningModule(lm, method, OptimConfig())
            checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
            module.on_save_checkpoint(checkpoint)
            torch.save(checkpoint, tmp_path / "last.ckpt")
        step(lm, method, made, number, 5)
    wanted = copies(lm)
    lm, method = made.ready("undo", **settings)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    UnlearningModule(lm, method, OptimConfig()).load_state_dict(state, strict=False)
    for number in range(kept_after, 5):
        step(lm, method, made, number, 5)
    for name, p in trained_weights(lm).items():
        torch.testing.assert_close(p.detach(), wanted[name], rtol=0, atol=0)


def test_distillation_is_the_divergence_from_the_model_before_the_noise(made: Toy) -> None:
    lm, method = made.ready("undo", alpha=0.3, beta=1.0, distil_on=["unknown", "forget"])
    teacher = copy.deepcopy(lm)
    method.before_step(lm, 5, 10)
    noised = copies(lm)
    batch = made.batch()
    out = method.loss(lm, batch)
    by_stream = {}
    for stream in ("forget", "unknown"):
        with torch.no_grad():
            log_p, log_q = (forward(m, batch[stream]).logits_AV.double().log_softmax(-1) for m in (teacher, lm))
        by_stream[stream] = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert out.terms["forget"].item() == pytest.approx(by_stream["forget"].mean().item(), rel=1e-4)
    assert out.total.item() == pytest.approx(torch.cat([*by_stream.values()]).mean().item(), rel=1e-4)
    assert by_stream["forget"].mean().item() > 1e-3
    out.total.backward()
    assert all(torch.equal(p, noised[n]) for n, p in trained_weights(lm).items())
    assert all(p.grad is not None for p in trained_weights(lm).values())


def test_without_noise_there_is_nothing_to_distil(made: Toy) -> None:
    lm, method = made.ready("undo", alpha=0.0)
    method.before_step(lm, 5, 10)
    assert method.loss(lm, made.batch()).total.item() == pytest.approx(0.0, abs=1e-6)


def test_distillation_brings_the_teacher_s_answers_back(made: Toy) -> None:
    lm, method = made.ready("undo", alpha=0.3, beta=0.1)
    method.before_step(lm, 5, 10)
    optimizer = torch.optim.Adam([p for p in lm.parameters() if p.requires_grad], lr=3e-3)
    first = method.loss(lm, made.batch()).total.item()
    for _ in range(15):
        optimizer.zero_grad()
        method.loss(lm, made.batch()).total.backward()
        optimizer.step()
    assert method.loss(lm, made.batch()).total.item() < 0.5 * first


def test_the_first_phase_is_the_inner_method_told_its_own_length(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(GradDiff, "before_step", lambda self, lm, k, n: calls.append((k, n)))
    monkeypatch.setattr(GradDiff, "finish", lambda self, lm: calls.append("finish"))
    monkeypatch.setattr(GradDiff, "adjust_gradients", lambda self, lm: calls.append("adjust"))
    lm, method = made.ready("undo", unlearn_fraction=0.5)
    alone = made.method("grad_diff").loss(lm, made.batch()).total
    assert torch.equal(method.loss(lm, made.batch()).total, alone)
    for number in range(4):
        method.before_step(lm, number, 4)
        method.adjust_gradients(lm)
    method.finish(lm)
    assert calls == [(0, 2), "adjust", (1, 2), "adjust", "finish"]


def test_a_run_of_one_step_finishes_the_inner_method_and_gets_no_noise(made: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(GradDiff, "finish", lambda self, lm: calls.append("finish"))
    lm, method = made.ready("undo")
    before = copies(lm)
    method.before_step(lm, 0, 1)
    method.finish(lm)
    assert calls == ["finish"]
    assert all(torch.equal(p, before[n]) for n, p in trained_weights(lm).items())


def test_weights_that_the_inner_loss_never_reaches_have_a_gradient_of_zero(made: Toy) -> None:
    lm, method = made.ready("undo", inner=SAEGuidedConfig(name="sae_guided", retain_kl=0.0))
    assert method.deepest_layer() is None
    method.loss(lm, made.batch()).total.backward()
    above = [p for n, p in trained_weights(lm).items() if ".layers.3." in n]
    assert above
    assert all(p.grad is not None and not p.grad.any() for p in above)


def test_streams_are_those_of_the_inner_method_and_of_the_distillation() -> None:
    inner = GradientAscentConfig(name="gradient_ascent")
    assert Undo.streams_of(UndoConfig(name="undo", inner=inner, distil_on=["unknown"])) == ("forget", "unknown")
    assert Undo.streams_of(UndoConfig(name="undo", inner=inner)) == ("forget", "retain", "known", "unknown")


def test_swapping_puts_the_own_weights_back_after_an_error(made: Toy) -> None:
    lm, _ = made.ready("undo")
    before = copies(lm)

    def fail_inside() -> None:
        with swapped(lm, {n: torch.zeros_like(w) for n, w in before.items()}):
            assert all(not p.any() for p in trained_weights(lm).values())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert all(torch.equal(p, before[n]) for n, p in trained_weights(lm).items())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unlearn_fraction", 0.0),
        ("unlearn_fraction", 1.0),
        ("alpha", 1.1),
        ("alpha", -0.1),
        ("beta", 1.5),
        ("vectors", "keeep"),
        ("distil_on", []),
        ("distil_on", ["retain", "retained"]),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{key} must be"):
        UndoConfig(name="undo", **{key: value})
