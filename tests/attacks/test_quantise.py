"""Quantisation: which weights are rounded to what, and what is asked of the rounded copy."""

import copy
import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.tiny import tiny_gpt2, tiny_llama
from unlearn.attack import weights_hash
from unlearn.attacks import quantise
from unlearn.attacks.asking import ask
from unlearn.attacks.quantise import Quantise, QuantiseConfig, round_nf4
from unlearn.errors import ConfigError
from unlearn.models.ensemble import ensemble_of, first_blocks, join

INTEGERS = ["int8", "int4"]
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
"""Values of NormalFloat4, QLoRA's appendix E."""


def nearest_nf4(weight_OI, block):
    """Every weight at the nearest value, blocks along the inputs, by brute force."""
    found = np.empty_like(weight_OI)
    for out in range(len(weight_OI)):
        for start in range(0, weight_OI.shape[1], block):
            part = weight_OI[out, start : start + block]
            scale = np.abs(part).max() or 1.0
            found[out, start : start + block] = scale * np.array(NF4)[np.abs(part[:, None] / scale - NF4).argmin(1)]
    return found


def rounded_by_hand(weight_OI, bits, size):
    found = weight_OI.copy()
    for start in range(0, weight_OI.shape[1], size):
        part = weight_OI[:, start : start + size]
        step = np.abs(part).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
        step[step == 0] = 1
        found[:, start : start + size] = np.rint(part / step) * step
    return found


@pytest.fixture
def bitsandbytes(monkeypatch):
    """A library of that name, so that the way to it is tested where it is not installed; it sees blocks of 64 in rows, as handed over."""

    def quantize_4bit(weight, blocksize, quant_type):
        assert quant_type == "nf4"
        assert weight.shape[1] == blocksize == 64
        assert weight.is_contiguous()
        return weight, None

    def dequantize_4bit(codes, state):
        return torch.tensor(nearest_nf4(codes.numpy(), 64))

    package, functional = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.functional")
    functional.quantize_4bit, functional.dequantize_4bit = quantize_4bit, dequantize_4bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    monkeypatch.setattr(quantise, "has_nf4", lambda: True)


def attack(**settings):
    return Quantise(QuantiseConfig(**{"formats": INTEGERS, **settings}))


@pytest.mark.parametrize(("make", "transposed"), [(tiny_llama, False), (tiny_gpt2, True)])
@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_the_linear_layers_of_the_blocks_are_rounded_and_nothing_else(taught, make, transposed, name, bits):
    lm = make(layers=2)
    before = {key: value.clone() for key, value in lm.state_dict().items()}
    after = attack(group_size=24).rounded(replace(taught, lm=lm), name).state_dict()
    linear = 0
    for key, old in before.items():
        if old.ndim == 2 and (".layers." in key or ".h." in key):
            linear += 1
            old_OI, new_OI = (w.numpy().T if transposed else w.numpy() for w in (old, after[key]))
            np.testing.assert_allclose(new_OI, rounded_by_hand(old_OI, bits, 24), atol=1e-6, err_msg=key)
        else:
            assert torch.equal(old, after[key]), key
        assert torch.equal(old, lm.state_dict()[key]), key
    assert linear == 2 * (4 if transposed else 7)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_embeddings_and_head_only_where_asked_for(taught, make):
    lm = make(layers=2)
    changed = attack(embeddings=True).rounded(replace(taught, lm=lm), "int4")
    for module, old in (
        (changed.get_input_embeddings(), lm.get_input_embeddings()),
        (changed.get_output_embeddings(), lm.get_output_embeddings()),
    ):
        np.testing.assert_allclose(module.weight.detach().numpy(), rounded_by_hand(old.weight.detach().numpy(), 4, 64), atol=1e-6)


def test_the_small_models_of_an_ensemble_are_rounded_too(taught):
    lm = tiny_llama(layers=3)
    join(lm, first_blocks(lm, 1), first_blocks(lm, 1), 1.0)
    made = ensemble_of(attack().rounded(replace(taught, lm=lm), "int4"))
    for small, old in ((made.frozen, ensemble_of(lm).frozen), (made.tuned, ensemble_of(lm).tuned)):
        new, was = (s.decoder.layers[0].mlp.up_proj.weight.detach().numpy() for s in (small, old))
        np.testing.assert_allclose(new, rounded_by_hand(was, 4, 64), atol=1e-6)


