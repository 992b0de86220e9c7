from __future__ import annotations

import logging

import pytest
import torch

from tests.tiny import tiny_batch, tiny_llama, tiny_sae
from unlearn.errors import ModelError
from unlearn.models.capture import capture
from unlearn.models.hook_check import check_hook_point, measure_hook_point
from unlearn.models.sae import FrozenSAE

BATCHES = [tiny_batch(rows=16, length=20, seed=seed, shortest=12) for seed in range(4)]


def tokens_at(lm, layer: int) -> torch.Tensor:
    """Activations of real tokens but the first of each row."""
    parts = []
    with torch.no_grad():
        for batch in BATCHES:
            mask = batch.attention_mask_BT.bool().clone()
            mask[:, 0] = False
            parts.append(capture(lm, batch, layer)[mask])
    return torch.cat(parts)


def fitted_sae(lm, layer: int, *, components: int = 12, norm: str = "none"):
    """A ReLU SAE whose latents are the +/- principal components of one layer."""
    x = tokens_at(lm, layer)
    if norm == "constant_norm_rescale":
        x = x * x.shape[1] ** 0.5 / x.norm(dim=-1, keepdim=True)
    mean = x.mean(0)
    _, _, basis = torch.linalg.svd(x - mean, full_matrices=False)
    basis = basis[:components]
    sae = tiny_sae(d_sae=2 * components, architecture="standard", layer=layer, normalize_activations=norm)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([basis, -basis]).T)
        sae.W_dec.copy_(torch.cat([basis, -basis]))
        sae.b_enc.zero_()
        sae.b_dec.copy_(mean)
    return sae


@pytest.fixture(scope="module")
def lm():
    """Each block moves the stream a lot, into directions of few components."""
    model = tiny_llama(layers=4, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
        for block in model.model.layers:
            narrow = torch.randn(32, 3, generator=generator) @ torch.randn(3, 64, generator=generator)
            block.mlp.down_proj.weight.copy_(narrow)
            block.self_attn.o_proj.weight.mul_(0.2)
    return model


def test_fvu_and_l0_against_a_direct_computation(lm):
    sae = tiny_sae(architecture="topk")
    report = measure_hook_point(lm, FrozenSAE(sae), BATCHES, 1)
    assert list(report.fvu) == [0, 1, 2]
    for layer in (0, 1, 2):
        x = tokens_at(lm, layer)
        with torch.no_grad():
            acts = sae.encode(x)
            error = x - sae.decode(acts)
        expected = error.square().sum() / (x - x.mean(0)).square().sum()
        assert report.fvu[layer] == pytest.approx(float(expected), rel=1e-5)
        assert report.l0[layer] == pytest.approx(float((acts > 0).sum(1).float().mean()))


@pytest.fixture(scope="module")
def trained(lm):
    """A TopK SAE for every layer, trained by plain gradient descent."""
    saes = {}
    for layer in range(-1, 4):
        x = tokens_at(lm, layer)
        sae = tiny_sae(d_sae=96, architecture="topk", layer=layer, k=10)
        with torch.no_grad():
            sae.b_dec.copy_(x.mean(0))
            sae.b_enc.zero_()
            sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True))
            sae.W_enc.copy_(sae.W_dec.T)
        optimiser = torch.optim.Adam(sae.parameters(), lr=3e-3)
        for _ in range(200):
            optimiser.zero_grad()
            (x - sae(x)).square().sum(-1).mean().backward()
            optimiser.step()
        saes[layer] = FrozenSAE(sae, layer)
    return saes


@pytest.mark.parametrize("layer", [-1, 0, 1, 2, 3])
def test_the_right_layer_passes(lm, trained, layer):
    report = check_hook_point(lm, trained[layer], BATCHES, layer, 0.25)
    assert report.layer == report.best == layer
    assert set(report.fvu) == {layer - 1, layer, layer + 1} & set(range(-1, 4))
    assert 0 < report.l0[layer] <= 10


@pytest.mark.parametrize(("declared", "true"), [(0, 1), (1, 2), (2, 1), (2, 3), (3, 2)])
def test_off_by_one_names_the_better_layer(lm, trained, declared, true):
    with pytest.raises(ModelError, match=rf"found {declared}, but it reconstructs block {true} better \(FVU .*at block {true}"):
        check_hook_point(lm, trained[true], BATCHES, declared, 1.0)


def test_embeddings_are_named(lm, trained):
    with pytest.raises(ModelError, match="found 0, but it reconstructs the embeddings better"):
        check_hook_point(lm, trained[-1], BATCHES, 0, 1.0)


def test_a_missing_normalisation(lm):
    sae = fitted_sae(lm, 1, norm="constant_norm_rescale")
    assert check_hook_point(lm, FrozenSAE(sae), BATCHES, 1, 0.5).fvu[1] < 0.3
    bare = fitted_sae(lm, 1, norm="constant_norm_rescale")
    bare.cfg.normalize_activations = "expected_average_only_in"
    bare._setup_activation_normalization()
    with torch.no_grad():
        bare.W_enc.mul_(0.2)
    with pytest.raises(ModelError, match=r"at most 0.5 of the variance .*missing input normalisation \(it states expected_average_only_in"):
        check_hook_point(lm, FrozenSAE(bare), BATCHES, 1, 0.5)


def test_not_strict_warns_and_goes_on(lm, trained, caplog):
    with caplog.at_level(logging.WARNING):
        report = check_hook_point(lm, trained[2], BATCHES, 1, 1.0, strict=False)
    assert report.best == 2
    assert "it reconstructs block 2 better" in caplog.text


def test_padding_and_first_tokens_do_not_count(lm):
    batch = BATCHES[0]
    sae = FrozenSAE(tiny_sae())
    changed = batch.input_ids_BT.clone()
    changed[~batch.attention_mask_BT.bool()] = 77
    before = measure_hook_point(lm, sae, [batch], 0)
    assert measure_hook_point(lm, sae, [batch._replace(input_ids_BT=changed)], 0) == before
    only_first = batch._replace(attention_mask_BT=torch.zeros_like(batch.attention_mask_BT).index_fill(1, torch.tensor([0]), 1))
    with pytest.raises(ModelError, match="rows of at least two tokens; found none"):
        measure_hook_point(lm, sae, [only_first], 0)


def test_another_width_and_a_layer_out_of_range(lm):
    with pytest.raises(ModelError, match="model's width 32; found d_in=16: it belongs to another model"):
        check_hook_point(lm, FrozenSAE(tiny_sae(d_in=16)), BATCHES, 1, 0.5)
    with pytest.raises(ModelError, match=r"sae.layer must be a block of the model, 0 to 3 .*found 9"):
        check_hook_point(lm, FrozenSAE(tiny_sae(layer=9)), BATCHES, 9, 0.5)
