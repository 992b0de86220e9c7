from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.mini import make_mini
from tests.tiny import tiny_batch, tiny_llama, tiny_tokenizer
from tests.toys import Toy, batched, toy
from unlearn.config.schema import EvaluationConfig, LatentsConfig, SAEConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.latents.banks import activations_at, build_banks
from unlearn.latents.selection import select_latents
from unlearn.models.capture import capture
from unlearn.models.decoder import blocks_of
from unlearn.models.hook_check import check_hook_point, measure_hook_point
from unlearn.models.route_sae import (
    ROUTE_FILES,
    RouteSAE,
    Routing,
    convert_checkpoint,
    load_route_sae,
    route,
    save_route_sae,
    shared_topk,
)
from unlearn.registry import entries, find

D, F, K = 32, 64, 8


def weights(layers: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict under the names of the authors' code."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "router.weight": (layers, D),
        "sae.pre_bias": (D,),
        "sae.latent_bias": (F,),
        "sae.encoder.weight": (F, D),
        "sae.decoder.weight": (D, F),
    }
    return {name: 0.3 * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def by_hand(state: dict[str, torch.Tensor], x_NLD: torch.Tensor, pool: str = "sum") -> tuple[torch.Tensor, ...]:
    """Token by token: what is encoded, activations, reconstruction, index of the block."""
    rows = []
    for x_LD in x_NLD.double():
        x_LD = torch.stack([(x - x.mean()) / (x.var(correction=1).sqrt() + 1e-6) for x in x_LD])
        v = sum(x_LD) / (len(x_LD) if pool == "mean" else 1)
        logits = state["router.weight"].double() @ v
        p = torch.exp(logits) / torch.exp(logits).sum()
        chosen = int(p.argmax())
        x = p[chosen] * x_LD[chosen]
        pre = state["sae.encoder.weight"].double() @ (x - state["sae.pre_bias"]) + state["sae.latent_bias"]
        acts = torch.zeros(F, dtype=torch.float64)
        for i in pre.argsort(descending=True)[:K].tolist():
            acts[i] = max(pre[i], 0.0)
        rows.append((x, acts, state["sae.decoder.weight"].double() @ acts + state["sae.pre_bias"], torch.tensor(chosen)))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def routed(layers: tuple[int, ...] = (0, 1, 2), seed: int = 0, **options: Any) -> RouteSAE:
    s = weights(len(layers), seed)
    sae = shared_topk(
        encoder_DF=s["sae.encoder.weight"].T,
        b_enc_F=s["sae.latent_bias"],
        decoder_FD=s["sae.decoder.weight"].T,
        b_dec_D=s["sae.pre_bias"],
        k=K,
    )
    return RouteSAE(sae, s["router.weight"], Routing(layers=layers, **options))


@pytest.fixture(scope="module")
def x_NLD() -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    return 2 * torch.randn(40, 3, D, generator=g) + torch.randn(40, 3, 1, generator=g)


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_a_converted_checkpoint_computes_what_the_paper_says(tmp_path: Path, x_NLD: torch.Tensor, pool: str) -> None:
    torch.save(weights(), tmp_path / "sum_hard_K8.pt")
    convert_checkpoint(tmp_path / "sum_hard_K8.pt", tmp_path / "sae", n_blocks=4, k=K, pool=pool)
    sae = load_route_sae(tmp_path / "sae")
    assert sae.layers == (0, 1, 2)  # hidden_states[1:4]
    hidden = {layer: x_NLD[:, i] for i, layer in enumerate(sae.layers)}
    x, acts, rebuilt, chosen = by_hand(weights(), x_NLD, pool)
    assert len(set(chosen.tolist())) == 3
    read = sae.read(hidden)
    assert torch.equal(sae.choice(hidden), chosen)
    torch.testing.assert_close(read.double(), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode(read).double(), acts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(read)).double(), rebuilt, rtol=1e-4, atol=1e-5)


