from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from tests.toys import Toy, toy
from unlearn.errors import ConfigError, ModelError
from unlearn.methods.rep_noise import RepNoise, RepNoiseConfig, ascent_loss, end_to_end, mlp_outputs, noise_distance
from unlearn.models.decoder import blocks_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def by_pairs(x: torch.Tensor, y: torch.Tensor) -> float:
    """The same distance, pair by pair in plain Python."""
    rows = [*x.tolist(), *y.tolist()]
    n = len(rows)
    squared = [[sum((a - b) ** 2 for a, b in zip(r, s, strict=True)) for s in rows] for r in rows]
    mean = sum(map(sum, squared)) / (n * n - n)
    kernel = [[sum(math.exp(-d / (mean / 4 * 2**i)) for i in range(5)) for d in line] for line in squared]
    half = len(x)

    def average(a: range, b: range) -> float:
        return sum(kernel[i][j] for i in a for j in b) / (len(a) * len(b))

    first, second = range(half), range(half, n)
    return average(first, first) + average(second, second) - 2 * average(first, second)


def test_distance_agrees_with_five_kernels_pair_by_pair() -> None:
    x, y = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 3 * x + 1
    assert noise_distance(x, y).item() == pytest.approx(by_pairs(x, y), rel=1e-9)
    assert noise_distance(y, y).item() == pytest.approx(0.0, abs=1e-12)


def test_distance_does_not_see_the_order_of_the_rows_and_falls_towards_the_noise() -> None:
    x, y = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    far = x + 5
    assert noise_distance(far.flip(0), y).item() == pytest.approx(noise_distance(far, y).item(), rel=1e-5)
    assert noise_distance(far, y) > noise_distance(x, y)
    far.requires_grad_()
    noise_distance(far, y).backward()
    assert (far.grad.mean(0) > 0).all()


def test_ascent_is_the_logarithm_of_one_plus_the_mean() -> None:
    assert ascent_loss(torch.tensor([1.0, 2.0, 6.0])).item() == pytest.approx(-math.log(4.0))


def test_tokens_are_laid_end_to_end() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[False, True, False], [True, False, True]])
    assert end_to_end(hidden, mask).tolist() == [[2.0, 3.0, 0.0, 0.0], [6.0, 7.0, 10.0, 11.0]]


def test_every_term_by_hand(made: Toy) -> None:
    lm, method = made.ready("rep_noise", retain="nll", noise_weight=0.5, ascent_weight=2.0, retain_weight=3.0)
    method.before_step(lm, 4, 10)
    batch = made.batch()
    rows = batch["forget"]
    out = lm(input_ids=rows.input_ids_BT, attention_mask=rows.attention_mask_BT, output_hidden_states=True)
    labels = rows.labels_BT[:, 1:].flatten()
    lenses = [lm.lm_head(lm.model.norm(h)) for h in out.hidden_states[1:-1]] + [out.logits]
    losses = [cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100) for logits in lenses]
    terms = (got := method.loss(lm, batch)).terms
    assert terms["forget"].item() == pytest.approx(-math.log(1 + torch.stack(losses).mean().item()), rel=1e-5)
    kept = batch["retain"]
    logits = lm(input_ids=kept.input_ids_BT, attention_mask=kept.attention_mask_BT).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), kept.labels_BT[:, 1:].flatten(), ignore_index=-100)
    assert terms["retain"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert got.total.item() == pytest.approx((2 * terms["forget"] + 0.5 * terms["noise"] + 3 * terms["retain"]).item(), rel=1e-5)
    seen: dict[int, torch.Tensor] = {}
    handles = [
        block.mlp.register_forward_hook(lambda module, args, output, n=n: seen.update({n: output})) for n, block in enumerate(blocks_of(lm))
    ]
    lm(input_ids=rows.input_ids_BT, attention_mask=rows.attention_mask_BT)
    for handle in handles:
        handle.remove()
    answers = rows.labels_BT != -100
    width = int(answers.sum(1).max()) * 32
    distances = []
    for layer, output in seen.items():
        x, noise = torch.zeros(len(output), width), method.noise(rows, layer, width)
        for i, mask in enumerate(answers):
            flat = output[i][mask].detach().flatten()
            x[i, : len(flat)] = flat
            noise[i, len(flat) :] = 0
        distances.append(by_pairs(x, noise))
    assert terms["noise"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-4)


def test_noise_is_normal_and_depends_on_row_step_and_layer(made: Toy) -> None:
    method, batch = made.method("rep_noise"), made.batch()["forget"]
    first = method.noise(batch, 0, 5000)
    assert first.mean().item() == pytest.approx(0.0, abs=0.03)
    assert first.std().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(first, method.noise(batch, 0, 5000))
    turned = type(batch)(*(t.flip(0) for t in batch))
    assert torch.equal(first.flip(0), method.noise(turned, 0, 5000))
    assert not torch.equal(first, method.noise(batch, 1, 5000))
    method.before_step(made.lm, 1, 10)
    assert not torch.equal(first, method.noise(batch, 0, 5000))


def test_training_on_the_noise_alone_brings_the_activations_nearer(made: Toy) -> None:
    lm, method = made.ready("rep_noise", ascent_weight=0.0, noise_weight=1.0, retain="none")
    optimizer = torch.optim.Adam([p for p in lm.parameters() if p.requires_grad], lr=5e-3)
    seen = []
    for step in range(15):
        method.before_step(lm, step, 15)
        optimizer.zero_grad()
        out = method.loss(lm, made.batch())
        seen.append(out.terms["noise"].item())
        out.total.backward()
        optimizer.step()
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_works_on_every_family(build) -> None:  # noqa: ANN001
    from unlearn.methods.base import MethodContext

    lm = build()
    method = RepNoise(RepNoiseConfig(name="rep_noise", retain="none"), MethodContext(n_blocks=4))
    with mlp_outputs(lm) as found:
        assert torch.isfinite(method.loss(lm, {"forget": tiny_batch()}).total)
    assert sorted(found) == [0, 1, 2, 3]


def test_a_model_without_mlps_is_refused() -> None:
    lm = tiny_llama()
    del blocks_of(lm)[2].mlp
    with pytest.raises(ModelError, match="must have an MLP in every block"), mlp_outputs(lm):
        pass
    assert not blocks_of(lm)[0].mlp._forward_hooks


@pytest.mark.parametrize(
    ("key", "value"),
    [("noise_weight", -1.0), ("noise_weight", float("nan")), ("ascent_weight", -1.0), ("tokens", "answer"), ("retain", "mse")],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        RepNoiseConfig(name="rep_noise", **{key: value})
