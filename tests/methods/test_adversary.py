from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.attacks.finetune import fine_tune
from unlearn.errors import ConfigError
from unlearn.functional.tokens import token_nll
from unlearn.methods.adversary import Adversary
from unlearn.methods.undo import trained_weights
from unlearn.models.forward import forward


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def ready(made: Toy) -> Any:
    return made.ready("gradient_ascent")[0]


def delta(adversary: Adversary) -> dict[str, torch.Tensor]:
    return {name: adversary._delta(name) for name in adversary.names}


def test_a_full_adversary_does_what_fine_tuning_a_copy_does(made: Toy) -> None:
    """The reference is the attack that models are measured with."""
    lm = ready(made)
    before = copy.deepcopy(lm.state_dict())
    rows = made.datamodule.streams["forget"][:3]
    batch = next(iter(made.reader().batches(rows)))
    adversary = Adversary(lm, "full")
    adversary.begin(lm, 1e-3, 0)
    for _ in range(4):
        adversary.step(lm, batch)
    student = copy.deepcopy(lm)
    for _ in fine_tune(student, rows, made.reader().pad_id, lr=1e-3, at=[4], batch_size=3, seed=0):
        pass
    tuned = trained_weights(student)
    with adversary.shifted(lm) as weights:
        for name, weight in weights.items():
            torch.testing.assert_close(weight.detach(), tuned[name].detach(), atol=2e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())
    assert all(p.grad is None for p in lm.parameters())


def test_it_keeps_its_change_while_the_weights_move(made: Toy) -> None:
    lm = ready(made)
    batch = made.batch()["forget"]
    adversary = Adversary(lm, "full")
    adversary.begin(lm, 1e-3, 0)
    adversary.step(lm, batch)
    change = {name: d.clone() for name, d in delta(adversary).items()}
    with torch.no_grad():
        for p in trained_weights(lm).values():
            p.add_(0.25)
    moved = {name: p.detach().clone() for name, p in trained_weights(lm).items()}
    with adversary.shifted(lm) as weights:
        assert all(torch.equal(weights[name].data, moved[name] + change[name]) for name in adversary.names)


def test_blocks_and_lora_change_what_they_say(made: Toy) -> None:
    lm, batch = ready(made), made.batch()["forget"]
    some = Adversary(lm, "blocks", blocks="1")
    assert some.names
    assert all(".layers.1." in name for name in some.names)
    low = Adversary(lm, "lora", rank=2)
    assert {trained_weights(lm)[name].ndim for name in low.names} == {2}
    low.begin(lm, 1e-2, 0)
    assert not any(d.any() for d in delta(low).values())
    first = low.step(lm, batch)
    for _ in range(3):
        last = low.step(lm, batch)
    assert last < first
    assert {int(torch.linalg.matrix_rank(d, atol=1e-7)) for d in delta(low).values()} <= {1, 2}


def test_the_gradient_of_a_low_rank_adversary_is_that_of_its_parts(made: Toy) -> None:
    """Against autograd through the product."""
    lm, batch = ready(made), made.batch()["forget"]
    adversary = Adversary(lm, "lora", rank=2)
    adversary.begin(lm, 1e-9, 0)
    name = adversary.names[0]
    adversary.parts[name] = (adversary.parts[name][0], torch.randn(adversary.parts[name][1].shape) * 0.1)

    def loss() -> torch.Tensor:
        out = forward(lm, batch)
        return token_nll(out.logits_AV, out.targets_A).mean()

    _, gradients = adversary.gradients(lm, loss)
    adversary._give(name, gradients[name])
    down, up = (part.clone().requires_grad_(True) for part in adversary.parts[name])
    weight = trained_weights(lm)[name]
    kept = weight.detach().clone()
    moved = kept + up @ down
    out = torch.func.functional_call(lm, {name: moved}, (), {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT})
    labels = batch.labels_BT[:, 1:]
    nll = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)
    expected = torch.autograd.grad(nll, [down, up])
    for part, gradient in zip(adversary.parts[name], expected, strict=True):
        torch.testing.assert_close(part.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_state_goes_through_a_file_and_on_as_if_nothing_had_been(made: Toy, tmp_path: Path, kind: str) -> None:
    lm, batch = ready(made), made.batch()["forget"]
    one = Adversary(lm, kind)
    assert one.state() == {}
    one.begin(lm, 1e-3, 0)
    one.step(lm, batch)
    torch.save(one.state(), tmp_path / "a.pt")
    other = Adversary(lm, kind)
    other.restore(torch.load(tmp_path / "a.pt", weights_only=True), torch.device("cpu"))
    for _ in range(2):
        assert one.step(lm, batch).item() == other.step(lm, batch).item()
    assert all(torch.equal(a, b) for a, b in zip(delta(one).values(), delta(other).values(), strict=True))


def test_an_adversary_without_weights_and_one_that_never_began_are_errors(made: Toy) -> None:
    lm = ready(made)
    with pytest.raises(RuntimeError, match="must begin"):
        Adversary(lm, "full").step(lm, made.batch()["forget"])
    for p in trained_weights(lm).values():
        p.requires_grad_(p.ndim == 1)
    with pytest.raises(ConfigError, match=r"method\.adversary 'lora' must have trained weights to change"):
        Adversary(lm, "lora")


def test_it_can_be_rehearsed_without_numbers(made: Toy) -> None:
    """``unlearn doctor`` runs a step on shapes alone."""
    lm = ready(made).to("meta")
    adversary = Adversary(lm, "full")
    adversary.begin(lm, 1e-3, 0)
    for name in adversary.names:
        adversary._give(name, torch.zeros_like(adversary.parts[name][0]))
    adversary.optimizer.step()
    assert {part.device.type for parts in adversary.parts.values() for part in parts} == {"meta"}