def test_blocks_of_a_converted_checkpoint_are_those_of_the_paper(tmp_path: Path) -> None:
    torch.save(weights(9), tmp_path / "a.pt")  # Llama-3.2-1B: hidden_states[4:13], the outputs of blocks 3 to 11
    convert_checkpoint(tmp_path / "a.pt", tmp_path / "sae", n_blocks=16, k=K)
    assert load_route_sae(tmp_path / "sae").layers == tuple(range(3, 12))
    with pytest.raises(ModelError, match="with 12 blocks must have a router of 7 rows; found 9"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "other", n_blocks=12, k=K)
    torch.save({"W": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(ModelError, match=r"b\.pt must be a RouteSAE's state dict; found KeyError: 'router.weight'"):
        convert_checkpoint(tmp_path / "b.pt", tmp_path / "other", n_blocks=16, k=K)


def test_options_by_hand() -> None:
    x = torch.tensor([[[3.0, 0.0], [1.0, 2.0]]])  # sum [4, 2], mean [2, 1]
    router = torch.tensor([[0.0, 0.0], [0.0, 0.5]])  # logits 0 and 1, or 0 and 0.5
    for pool, logit in (("sum", 1.0), ("mean", 0.5)):
        p = torch.tensor([0.0, logit]).softmax(0)[1]
        read, chosen = route(x, router, Routing(layers=(0, 1), pool=pool, normalise="none"))
        torch.testing.assert_close(read, p * x[:, 1])
        assert chosen.tolist() == [1]
        assert torch.equal(route(x, router, Routing(layers=(0, 1), pool=pool, normalise="none", weighted=False))[0], x[:, 1])


def test_leading_dimensions_do_not_matter(x_NLD: torch.Tensor) -> None:
    sae = routed()
    flat = {n: x_NLD[:, i] for i, n in enumerate(sae.layers)}
    folded = {n: x.reshape(5, 8, D) for n, x in flat.items()}
    torch.testing.assert_close(sae.read(folded).reshape(40, D), sae.read(flat))
    assert torch.equal(sae.choice(folded).reshape(40), sae.choice(flat))


def test_gradients_are_those_of_the_routed_function_with_the_choice_held(x_NLD: torch.Tensor) -> None:
    router = weights()["router.weight"].double()
    x = x_NLD[:6].double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: route(t, router, Routing(layers=(0, 1, 2)))[0], (x,))
    read, chosen = route(x, router, Routing(layers=(0, 1, 2), weighted=False))
    (gradient,) = torch.autograd.grad(read[:, 0].sum(), x)
    for i, index in enumerate(chosen.tolist()):
        assert gradient[i, index].abs().sum() > 0
        assert gradient[i, [n for n in range(3) if n != index]].abs().sum() == 0  # without the weight, the chosen block alone


def test_it_stays_frozen_in_full_precision_and_follows_the_module(x_NLD: torch.Tensor) -> None:
    sae = routed()
    holder = nn.ModuleDict({"sae": sae, "other": nn.Linear(2, 2)})
    assert len(list(holder.parameters())) == 2
    holder.to(torch.bfloat16).train().requires_grad_(True)
    assert sae.sae.router_LD.dtype == torch.float32
    assert not any(p.requires_grad for p in sae.parameters())
    hidden = {n: x_NLD[:, i].bfloat16() for i, n in enumerate(sae.layers)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sae.read(hidden).dtype == torch.float32
    moved = routed().to("meta")
    assert moved.sae.router_LD.device.type == moved.sae.W_enc.device.type == "meta"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path, x_NLD: torch.Tensor) -> None:
    sae = routed((0, 2, 3), pool="mean", weighted=False)
    save_route_sae(tmp_path, sae.sae, sae.sae.router_LD, sae.routing)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(ROUTE_FILES)
    again = load_route_sae(tmp_path)
    assert again.routing == sae.routing
    hidden = {n: x_NLD[:, i] for i, n in enumerate(sae.layers)}
    assert torch.equal(again.read(hidden), sae.read(hidden))
    assert torch.equal(again.encode(x_NLD[:, 0]), sae.encode(x_NLD[:, 0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [1]}, "layers of a RouteSAE must be two or more ascending block numbers; found (1,)"),
        ({"layers": [2, 1, 3]}, "layers of a RouteSAE must be two or more ascending block numbers"),
        ({"layers": [-2, 1, 3]}, "layers of a RouteSAE must be"),
        ({"pool": "max"}, "pool of a RouteSAE must be sum or mean; found 'max'"),
        ({"normalise": "layer"}, "normalise of a RouteSAE must be token or none; found 'layer'"),
        ({"weighted": "no"}, "weighted of a RouteSAE must be true or false; found 'no'"),
        ({"layers": [1, 2]}, r"The router of a RouteSAE must be of shape (2, 32) (blocks, width); found (3, 32)"),
        ({"depth": 3}, "route.json must hold layers, pool, normalise and weighted; found TypeError"),
    ],
)
def test_a_bad_directory_says_what_is_wrong(tmp_path: Path, change: dict, message: str) -> None:
    sae = routed()
    save_route_sae(tmp_path, sae.sae, sae.sae.router_LD, sae.routing)
    facts = json.loads((tmp_path / "route.json").read_text())
    (tmp_path / "route.json").write_text(json.dumps(facts | change))
    with pytest.raises(ModelError) as caught:
        load_route_sae(tmp_path)
    assert message in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    sae = routed()
    save_route_sae(tmp_path, sae.sae, sae.sae.router_LD, sae.routing)
    (tmp_path / "router.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"router\.safetensors must hold the matrix 'router'; found SafetensorError"):
        load_route_sae(tmp_path)
    (tmp_path / "router.safetensors").unlink()
    with pytest.raises(ModelError, match=r"sae\.route must be a RouteSAE's directory with .*; found no router\.safetensors in"):
        load_route_sae(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("path", "p"), ("layer", 2), ("release", "r")])
