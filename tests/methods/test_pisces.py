from __future__ import annotations

import copy

import pytest
import torch

from tests.oracles.load import OracleSAE
from tests.tiny import tiny_gemma2, tiny_gpt2, tiny_llama
from tests.toys import LAYER, Toy, toy
from unlearn.assembly import select_weights
from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.methods.pisces import PISCESConfig, neuron_vectors, output_layer, rewrite
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of

LATENTS = torch.tensor([3, 11])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_rewriting_one_neuron_at_a_time_by_hand() -> None:
    sae = OracleSAE()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 12, generator=generator).double()
    sign = torch.randn(20, generator=generator).sign().double()
    affinity = vectors @ sae.W_enc[:, LATENTS]
    out = rewrite(sae, vectors, affinity, LATENTS, 0.4, 2.0, sign)
    largest = affinity.abs().max()
    touched = 0
    for n in range(20):
        wanted, changed = sae.encode(vectors[n]), False
        for column, latent in enumerate(LATENTS.tolist()):
            if affinity[n, column].abs() > 0.4 * affinity[:, column].abs().max():
                wanted[latent], changed = -2.0 * largest * sign[n], True
        error = vectors[n] - sae.decode(sae.encode(vectors[n]))
        expected = sae.decode(wanted) + error if changed else vectors[n]
        torch.testing.assert_close(out[n], expected)
        touched += changed
    assert 2 <= touched < 20


def test_the_change_lies_in_the_span_of_the_decoder_vectors() -> None:
    sae = OracleSAE()
    vectors = torch.randn(20, 12, generator=torch.Generator().manual_seed(1)).double()
    delta = rewrite(sae, vectors, vectors @ sae.W_enc[:, LATENTS], LATENTS, 0.2, 5.0, torch.ones(20).double()) - vectors
    basis = torch.linalg.qr(sae.W_dec[LATENTS].T).Q
    torch.testing.assert_close(delta @ basis @ basis.T, delta)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_output_vectors_are_what_a_neuron_writes(make) -> None:  # noqa: ANN001
    layer = output_layer(blocks_of(make())[1])
    vectors_ND = neuron_vectors(layer)
    one = torch.zeros(1, len(vectors_ND))
    one[0, 5] = 1.0
    with torch.no_grad():
        written = layer(one)[0] - layer(torch.zeros_like(one))[0]
    torch.testing.assert_close(written, vectors_ND[5])


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_every_family_is_edited_in_its_mlp_output_matrices_alone(made: Toy, make) -> None:  # noqa: ANN001
    before = make().requires_grad_(False)
    method = made.method("pisces", latents=[1, 2, 3])
    lm, report = select_weights(copy.deepcopy(before), method, ModelConfig())
    method.setup(lm)
    method.finish(lm)
    changed = {n for n, p in lm.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed == set(report.names)
    assert len(changed) == LAYER + 1


def test_the_feature_falls_where_the_neurons_fire_on_the_target(made: Toy) -> None:
    before, after = {}, {}
    _, probe = made.ready("pisces", retain_threshold=0.5, n_features=2)
    lm, _ = made.trained("pisces", latents=probe.latents_S.tolist(), mu=3.0, tau=0.2)
    for model, values in ((made.lm, before), (lm, after)):
        for stream in ("forget", "retain"):
            batch = made.batch()[stream]
            with torch.no_grad():
                pre = made.sae.preactivations(capture(model, batch, LAYER, batch.entity_end_B), probe.latents_S)
            values[stream] = pre.mean().item()
    assert after["forget"] < before["forget"] - 1.0


def test_signs_are_the_majority_at_the_names_last_token(made: Toy) -> None:
    lm, method = made.ready("pisces", latents=[1])
    batch = next(b for b in made.reader(64).batches(made.data.streams["forget"]))
    seen: list[torch.Tensor] = []
    handle = blocks_of(lm)[0].mlp.down_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        capture(lm, batch, LAYER)
    handle.remove()
    at_name = seen[0][torch.arange(len(batch.row_id_B)), batch.entity_end_B]
    assert torch.equal(method.signs[0], at_name.sign().sum(0).sign())


def test_number_of_blocks_and_ramp(made: Toy) -> None:
    method = made.method("pisces", blocks=1)
    assert list(method.edited) == [1]
    assert method.trainable(4).blocks == "1-1"
    ramped = made.method("pisces", ramp=9, mu=10.0)
    assert [ramped._strength(i) for i in (0, 9, 12)] == pytest.approx([1.0, 10.0, 10.0])
    assert ramped._strength(3) == pytest.approx(4.0)


def test_tau_decides_how_many_neurons_and_mu_how_far(made: Toy) -> None:
    def change(**settings) -> torch.Tensor:  # noqa: ANN003
        lm, _ = made.trained("pisces", latents=[1, 2], **settings)
        return neuron_vectors(output_layer(blocks_of(lm)[1])) - neuron_vectors(output_layer(blocks_of(made.lm)[1]))

    few, many = change(tau=0.9), change(tau=0.1)
    assert 0 < (few != 0).any(1).sum() < (many != 0).any(1).sum()
    assert change(tau=0.1, mu=72.0).norm() > 1.5 * many.norm()


def test_weights_that_are_not_trained_are_not_edited(made: Toy) -> None:
    method = made.method("pisces", latents=[1])
    lora = ModelConfig(trainable=TrainableConfig(mode="lora", blocks="0-1"), lora=LoRAConfig(rank=2, targets=["down_proj"]))
    lm, _ = select_weights(copy.deepcopy(made.lm), method, lora)
    method.setup(lm)
    with pytest.raises(ConfigError, match=r"model\.trainable must free an MLP output matrix of blocks 0 to 1"):
        method.finish(lm)
    lm, _ = select_weights(copy.deepcopy(made.lm), method, ModelConfig(trainable=TrainableConfig(mode="blocks", blocks="0")))
    method.setup(lm)
    method.finish(lm)
    changed = {n for n, p in lm.named_parameters() if not torch.equal(p, made.lm.get_parameter(n))}
    assert changed == {"model.layers.0.mlp.down_proj.weight"}


def test_a_block_without_a_known_mlp_is_refused() -> None:
    with pytest.raises(ModelError, match=r"mlp\.down_proj or mlp\.c_proj; found none in Linear"):
        output_layer(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("key", "value"), [("tau", 1.0), ("tau", -0.1), ("mu", -1.0), ("blocks", -1), ("ramp", -1), ("n_features", 0)])
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        PISCESConfig(name="pisces", **{key: value})
