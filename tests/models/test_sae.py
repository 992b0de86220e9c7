from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.tiny import tiny_sae
from unlearn.config.schema import SAEConfig
from unlearn.errors import ModelError
from unlearn.models.sae import FrozenSAE, hook_layer, load_sae

ARCHITECTURES = ("topk", "jumprelu", "standard", "gated", "abstopk")
NORMS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
norm = pytest.mark.parametrize("norm", NORMS)
b_dec = pytest.mark.parametrize("b_dec", [True, False])

LATENTS = torch.tensor([60, 3, 17, 3])


def activations(n: int = 40, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n, 32, generator=torch.Generator().manual_seed(seed)) + 0.5


def pair(architecture, **options):
    """The same SAE twice: sae_lens's own, and ours."""
    return tiny_sae(architecture=architecture, **options), FrozenSAE(tiny_sae(architecture=architecture, **options))


@architecture
@norm
@b_dec
def test_equal_to_sae_lens(architecture, norm, b_dec):
    theirs, ours = pair(architecture, normalize_activations=norm, apply_b_dec_to_input=b_dec)
    hidden = activations()
    seen = []
    theirs.hook_sae_acts_pre.add_hook(lambda tensor, hook: seen.append(tensor))
    with torch.no_grad():
        acts = theirs.encode(hidden)
        rebuilt = theirs.decode(acts)
    assert 0 < (acts != 0).float().mean() < 1
    torch.testing.assert_close(ours.encode(hidden), acts)
    torch.testing.assert_close(ours.decode(acts, hidden), rebuilt)
    torch.testing.assert_close(ours(hidden), rebuilt)
    torch.testing.assert_close(ours.preactivations(hidden), seen[0], atol=1e-5, rtol=1e-5)


@architecture
@norm
def test_selected_columns_equal_the_full_product(architecture, norm):
    _, ours = pair(architecture, normalize_activations=norm)
    hidden = activations().view(5, 8, 32)
    torch.testing.assert_close(ours.preactivations(hidden, LATENTS), ours.preactivations(hidden)[..., LATENTS], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode(hidden, LATENTS), ours.encode(hidden)[..., LATENTS], atol=1e-5, rtol=1e-5)


def test_topk_rescaled_by_decoder_norms():
    theirs, ours = pair("topk", rescale_acts_by_decoder_norm=True)
    hidden = activations()
    acts = ours.encode(hidden)
    torch.testing.assert_close(acts, theirs.encode(hidden).detach())
    pre = ours.preactivations(hidden)
    top = pre.topk(8, dim=-1).indices
    torch.testing.assert_close(torch.zeros_like(pre).scatter(-1, top, pre.gather(-1, top).relu()), acts)
    torch.testing.assert_close(ours.preactivations(hidden, LATENTS), pre[:, LATENTS])
    torch.testing.assert_close(ours.decode(acts), theirs.decode(acts).detach())


def test_a_latent_that_is_off_has_a_gradient_in_its_preactivation_only():
    _, ours = pair("jumprelu")
    hidden = activations(1).requires_grad_()
    off = int((ours.encode(hidden)[0] == 0).nonzero()[0])
    (grad,) = torch.autograd.grad(ours.encode(hidden)[0, off], hidden)
    assert grad.abs().max() == 0
    (grad,) = torch.autograd.grad(ours.preactivations(hidden)[0, off], hidden)
    torch.testing.assert_close(grad[0], ours.sae.W_enc[:, off])


def test_nothing_trains_it_moves_it_or_rounds_it():
    _, ours = pair("gated")
    ours.requires_grad_(True)
    holder = nn.ModuleDict({"sae": ours, "other": nn.Linear(2, 2)})
    before = ours.encode(activations())
    holder.train()
    holder.requires_grad_(True)
    holder.to(torch.bfloat16)
    holder.half()
    assert holder["other"].weight.dtype == torch.float16
    assert not ours.training
    assert not ours.sae.training
    assert not any(p.requires_grad for p in ours.parameters())
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert {id(p) for p in holder.parameters()} == {id(p) for p in holder["other"].parameters()}
    assert list(holder.state_dict()) == ["other.weight", "other.bias"]
    assert torch.equal(ours.encode(activations()), before)


def test_moving_to_another_device():
    _, ours = pair("topk")
    nn.Sequential(ours).to("meta")
    assert {p.device.type for p in ours.parameters()} == {"meta"}
    assert ours.device.type == "meta"