def test_the_key_excludes_the_others(key: str, value: object) -> None:
    more = {"sae_id": "i"} if key == "release" else {}
    with pytest.raises(ConfigError, match=f"sae.{key} must be null when sae.route is given; found {value!r}"):
        SAEConfig(route="x", **{key: value}, **more)


def test_asking_for_its_one_block_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"sae\.route must be null where the output of one block is edited; found .* blocks 0, 1, 2"):
        _ = routed().layer


# ---- on a language model ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy run with a RouteSAE of blocks 0 to 2."""
    toys = toy(tmp_path_factory.mktemp("toy"))
    toys.sae = routed()
    matched = batched(toys.datamodule, toys.datamodule.streams["forget"])
    known, unknown = (batched(toys.datamodule, toys.datamodule.streams[s]) for s in ("known", "unknown"))
    toys.banks = build_banks(toys.lm, known, unknown, matched, toys.sae)
    toys.selection = select_latents(toys.sae, toys.banks, LatentsConfig(top_k=8))
    return toys


def method(made: Toy, **config: Any) -> Any:
    cls = find("method", "sae_guided").load()
    return cls(cls.Config(name="sae_guided", **config), made.context(hook_layer=2))


def test_what_is_read_is_the_routed_output_at_the_position_and_nothing_above_runs(made: Toy) -> None:
    batch = made.batch()["forget"]
    batch = batch._replace(entity_end_B=batch.entity_end_B.index_fill(0, torch.tensor([2]), -1))
    calls: list[int] = []
    handle = blocks_of(made.lm)[3].register_forward_hook(lambda *a: calls.append(1))
    try:
        found = activations_at(made.lm, batch, made.sae, "entity_end")
    finally:
        handle.remove()
    assert not calls
    x_NLD = torch.stack([torch.stack([capture(made.lm, batch, n)[row, batch.entity_end_B[row]] for n in (0, 1, 2)]) for row in (0, 1, 3)])
    torch.testing.assert_close(found.double(), by_hand(weights(), x_NLD)[0], rtol=1e-4, atol=1e-4)
    assert made.banks.layer == 2
    assert made.banks.known["entity_end"].shape == (12, D)


@pytest.mark.parametrize(("space", "share"), [("preactivation", 0.7), ("activation", 0.95), ("decoded", 0.9), ("residual", 0.7)])
def test_guided_training_brings_what_is_read_to_the_unknown(made: Toy, space: str, share: float) -> None:
    lm, m = copy.deepcopy(made.lm), method(made, objective="prototype", space=space, retain_kl=0.0, retain_hidden=0.0)
    assert m.forget_layer() == m.deepest_layer() == 2
    trained = [p.requires_grad_(True) for block in blocks_of(lm)[:3] for p in block.parameters()]
    optimiser = torch.optim.Adam(trained, lr=3e-3)
    first = m.loss(lm, made.batch()).terms["forget"].item()
    for _ in range(20):
        optimiser.zero_grad()
        m.loss(lm, made.batch()).total.backward()
        optimiser.step()
    assert m.loss(lm, made.batch()).terms["forget"].item() < share * first


