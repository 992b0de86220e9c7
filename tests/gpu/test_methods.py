"""Every method of the registry on a GPU, beside the same on the CPU."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.comparison import Seen, gradient_difference, loss_difference
from tests.distributed.every_method import CASES, STEPS, train, trained_methods, uneven_data
from tests.gpu.device import ACCELERATOR, DEVICE, note
from tests.toys import Toy, toy
from unlearn.models.forward import forward, generate
from unlearn.registry import entries

LOSS, SHAKY = 1e-4, 1e-3
"""Largest difference of a loss, relative to 1 or to the loss, whichever is more; of a method in ``SENSITIVE``."""
SENSITIVE = ("circuit_breaker", "rmu")
"""Methods of which some settings have their losses moved by 1e-4 on the CPU where the first weights are shaken by 3e-7 of their size."""
MOVED = 0.1
"""Largest difference of the weights after training, as a share of how far training moved them: shaking them as above makes up to 0.03.
AdamW divides a gradient by its own size: where one is all but zero, rounding decides which way a weight goes."""
EDITS = sorted(set(entries("method")) - {"none", *trained_methods()})


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"), data=uneven_data())


@pytest.fixture(scope="module")
def there(here: Toy) -> Toy:
    return here.on(DEVICE)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("taught"), taught=True)


def astray(a: Seen, b: Seen) -> float:
    """How far the weights of two trainings that began alike end apart, as a share of the way that the first of them went."""
    apart, way = (
        math.sqrt(sum((x["weights"][name] - y[kind][name]).double().square().sum().item() for name in x["weights"]))
        for x, y, kind in ((a, b, "weights"), (a, a, "before"))
    )
    return apart / way


@pytest.mark.parametrize("label", CASES)
def test_a_method_trains_as_on_the_cpu(here: Toy, there: Toy, label: str) -> None:
    one, other = train(here, CASES[label], 1), train(there, CASES[label], 1, ACCELERATOR)
    assert one["rows"] == other["rows"]
    assert len(other["terms"]) == STEPS * CASES[label].accumulate
    assert other["devices"] == [DEVICE]
    assert all(torch.equal(one["before"][name], other["before"][name]) for name in one["before"])
    found = {"loss": loss_difference(one, other), "gradient": gradient_difference(one, other), "weights": astray(one, other)}
    note("method", case=label, **found)
    assert found["loss"] <= (SHAKY if CASES[label].method in SENSITIVE else LOSS)
    assert found["weights"] <= MOVED


def answers(made: Toy, name: str) -> tuple[torch.Tensor, list[list[int]], set[str]]:
    """Logits and texts of the edited model, and the kinds of devices that the edit is on."""
    lm, method = made.trained(name)
    batch = made.batch()["forget"]
    prompts = [ids[: int(end)].tolist() for ids, end in zip(batch.input_ids_BT, batch.answer_start_B, strict=True)]
    with torch.no_grad():
        logits_AV = forward(lm, batch).logits_AV.float().cpu()
    kinds = {tensor.device.type for part in (lm, method) for tensor in (*part.parameters(), *part.buffers())}
    return logits_AV, generate(lm, made.tokenizer, prompts, 4), kinds


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_gives_the_model_that_it_gives_on_the_cpu(taught: Toy, name: str) -> None:
    wanted_AV, texts, _ = answers(taught, name)
    found_AV, same, kinds = answers(taught.on(DEVICE), name)
    apart = (wanted_AV - found_AV).abs().max().item() / wanted_AV.abs().max().item()
    note("edit", case=name, logits=apart)
    assert apart <= 1e-3
    assert same == texts
    assert kinds == {DEVICE}


def test_what_is_read_from_the_frozen_model_is_the_same(taught: Toy) -> None:
    """References, banks and the choice of latents, which a run keeps in its cache whatever it was made on."""
    from unlearn.config.schema import LatentsConfig
    from unlearn.latents.banks import build_banks
    from unlearn.latents.selection import select_latents
    from unlearn.models.hook_check import measure_hook_point
    from unlearn.models.reference import ReferenceStore

    def read(made: Toy, folder: Path) -> dict[str, Any]:
        batch = made.batch(8)
        banks = build_banks(made.lm, [batch["known"]], [batch["unknown"]], [batch["forget"]], made.sae)
        reference = ReferenceStore.build(made.lm, list(batch.values()), layers=(1, 2), path=folder)
        found = {f"bank {side} {place}": rows for side in ("known", "unknown", "matched") for place, rows in getattr(banks, side).items()}
        found |= {
            "logits": reference.logits(batch["retain"]),
            "hidden": reference.hidden(batch["retain"], 2),
            "nll": reference.nll(batch["known"]),
        }
        report = measure_hook_point(made.lm, made.sae, [batch["known"]], 1)
        found["hook"] = torch.tensor([*report.fvu.values(), *report.l0.values()])
        selected = select_latents(made.sae, banks, LatentsConfig(top_k=8)).latents_S
        return {**{name: tensor.detach().cpu() for name, tensor in found.items()}, "latents": selected.cpu()}

    other = taught.on(DEVICE)
    wanted, found = read(taught, taught.reference.path.with_name("here")), read(other, taught.reference.path.with_name("there"))
    assert torch.equal(wanted.pop("latents"), found.pop("latents"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    copied = copy.deepcopy(other.lm)
    assert {p.device.type for p in copied.parameters()} == {DEVICE}
