from __future__ import annotations

import copy
import doctest

import numpy as np
import pytest
import torch

import unlearn.methods.sspu as module
from tests.tiny import tiny_gpt2, tiny_llama
from tests.toys import LAYER, Toy, toy
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.errors import ConfigError
from unlearn.methods.sspu import SSPU, SSPUConfig, basis, control_vector, outside
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of
from unlearn.models.trainable import select_trainable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def projector(vectors_KD: torch.Tensor) -> np.ndarray:
    """Onto the span of the rows, by the pseudo-inverse: independent of any basis."""
    v = vectors_KD.double().numpy()
    return v.T @ np.linalg.pinv(v.T)


def test_basis_is_orthonormal_and_spans_the_vectors() -> None:
    vectors = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).double()
    u = basis(vectors)
    torch.testing.assert_close(u.T @ u, torch.eye(3).double())
    np.testing.assert_allclose((u @ u.T).numpy(), projector(vectors), atol=1e-10)


def test_part_outside_is_what_the_projector_leaves() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors, delta = torch.randn(3, 7, generator=generator).double(), torch.randn(7, 5, generator=generator).double()
    left = (np.eye(7) - projector(vectors)) @ delta.numpy()
    assert outside(delta, basis(vectors)).item() == pytest.approx((left**2).sum(), rel=1e-9)
    assert outside(vectors.T, basis(vectors)).item() == pytest.approx(0.0, abs=1e-12)


def test_control_vector_lies_in_the_subspace_and_repeats_with_the_seed() -> None:
    u = basis(torch.randn(4, 9, generator=torch.Generator().manual_seed(2)))
    c = control_vector(u, 6.5, 3)
    assert c.norm().item() == pytest.approx(6.5, rel=1e-5)
    torch.testing.assert_close(u @ (u.T @ c), c)
    assert torch.equal(c, control_vector(u, 6.5, 3))
    assert not torch.allclose(c, control_vector(u, 6.5, 4))


def test_latents_are_the_two_ends_of_the_difference_of_mean_activations(made: Toy) -> None:
    _, method = made.ready("sspu", features=3)
    means = {}
    for stream in ("forget", "retain"):
        acts = [made.sae.encode(capture(made.lm, b, LAYER))[0, 1:] for b in made.reader(1).batches(made.data.streams[stream])]
        means[stream] = torch.cat(acts).mean(0)
    order = (means["forget"] - means["retain"]).argsort(descending=True)
    decoder = made.sae.sae.W_dec
    np.testing.assert_allclose((method.relevant_DK @ method.relevant_DK.T).numpy(), projector(decoder[order[:3]]), atol=1e-4)
    c = method.control_D.double().numpy()
    np.testing.assert_allclose(projector(decoder[order[-3:]]) @ c, c, atol=1e-4)


def test_loss_by_hand(made: Toy) -> None:
    lm, method = made.ready("sspu", steering=3.0, alpha=2.0, subspace_weight=5.0)
    batch = made.batch()
    before = capture(lm, batch["retain"], LAYER).detach()
    weight = blocks_of(lm)[LAYER].mlp.down_proj.weight
    with torch.no_grad():
        delta = 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight.add_(delta)
    out = method.loss(lm, batch)

    def inner(hidden_BTD, stream):  # noqa: ANN001, ANN202
        return torch.cat([h[1 : int(m.sum())] for h, m in zip(hidden_BTD, batch[stream].attention_mask_BT, strict=True)])

    forget = (inner(capture(lm, batch["forget"], LAYER), "forget") - method.control_D).square().mean()
    retain = (inner(capture(lm, batch["retain"], LAYER) - before, "retain")).square().mean()
    assert out.terms["forget"].item() == pytest.approx(forget.item(), rel=1e-4)
    assert out.terms["retain"].item() == pytest.approx(retain.item(), rel=1e-3)
    assert out.terms["subspace"].item() == pytest.approx(outside(delta, method.relevant_DK).item(), rel=1e-3)
    assert out.total.item() == pytest.approx(sum(w * t.item() for w, t in zip((1, 2, 5), out.terms.values(), strict=True)), rel=1e-4)


def test_a_heavy_penalty_keeps_updates_in_the_relevant_subspace(made: Toy) -> None:
    parts = {}
    for weight in (0.0, 1e4):
        lm, method = made.trained("sspu", steps=20, subspace_weight=weight)
        delta = blocks_of(lm)[LAYER].mlp.down_proj.weight.detach() - blocks_of(made.lm)[LAYER].mlp.down_proj.weight
        parts[weight] = (outside(delta, method.relevant_DK) / delta.square().sum()).item()
    assert parts[1e4] < 0.5 * parts[0.0]


def test_only_the_mlp_output_matrices_of_three_blocks_are_trained(made: Toy) -> None:
    lm, method = made.ready("sspu")
    trained = {n for n, p in lm.named_parameters() if p.requires_grad}
    assert trained == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    assert set(method.original) == trained
    deep = SSPU(SSPUConfig(name="sspu"), made.context(hook_layer=3))
    assert deep.trainable(4).blocks == "1-3"


def test_conv1d_matrices_are_turned_and_readers_are_not_constrained(made: Toy) -> None:
    method = made.method("sspu")
    lm = tiny_gpt2().requires_grad_(True)
    writers = dict(method._writers(lm))
    assert set(writers) == {f"transformer.h.{i}.{m}.c_proj.weight" for i in range(4) for m in ("attn", "mlp")}
    assert writers["transformer.h.0.mlp.c_proj.weight"].shape == (32, 128)
    llama = {name.split(".", 3)[3] for name, _ in method._writers(tiny_llama().requires_grad_(True))}
    assert llama == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}


def test_with_adapters_the_second_factor_is_constrained(made: Toy) -> None:
    config = ModelConfig(trainable=TrainableConfig(mode="lora", blocks="0-1"), lora=LoRAConfig(rank=2, targets=["down_proj", "up_proj"]))
    lm, _ = select_trainable(copy.deepcopy(made.lm), config, LAYER)
    method = made.method("sspu")
    method.setup(lm)
    assert sorted(method.original) == [f"model.layers.{i}.mlp.down_proj.lora_B.default.weight" for i in (0, 1)]
    out = method.loss(lm, made.batch())
    assert out.terms["subspace"].item() == 0.0
    out.total.backward()


def test_more_latents_than_there_are_is_refused(made: Toy) -> None:
    with pytest.raises(ConfigError, match=r"method\.features must be <= 32"):
        made.method("sspu", features=33)


@pytest.mark.parametrize(("key", "value"), [("features", 0), ("steering", 0.0), ("alpha", -1.0), ("subspace_weight", -1.0)])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        SSPUConfig(name="sspu", **{key: value})


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
