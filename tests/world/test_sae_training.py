import json

import pytest
import torch
from sae_lens import SAE

from unlearn.world.sae_training import sae_quality, train_sae

K, WIDTH, LATENTS = 3, 16, 48


def sparse_activations(n=4000, scale=30.0):
    """Sums of three of 24 directions around a mean: what a TopK SAE with k = 3 can explain."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, WIDTH, generator=generator), dim=-1)
    chosen = torch.rand(n, 24, generator=generator).topk(K).indices
    weights = 1 + torch.rand(n, K, generator=generator)
    mean = torch.randn(WIDTH, generator=generator)
    return scale * ((directions[chosen] * weights[..., None]).sum(1) + mean)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("sae")
    activations_ND = sparse_activations()
    quality = train_sae(
        activations_ND, d_sae=LATENTS, k=K, steps=600, lr=3e-3, seed=0, layer=1, model_name="m", out=out, batch_size=256, progress=False
    )
    return out, quality, activations_ND


def test_plain_sae_lens_opens_the_folder_and_finds_its_hook(trained):
    out, _, _ = trained
    sae = SAE.load_from_disk(out)
    assert sae.cfg.architecture() == "topk"
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.k) == (WIDTH, LATENTS, K)
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert sae.cfg.metadata.model_name == "m"


def test_the_saved_sae_reads_raw_activations(trained):
    """Encoder, top k and decoder written out: nothing but the saved weights is needed."""
    out, quality, x = trained
    assert json.loads((out / "cfg.json").read_text())["normalize_activations"] == "none"
    sae = SAE.load_from_disk(out)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    top = pre.topk(K)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    assert torch.allclose(acts, sae.encode(x), atol=1e-3)
    fvu = (x - acts @ sae.W_dec - sae.b_dec).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert quality.fvu == pytest.approx(fvu.item(), abs=1e-4)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(LATENTS), atol=1e-4)


def test_it_explains_sparse_activations(trained):
    """Far better than any three directions for all activations together (principal components)."""
    _, quality, x = trained
    spectrum = torch.linalg.svdvals(x - x.mean(0)).pow(2)
    assert quality.fvu < 0.5 * float(1 - spectrum[:K].sum() / spectrum.sum())
    assert quality.l0 == pytest.approx(K, abs=0.1)
    assert 0 <= quality.dead < LATENTS


def test_the_seed_decides_and_the_global_random_state_is_kept(tmp_path):
    x = sparse_activations(500)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()

    def weights(name, seed):
        train_sae(
            x, d_sae=24, k=2, steps=5, lr=1e-3, seed=seed, layer=0, model_name="m", out=tmp_path / name, batch_size=32, progress=False
        )
        return SAE.load_from_disk(tmp_path / name).W_enc

    assert weights("a", 1).equal(weights("b", 1))
    assert not weights("c", 2).equal(weights("a", 1))
    assert torch.random.get_rng_state().equal(before)


def test_quality_of_a_perfect_and_of_a_silent_sae():
    class Identity(torch.nn.Module):
        def encode(self, x):
            return x

        def decode(self, acts):
            return acts

    class Silent(Identity):
        def encode(self, x):
            return torch.zeros_like(x)

    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert sae_quality(Identity(), x).fvu == 0
    assert sae_quality(Identity(), x).l0 == 1
    assert sae_quality(Identity(), x).dead == 1
    assert sae_quality(Silent(), x).fvu == pytest.approx(5)