@architecture
def test_half_precision_activations_and_autocast_are_computed_in_fp32(architecture):
    _, ours = pair(architecture)
    hidden = activations().bfloat16()
    exact = ours.encode(hidden.float()), ours.preactivations(hidden.float(), LATENTS), ours(hidden.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours.encode(hidden), ours.preactivations(hidden, LATENTS), ours(hidden)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_calls_do_not_depend_on_each_other(norm):
    theirs, ours = pair("topk", normalize_activations=norm)
    first, second = activations(seed=1), 9 * activations(seed=2)
    with torch.no_grad():
        acts = theirs.encode(first)
        expected = theirs.decode(acts)
    ours.encode(second)
    ours.preactivations(second)
    torch.testing.assert_close(ours.decode(acts, first), expected)
    torch.testing.assert_close(ours.decode(acts, first), expected)
    with pytest.raises(ModelError, match=f"the SAE's normalisation is {norm}; found none"):
        ours.decode(acts)


def test_hook_names():
    known = {
        "blocks.12.hook_resid_post": 12,
        "blocks.12.hook_resid_pre": 11,
        "blocks.0.hook_resid_pre": -1,
        "model.layers.7": 7,
        "model.layers.7.output": 7,
        "model.layers.7.input": 6,
        "model.language_model.layers.5": 5,
        "transformer.h.3": 3,
        "gpt_neox.layers.2.output": 2,
        "layers.4": 4,
        "blocks.2.hook_mlp_out": None,
        "blocks.2.attn.hook_z": None,
        "model.layers.7.mlp": None,
        "hook_embed": None,
    }
    assert {name: hook_layer(name) for name in known} == known


@pytest.mark.parametrize(
    ("metadata", "layer"),
    [
        ({"hook_name": "blocks.3.hook_resid_post"}, 3),
        ({"hook_name": "blocks.3.hook_resid_pre"}, 2),
        ({"hf_hook_name": "model.layers.5.output"}, 5),
        ({"hook_name": "blocks.9.hook_resid_post", "hf_hook_name": "model.layers.9"}, 9),
        ({"hook_name": "odd name", "hf_hook_name": "model.layers.6"}, 6),
    ],
)
def test_layer_from_metadata(tmp_path, metadata, layer):
    tiny_sae(metadata=metadata, path=tmp_path)
    assert load_sae(SAEConfig(path=str(tmp_path)), None).layer == layer


def test_layer_from_an_old_config_file(tmp_path):
    """SAELens before version 6 kept everything at the top level of cfg.json."""
    tiny_sae(architecture="standard", path=tmp_path)
    old = {
        "architecture": "standard",
        "d_in": 32,
        "d_sae": 64,
        "dtype": "float32",
        "device": "cpu",
        "hook_point": "blocks.4.hook_resid_post",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    assert load_sae(SAEConfig(path=str(tmp_path)), None).layer == 4


@pytest.mark.parametrize(("metadata", "found"), [({}, "no hook name"), ({"hook_name": "blocks.2.hook_mlp_out"}, "blocks.2.hook_mlp_out")])
def test_metadata_that_names_no_block(tmp_path, metadata, found):
    tiny_sae(metadata=metadata, path=tmp_path)
    with pytest.raises(ModelError, match=f"must name the residual stream .*found {found}: set sae.layer"):
        load_sae(SAEConfig(path=str(tmp_path)), None)
    assert load_sae(SAEConfig(path=str(tmp_path), layer=2), None).layer == 2


@architecture
def test_loading_a_directory(tmp_path, architecture):
    theirs = tiny_sae(architecture=architecture, path=tmp_path, dtype="float64" if architecture == "standard" else "float32")
    ours = load_sae(SAEConfig(), tmp_path)
    assert (ours.architecture, ours.d_in, ours.d_sae, ours.layer) == (architecture, 32, 64, 1)
    torch.testing.assert_close(ours.encode(activations()), theirs.encode(activations()).detach().float())


def test_a_named_directory_goes_before_the_sources_own(tmp_path):
    tiny_sae(path=tmp_path / "a", layer=1)
    tiny_sae(path=tmp_path / "b", layer=2)
    assert load_sae(SAEConfig(path=str(tmp_path / "b")), tmp_path / "a").layer == 2


def test_missing_and_damaged_directories(tmp_path):
    with pytest.raises(ModelError, match="sae.path or sae.release must name an SAE, since the data source brings none"):
        load_sae(SAEConfig(), None)
    with pytest.raises(ModelError, match=r"sae.path must be a SAELens directory .*found no cfg.json in .*nowhere"):
        load_sae(SAEConfig(path=str(tmp_path / "nowhere")), None)
    tiny_sae(path=tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="could not be loaded: SafetensorError") as caught:
        load_sae(SAEConfig(path=str(tmp_path)), None)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match="found no sae_weights.safetensors"):
        load_sae(SAEConfig(path=str(tmp_path)), None)


def test_unknown_releases():
    with pytest.raises(ModelError, match=r"found 'gemma-scope-2b-pt-rez'\. Did you mean 'gemma-scope-2b-pt-res'\?"):
        load_sae(SAEConfig(release="gemma-scope-2b-pt-rez", sae_id="layer_12/width_16k/average_l0_82"), None)
    with pytest.raises(
        ModelError, match=r"must be one of the \d+ of gemma-scope-2b-pt-res .*Did you mean 'layer_12/width_16k/average_l0_82'\?"
    ):
        load_sae(SAEConfig(release="gemma-scope-2b-pt-res", sae_id="layer_12/width_16k/average_l0_8"), None)


def test_a_release_that_cannot_be_fetched(monkeypatch):
    from sae_lens import SAE

    def refuse(*_, **__):
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(SAE, "from_pretrained", refuse)
    with pytest.raises(
        ModelError, match=r"gemma-scope-2b-pt-res \(layer_0/width_16k/average_l0_105\) could not be loaded: ConnectionError: no network$"
    ):
        load_sae(SAEConfig(release="gemma-scope-2b-pt-res", sae_id="layer_0/width_16k/average_l0_105"), None)


def test_a_release_is_loaded_through_sae_lens(monkeypatch):
    from sae_lens import SAE

    monkeypatch.setattr(SAE, "from_pretrained", lambda release, sae_id, device, dtype: tiny_sae(layer=12))
    assert load_sae(SAEConfig(release="gemma-scope-2b-pt-res", sae_id="layer_12/width_16k/average_l0_82"), None).layer == 12


def test_kinds_that_cannot_be_used():
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig

    pursuit = MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=8, d_sae=16))
    with pytest.raises(ModelError, match="must be one of standard, jumprelu, gated, topk, abstopk; found matching_pursuit"):
        FrozenSAE(pursuit, layer=1)
    with pytest.raises(ModelError, match="must read the residual stream; found reshape_activations='hook_z'"):
        FrozenSAE(tiny_sae(reshape_activations="hook_z", metadata={"hook_name": "blocks.1.attn.hook_z"}))
