from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.toys import Toy, toy
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.methods.task_vector import TaskVectorConfig, negated
from unlearn.models.forward import forward
from unlearn.models.trainable import select_trainable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def nll(lm, batch) -> float:  # noqa: ANN001
    with torch.no_grad():
        out = forward(lm, batch)
    return cross_entropy(out.logits_AV, out.targets_A).item()


def reinforced(made: Toy, steps: int = 4, **config: float):  # noqa: ANN201
    lm, method = made.ready("task_vector", **config)
    optimizer = torch.optim.SGD([p for p in lm.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        method.loss(lm, made.batch()).total.backward()
        optimizer.step()
    return lm, method


def test_by_hand() -> None:
    assert negated(torch.tensor([1.0]), torch.tensor([3.0]), 5.0).tolist() == [-9.0]
    small = torch.tensor([1.0 + 2**-7], dtype=torch.bfloat16)
    assert negated(torch.ones(1, dtype=torch.bfloat16), small, 1.0).item() == 1 - 2**-7


def test_the_loss_is_the_cross_entropy_of_the_forget_answers(made: Toy) -> None:
    batch = made.batch()["forget"]
    logits = made.lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), batch.labels_BT[:, 1:].flatten(), ignore_index=-100)
    assert made.method("task_vector").loss(made.lm, {"forget": batch}).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_lowers_the_forget_loss_and_the_finish_raises_it_above_the_original(made: Toy) -> None:
    batch = made.batch()["forget"]
    before = nll(made.lm, batch)
    lm, method = reinforced(made, alpha=2.0)
    assert nll(lm, batch) < before - 0.1
    method.finish(lm)
    assert nll(lm, batch) > before + 0.1


def test_finish_is_the_formula_on_the_trained_weights_and_touches_no_other(made: Toy) -> None:
    lm, method = reinforced(made, alpha=3.0)
    changed = copy.deepcopy(lm.state_dict())
    method.finish(lm)
    moved = 0
    for name, value in lm.state_dict().items():
        original = made.lm.state_dict()[name]
        torch.testing.assert_close(value, original - 3 * (changed[name] - original), atol=1e-6, rtol=1e-5)
        moved += int(not torch.equal(value, original))
    assert moved
    assert moved == len([n for n, p in lm.named_parameters() if p.requires_grad])


def test_alpha_zero_gives_the_original_back(made: Toy) -> None:
    lm, method = reinforced(made, alpha=0.0)
    method.finish(lm)
    assert all(torch.equal(value, made.lm.state_dict()[name]) for name, value in lm.state_dict().items())


def test_adapters_are_negated_as_a_product(made: Toy) -> None:
    """What the adapter adds to a weight is -alpha times what training added."""
    config = ModelConfig(trainable=TrainableConfig(mode="lora"), lora=LoRAConfig(rank=2, targets=["down_proj"]))
    lm, _ = select_trainable(copy.deepcopy(made.lm), config, None)
    method = made.method("task_vector", alpha=3.0)
    method.setup(lm)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))

    def deltas() -> list[torch.Tensor]:
        return [m.get_delta_weight("default").detach().clone() for m in lm.modules() if hasattr(m, "get_delta_weight")]

    trained = deltas()
    method.finish(lm)
    assert trained
    for after, before in zip(deltas(), trained, strict=True):
        torch.testing.assert_close(after, -3 * before)


def test_a_resumed_run_knows_the_original_weights(made: Toy) -> None:
    """A resumed run sets a new method up on the original model and loads the trained weights afterwards."""
    lm, method = reinforced(made)
    resumed, again = made.ready("task_vector")
    resumed.load_state_dict(lm.state_dict())
    again.load_state_dict(method.state_dict(), strict=False)
    method.finish(lm)
    again.finish(resumed)
    assert all(torch.equal(a, b) for a, b in zip(lm.state_dict().values(), resumed.state_dict().values(), strict=True))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_settings_name_their_key(value: float) -> None:
    with pytest.raises(ConfigError, match="method.alpha must be"):
        TaskVectorConfig(name="task_vector", alpha=value)
