from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.tiny import tiny_gemma2, tiny_gpt2, tiny_llama
from tests.toys import Toy, toy
from unlearn.assembly import select_weights
from unlearn.config.schema import ModelConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.methods import kuda
from unlearn.methods.kuda import KUDA, KUDAConfig, deviation_loss, relaxed_null_space
from unlearn.methods.tracing import hooked
from unlearn.models.capture import capture
from unlearn.models.forward import forward


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def on(made: Toy, lm: Any, model: ModelConfig | None = None, **settings: Any) -> tuple[Any, KUDA]:
    method = KUDA(KUDAConfig(name="kuda", **{"retain": "none", **settings}), made.context())
    lm, _ = select_weights(lm, method, model or ModelConfig())
    method.setup(lm)
    return lm, method


def test_doctests() -> None:
    assert doctest.testmod(kuda).failed == 0


def test_deviation_loss_falls_with_the_angle_and_not_with_the_length() -> None:
    ref, still = torch.randn(6, 8), torch.zeros(8)
    assert deviation_loss(3 * ref, ref, still, 0.0).item() == pytest.approx(1.0, abs=1e-6)
    assert deviation_loss(-0.1 * ref, ref, still, 0.0).item() == pytest.approx(0.0, abs=1e-6)
    hidden = ref.clone().requires_grad_(True)
    deviation_loss(hidden, ref, still, 0.0).backward()
    assert hidden.grad.abs().max() < 1e-6  # no slope where nothing has moved
    hidden.grad = None
    deviation_loss(hidden, ref, torch.nn.functional.normalize(torch.randn(8), dim=0), 0.01).backward()
    assert hidden.grad.abs().max() > 1e-4


def test_without_relaxation_it_is_the_null_space() -> None:
    x = np.random.default_rng(0).normal(size=(4, 7))
    null = scipy.linalg.null_space(x)
    found = relaxed_null_space(torch.tensor(x.T @ x), 0.0).numpy()
    np.testing.assert_allclose(found, null @ null.T, atol=1e-8)
    np.testing.assert_allclose(found @ found, found, atol=1e-8)
    np.testing.assert_allclose(relaxed_null_space(torch.tensor(x.T @ x), 1.0).numpy(), np.eye(7), atol=1e-8)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_projected_gradients_are_hardly_felt_by_retained_inputs(made: Toy, make) -> None:  # noqa: ANN001
    relaxation = 0.02
    lm, method = on(made, make(), window=2, relaxation=relaxation)
    method.loss(lm, made.batch()).total.backward()
    plain = [weight.grad.clone() for _, weight in method.linear]
    method.adjust_gradients(lm)
    inputs: dict[int, list[torch.Tensor]] = {n: [] for n in range(len(method.linear))}
    with hooked({n: m for n, (m, _) in enumerate(method.linear)}, lambda n, args, out: inputs[n].append(args[0]), before=True):
        for batch in made.reader(1).batches(made.data.streams["retain"]):
            with torch.no_grad():
                forward(lm, batch)
    assert len(method.linear) == (4 if make is tiny_gpt2 else 6)
    for n, (module, weight) in enumerate(method.linear):
        seen = torch.cat([x.flatten(0, 1) for x in inputs[n]]).double()
        change = (weight.grad.T if type(module).__name__ == "Conv1D" else weight.grad).double()
        limit = relaxation * torch.linalg.eigvalsh(seen.T @ seen).max() * change.square().sum()
        assert change.abs().sum() > 0
        assert (seen @ change.T).square().sum() <= limit * 1.01
        assert change.norm() < plain[n].norm()


def test_only_the_matrices_of_the_window_are_trained(made: Toy) -> None:
    for make, matrices in ((tiny_llama, 3), (tiny_gpt2, 2)):
        lm, method = on(made, make(), window=2, first_layer=1)
        names = [n for n, p in lm.named_parameters() if p.requires_grad]
        assert method.blocks == (1, 2)
        assert len(names) == 2 * matrices
        assert all(".mlp." in n and (".1." in n or ".2." in n) and not n.endswith("bias") for n in names)


def test_the_window_is_the_one_that_brings_most_back(made: Toy) -> None:
    _, method = on(made, tiny_llama(), window=2)
    assert len(method.recovered) == 3
    assert method.blocks[0] == int(np.argmax(method.recovered))
    _, again = on(made, tiny_llama(), window=2)
    assert again.recovered == method.recovered
    assert on(made, tiny_llama(), window=9)[1].blocks == (0, 1, 2, 3)