def test_the_retain_term_is_the_mean_over_the_blocks(made: Toy) -> None:
    changed = copy.deepcopy(made.lm)
    with torch.no_grad():
        next(blocks_of(changed)[0].parameters()).add_(0.1)
    batch, expected = made.batch(), []
    for layer in (0, 1, 2):
        old, new = [], []
        for stream in ("retain", "known", "unknown"):
            keep = batch[stream].attention_mask_BT.bool().clone()
            keep[:, 0] = False
            old.append(capture(made.lm, batch[stream], layer)[keep])
            new.append(capture(changed, batch[stream], layer)[keep])
        before, after = torch.cat(old), torch.cat(new)
        expected.append((after - before).square().mean() / before.var(0).mean())
    assert method(made).loss(changed, batch).terms["retain_hidden"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_the_meter_measures_what_the_sae_reads(made: Toy) -> None:
    meter = made.meter(EvaluationConfig(bootstrap=0, permutations=9))
    rows = meter.groups["unknown"].tokens
    found = meter.activations(made.lm, "unknown")
    (batch,) = batched(made.datamodule, rows[:1])
    torch.testing.assert_close(found[0], activations_at(made.lm, batch, made.sae, "entity_end")[0])
    assert {"latent/c2st_auc", "latent/p_unknown", "latent/mmd"} <= set(meter.full(made.lm))


BATCHES = [tiny_batch(rows=16, length=20, seed=seed, shortest=12) for seed in range(3)]


def tokens(lm: Any, layers: tuple[int, ...]) -> torch.Tensor:
    parts = []
    for batch in BATCHES:
        mask = batch.attention_mask_BT.bool().clone()
        mask[:, 0] = False
        parts.append(torch.stack([capture(lm, batch, n)[mask] for n in layers], dim=1))
    return torch.cat(parts).detach()


@torch.no_grad()
def test_the_hook_check_measures_the_routed_reconstruction(made: Toy) -> None:
    report = measure_hook_point(made.lm, made.sae, BATCHES, 2)
    assert set(report.fvu) == {1, 2, 3}
    for deepest in (1, 2, 3):
        x, acts, rebuilt, chosen = by_hand(weights(), tokens(made.lm, (deepest - 2, deepest - 1, deepest)))
        assert report.fvu[deepest] == pytest.approx(float((x - rebuilt).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4)
        assert report.l0[deepest] == pytest.approx(float((acts > 0).double().sum(1).mean()), rel=1e-3)
        if deepest == 2:
            assert report.shares == pytest.approx({n: float((chosen == n).double().mean()) for n in (0, 1, 2)}, abs=0.005)
    assert set(measure_hook_point(made.lm, routed((-1, 0, 3)), BATCHES, 3).fvu) == {3}
    with pytest.raises(ModelError, match=r"every block of sae\.route must be a block of the model, 0 to 3 .*; found 7"):
        measure_hook_point(made.lm, routed((1, 3, 7)), BATCHES, 7)


def test_blocks_that_are_one_off_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_llama(layers=4, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in blocks_of(lm):
            narrow = torch.randn(32, 3, generator=generator) @ torch.randn(3, 64, generator=generator)
            block.mlp.down_proj.weight.copy_(narrow)
    x_NLD, routing = tokens(lm, (1, 2)), Routing(layers=(1, 2))
    torch.manual_seed(0)
    router = torch.randn(2, D) * 0.3
    encoder, decoder = nn.Parameter(torch.randn(D, 96) / D**0.5), nn.Parameter(torch.randn(96, D) / D**0.5)
    optimiser = torch.optim.Adam([encoder, decoder], lr=5e-3)
    for _ in range(150):
        x, _ = route(x_NLD, router, routing)
        top = (x @ encoder).topk(10, dim=-1)
        rebuilt = torch.zeros(len(x), 96).scatter(-1, top.indices, top.values.relu()) @ decoder
        optimiser.zero_grad()
        (x - rebuilt).square().sum(-1).mean().backward()
        optimiser.step()

    def at(layers: tuple[int, ...]) -> RouteSAE:
        sae = shared_topk(encoder_DF=encoder, b_enc_F=torch.zeros(96), decoder_FD=decoder, b_dec_D=torch.zeros(D), k=10)
        return RouteSAE(sae, router, Routing(layers=layers))

    with caplog.at_level(logging.INFO):
        report = check_hook_point(lm, at((1, 2)), BATCHES, 2, 0.4)
    assert report.best == 2
    assert "SAE at blocks 1, 2: FVU" in caplog.text
    with pytest.raises(
        ModelError, match=r"sae\.route must name the blocks .*; found blocks 0, 1, but it reconstructs blocks 1, 2 better \(FVU"
    ):
        check_hook_point(lm, at((0, 1)), BATCHES, 1, 1.0)


def test_methods_that_read_one_block_say_so() -> None:
    from unlearn.methods.base import Method

    takes = {}
    for name in entries("method"):
        cls: type[Method] = find("method", name).load()
        takes[name] = cls.takes_routed(cls.Config(name=name))
        if not takes[name]:
            assert cls.required(cls.Config(name=name)) & {"sae", "banks"}
    assert takes["sae_guided"]
    assert takes["grad_diff"]


def test_a_run_refuses_a_method_that_reads_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearn.assembly import check_routed
    from unlearn.config.load import load_config

    config = load_config({"name": "a", "data": {"source": "world"}, "sae": {"route": "x"}, "method": {"name": "sae_guided"}})
    cls = find("method", "sae_guided").load()
    check_routed(cls, config)
    monkeypatch.setattr(cls, "routed", False)
    with pytest.raises(
        ConfigError, match=r"sae\.route must be null with method\.name 'sae_guided', whose SAE reads one block; found 'x'\."
    ):
        check_routed(cls, config)


@pytest.mark.parametrize(
    ("width", "blocks", "said"),
    [
        (D, 4, "ok: {folder}: 64 latents on the output of one of blocks 0, 1, 2"),
        (D + 4, 4, "fail: sae.route must fit the model's width 36; found d_in 32 in {folder}."),
        (D, 2, "fail: sae.route must read the model's 2 blocks; found block 2 in {folder}."),
    ],
)
def test_the_doctor_looks_at_the_directory(tmp_path: Path, width: int, blocks: int, said: str) -> None:
    from unlearn.cli.inspection import Inspection

    sae = routed()
    save_route_sae(tmp_path / "sae", sae.sae, sae.sae.router_LD, sae.routing)
    lm = tiny_llama(layers=blocks, d_model=width, heads=2)
    lm.save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    config = {"name": "a", "data": {"source": "world"}, "model": {"path": str(tmp_path / "lm")}, "sae": {"route": str(tmp_path / "sae")}}
    (tmp_path / "run.yaml").write_text(json.dumps({**config, "method": {"name": "sae_guided"}}))
    (check,) = [check for name, check in Inspection([str(tmp_path / "run.yaml")]).checks() if name == "sae"]
    (found,) = list(check())
    assert f"{found.status}: {found.text}" == said.format(folder=tmp_path / "sae")


@pytest.mark.slow
def test_a_whole_run_and_its_restoration(tmp_path: Path) -> None:
    from unlearn.config.load import load_config
    from unlearn.restore import restore
    from unlearn.run import execute
    from unlearn.tracking.reader import read_run

    sae = routed()
    save_route_sae(tmp_path / "route", sae.sae, sae.sae.router_LD, sae.routing)
    settings = make_mini(tmp_path)
    settings |= {"sae": {"route": str(tmp_path / "route"), "check_hook": False}, "tracking": {"enabled": False}}
    path = execute(load_config(settings, ["optim.steps=2", "evaluation.every=0", "evaluation.bootstrap=0", "evaluation.null_draws=0"]))
    record = read_run(path)
    assert record.status["state"] == "finished"
    assert {"latent/c2st_auc", "latent/probe_auc", "collapse/hidden_norm_drift"} <= set(record.results)
    hook = record.manifest["hook"]
    assert hook["layer"] == 2
    assert set(hook["shares"]) == {"0", "1", "2"}
    assert sum(hook["shares"].values()) == pytest.approx(1.0)
    back = restore(path)
    assert back.suite.layer == 2
    target = back.suite.meter.activations(back.module.lm, "forget")
    np.testing.assert_allclose(np.load(path / "activations.npz")["target_after_KD"], target.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"sae\.route must be null where the output of one block is edited"):
        _ = back.suite.meter.sae.layer