def test_accuracy_after_each_rounding_and_the_change(taught):
    found = attack().run(taught)
    results = found.results("attack/quantise", "accuracy", 0, 0)
    assert found.cells == ("int8", "int4")
    for cell, (name, bits) in enumerate((("int8", 8), ("int4", 4))):
        lm = copy.deepcopy(taught.lm)
        for block in lm.model.layers:
            for module in block.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.data = torch.tensor(rounded_by_hand(module.weight.detach().numpy(), bits, 64))
        hits = ask(lm, taught.target.test, taught.reader)
        assert found.target[cell].tolist() == hits.tolist()
        assert results[f"attack/quantise_{name}_accuracy"] == hits.mean()
        assert results[f"attack/quantise_{name}_change"] == pytest.approx(hits.mean() - 1)  # the model knows all of them
    assert results["attack/quantise_int8_accuracy"] == 1
    assert results["attack/quantise_control"] < 0.7


def test_a_change_smaller_than_the_grid_is_undone(taught):
    """The fault that the attack looks for: facts are lost by moving every weight a little, and rounding brings them back."""
    known = attack().rounded(taught, "int4")
    lm = copy.deepcopy(known).requires_grad_(True)
    for token in taught.reader.tokens(taught.target.test):
        ids = torch.tensor([token.ids])
        lm(ids, labels=torch.where(torch.arange(len(token.ids)) < token.answer_start, -100, ids)).loss.backward()
    for module, was in zip(lm.model.layers.modules(), known.model.layers.modules(), strict=True):
        if isinstance(module, torch.nn.Linear):
            top = was.weight.abs().amax(1, keepdim=True)
            moved = was.weight + 0.45 * top / 7 * module.weight.grad.sign()
            module.weight.data = torch.where(was.weight.abs() == top, was.weight, moved).data
    lm.requires_grad_(False)
    found = attack(formats=["int4"]).run(replace(taught, lm=lm))
    hits, before = (ask(m, taught.target.test, taught.reader) for m in (known, lm))
    assert found.target[0].tolist() == hits.tolist()
    assert found.extra["attack/quantise_int4_change"] == pytest.approx(hits.mean() - before.mean())
    assert hits.mean() > before.mean()


def test_model_and_random_state_stay_and_it_repeats(taught):
    before, state = weights_hash(taught.lm), torch.get_rng_state()
    assert attack().missing(taught) is None
    assert attack().run(taught).record() == attack().run(taught).record()
    assert weights_hash(taught.lm) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_without_the_library_nf4_is_left_out(taught, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert attack(formats=["int8", "nf4"]).run(taught).cells == ("int8",)
    assert "bitsandbytes" in attack(formats=["nf4"]).missing(taught)


def test_nf4_is_what_the_library_gives(bitsandbytes):
    """Against numbers of bitsandbytes 0.50.2 on a CPU; a short row is one block."""
    weight = [2.0, -2.0, 1.0, -1.0, 0.5, -0.5, 0.1, -0.1, 1.62, -1.72, 0.0, 0.33, -0.77, 1.28, -0.04, 0.05]
    given = [
        2.0,
        -2.0,
        0.88142,
        -1.050146,
        0.492225,
        -0.568883,
        0.159161,
        -0.1821,
        1.445914,
        -2.0,
        0.0,
        0.32186,
        -0.789835,
        1.125234,
        0.0,
        0.0,
    ]
    assert round_nf4(torch.tensor([weight]))[0].tolist() == pytest.approx(given, abs=1e-6)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_nf4_blocks_lie_along_the_inputs(taught, bitsandbytes, make):
    lm = make(layers=1, d_model=96)
    changed = attack(formats=["nf4"]).rounded(replace(taught, lm=lm), "nf4")
    name = "model.layers.0.self_attn.q_proj.weight" if make is tiny_llama else "transformer.h.0.attn.c_attn.weight"
    old, new = (m.state_dict()[name].numpy() for m in (lm, changed))
    old, new = (old, new) if make is tiny_llama else (old.T, new.T)
    np.testing.assert_allclose(new, nearest_nf4(old, 64), atol=1e-6)


def test_nf4_is_a_cell_where_the_library_is(taught, bitsandbytes):
    found = Quantise(QuantiseConfig()).run(taught)
    assert found.cells == ("int8", "int4", "nf4")
    assert found.extra["attack/quantise_nf4_accuracy"] == found.target[2].mean()


@pytest.mark.parametrize(
    ("settings", "key"), [({"formats": []}, "formats"), ({"formats": ["int3"]}, "formats"), ({"formats": ["int8", "int8"]}, "formats"),
                          ({"group_size": 0}, "group_size"), ({"group_size": float("nan")}, "group_size")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, key):
    with pytest.raises(ConfigError, match=rf"^attack\.quantise\.{key} must be"):
        QuantiseConfig(**settings)