def test_the_loss_by_hand(made: Toy) -> None:
    lm, method = on(made, tiny_llama(), window=2, first_layer=1, kick=0.05, forget_weight=3.0)
    batch = made.batch()
    before = [capture(lm, batch["forget"], n) for n in (1, 2)]
    with torch.no_grad():
        for _, weight in method.linear:
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    out = method.loss(lm, batch)
    values = []
    for i, n in enumerate((1, 2)):
        after = capture(lm, batch["forget"], n)
        for row in range(4):
            for place in range(1, int(batch["forget"].attention_mask_BT[row].sum())):
                ref = before[i][row, place].double()
                now = after[row, place].double() + 0.05 * ref.norm() * method.shift_LD[i].double()
                values.append(((now @ ref) / (now.norm() * ref.norm()) + 1) / 2)
    assert out.terms["forget"].item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)
    assert out.total.item() == pytest.approx(3 * out.terms["forget"].item(), rel=1e-6)
    assert set(out.terms) == {"forget"}


def test_training_turns_the_representations_away(made: Toy) -> None:
    lm, method = on(made, tiny_llama(), relaxation=1.0, forget_weight=1.0)
    optimizer = torch.optim.Adam([weight for _, weight in method.linear], lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        loss = method.loss(lm, made.batch()).total
        loss.backward()
        method.adjust_gradients(lm)
        optimizer.step()
    assert loss.item() < 0.5


@pytest.mark.parametrize("exact", [False, True])
def test_exact_keeps_the_weights_in_the_span(made: Toy, exact: bool) -> None:
    lm, method = on(made, tiny_llama(), relaxation=0.01, exact=exact)
    start = [weight.detach().clone() for _, weight in method.linear]
    optimizer = torch.optim.AdamW([weight for _, weight in method.linear], lr=1e-2)
    for number in range(3):
        method.before_step(lm, number, 3)
        optimizer.zero_grad()
        method.loss(lm, made.batch()).total.backward()
        method.adjust_gradients(lm)
        optimizer.step()
    method.finish(lm)
    outside = []
    for n, (_, weight) in enumerate(method.linear):
        change = (weight - start[n]).detach()
        outside.append(((change - change @ method.projections[n]).norm() / change.norm()).item())
    assert (max(outside) < 1e-3) == exact


def test_model_trainable_narrows_what_is_trained(made: Toy) -> None:
    down = ModelConfig(trainable=TrainableConfig(mode="modules", blocks="all", modules=["mlp.down_proj"]))
    lm, method = on(made, tiny_llama(), down, window=2)
    assert len(method.linear) == 2
    above = ModelConfig(trainable=TrainableConfig(blocks="3"))
    with pytest.raises(ConfigError, match=r"model\.trainable must leave MLP weights of blocks 0-1"):
        on(made, tiny_llama(), above, window=2, first_layer=0)
    with pytest.raises(ConfigError, match=r"model\.trainable\.mode must not be lora"):
        on(made, tiny_llama(), ModelConfig(trainable=TrainableConfig(mode="lora")))


def test_a_window_that_does_not_fit_or_cannot_be_traced_is_an_error(made: Toy) -> None:
    with pytest.raises(ConfigError, match=r"method\.first_layer must be at most 1 for a window of 3 blocks; found 2"):
        made.method("kuda", first_layer=2)
    nameless = replace(
        made.data, streams={**made.data.streams, "forget": tuple(replace(r, mentions=()) for r in made.data.streams["forget"])}
    )
    method = KUDA(KUDAConfig(name="kuda", retain="none"), made.context(data=nameless))
    lm, _ = select_weights(tiny_llama(), method, ModelConfig())
    with pytest.raises(ConfigError, match=r"method\.first_layer must be given"):
        method.setup(lm)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window", 0),
        ("first_layer", -1),
        ("trace_rows", 0),
        ("noise", 0.0),
        ("draws", 0),
        ("forget_weight", -1.0),
        ("kick", 0.0),
        ("relaxation", 1.5),
        ("null_rows", 0),
        ("retain", "l2"),
        ("retain_weight", -1.0),
    ],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{key} must be"):
        KUDAConfig(name="kuda", **{key: value})
