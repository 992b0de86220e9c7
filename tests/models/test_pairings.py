"""Models and SAEs that do not belong together, in the true file formats: what the hook-point check says of each, with its figures."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import SHAPES, Hub, redirected
from tests.architectures.hub import REGISTRY, publish
from tests.architectures.saes import activations, entry, layer_of, registry, write_llama_scope
from tests.architectures.texts import corpus
from unlearn.config.schema import ModelConfig, SAEConfig
from unlearn.data.tokenize import TokenRow, batches
from unlearn.errors import ModelError
from unlearn.models.hook_check import HookReport, check_hook_point
from unlearn.models.lm import load_lm
from unlearn.models.sae import FrozenSAE, load_sae

pytestmark = pytest.mark.slow
MAX_FVU = SAEConfig().max_fvu
FORMATS = ["gemma-2-2b", "llama-3.1-8b", "gpt2-small"]


def model(name: str) -> tuple[Any, Any]:
    return load_lm(ModelConfig(path=SHAPES[name].repo), None)


def sae_of(name: str) -> FrozenSAE:
    release, sae_id = SHAPES[name].saes[0]
    return load_sae(SAEConfig(release=release, sae_id=sae_id), None)


def checked(name: str, sae: FrozenSAE, layer: int | None = None) -> HookReport:
    """The check on texts that the SAE was not fitted on."""
    lm, tokenizer = model(name)
    ids = [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids] for text in corpus()[1000:1060]]
    rows = [TokenRow(tuple(row), 1, -1, i) for i, row in enumerate(ids)]
    return check_hook_point(lm, sae, [batch for _, batch in batches(rows, 60, 0)], sae.layer if layer is None else layer, MAX_FVU)


@pytest.mark.parametrize("name", FORMATS)
def test_what_belongs_together_passes_without_a_word(small_hub: Hub, name: str, caplog: pytest.LogCaptureFixture) -> None:
    small_hub.need(name)
    with caplog.at_level(logging.WARNING, "unlearn"):
        report = checked(name, sae_of(name))
    assert report.best == report.layer
    assert report.fvu[report.layer] < 0.1
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "other"), [("gemma-2-2b", "llama-3.1-8b"), ("llama-3.1-8b", "gemma-2-2b"), ("llama-3.1-8b", "gpt2-small")]
)
def test_the_sae_of_another_model(small_hub: Hub, name: str, other: str) -> None:
    small_hub.need(name, other)
    sae = sae_of(other)
    with pytest.raises(ModelError, match=r"must leave at most 0.5 of the variance unexplained \(sae.max_fvu\); found FVU \d") as caught:
        checked(name, sae)
    assert f"another model (it was trained on {sae.metadata['model_name']})" in str(caught.value)


def test_another_width(small_hub: Hub, tmp_path: Path) -> None:
    small_hub.need("llama-3.1-8b")
    lm, tokenizer = model("llama-3.1-8b")
    known = entry("llama_scope_lxr_8x", "l11r_8x")
    write_llama_scope(activations(lm, tokenizer, 11)[:, :32], tmp_path / "sae" / known["path"], 11, known["norm_scaling_factor"])
    publish(tmp_path / "sae", small_hub.cache, registry()["llama_scope_lxr_8x"]["repo_id"])
    sae = load_sae(SAEConfig(release="llama_scope_lxr_8x", sae_id="l11r_8x"), None)
    with pytest.raises(ModelError, match="model's width 64; found d_in=32: it belongs to another model"):
        checked("llama-3.1-8b", sae)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_layer_off_by_one(small_hub: Hub, name: str, shift: int) -> None:
    small_hub.need(name)
    sae = sae_of(name)
    found = rf"found {sae.layer + shift}, but it reconstructs block {sae.layer} better \(FVU .*0\.\d+ at block {sae.layer}"
    with pytest.raises(ModelError, match=f"sae.layer must be the block the SAE was trained on; {found}"):
        checked(name, sae, sae.layer + shift)


def test_llama_scope_without_its_factor(small_hub: Hub, tmp_path: Path) -> None:
    """What sae_lens makes of a release whose registry entry lacks the factor: it goes on with the weights as they were saved."""
    small_hub.need("llama-3.1-8b")
    ((release, sae_id),) = SHAPES["llama-3.1-8b"].saes
    text = (small_hub.registry / REGISTRY).read_text(encoding="utf-8")
    start = text.index(f"\n{release}:\n")
    head, tail = text[:start], re.sub(rf"(- id: {sae_id}\n(?:    .*\n)*?)    norm_scaling_factor: .*\n", r"\1", text[start:], count=1)
    assert len(head + tail) < len(text)
    hub = Hub(tmp_path / "other", registry=False)
    hub.registry.mkdir(parents=True)
    (hub.registry / REGISTRY).write_text(head + tail, encoding="utf-8")
    hub.cache = small_hub.cache
    with redirected(hub), pytest.warns(UserWarning, match="norm_scaling_factor not found"):
        sae = sae_of("llama-3.1-8b")
    with pytest.raises(ModelError, match=r"found FVU \d.*missing input normalisation \(it states expected_average_only_in, which must be"):
        checked("llama-3.1-8b", sae)


@pytest.mark.parametrize("name", ["gemma-2-2b-it", "llama-3.1-8b-instruct"])
def test_the_sae_of_the_base_model_is_a_warning(small_hub: Hub, name: str, caplog: pytest.LogCaptureFixture) -> None:
    small_hub.need(name)
    base = str(SHAPES[name].of)
    with caplog.at_level(logging.WARNING, "unlearn"):
        report = checked(name, sae_of(base))
    (record,) = caplog.records
    said = record.getMessage()
    assert f"was trained on the base model {sae_of(base).metadata['model_name']}" in said
    assert f"the instruction-tuned model {SHAPES[name].repo}" in said
    assert f"{report.fvu[report.layer]:.3f} at block {report.layer}" in said


def test_the_sae_of_the_instruction_tuned_model_is_none(small_hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    small_hub.need("gemma-2-9b-it")
    with caplog.at_level(logging.WARNING, "unlearn"):
        report = checked("gemma-2-9b-it", sae_of("gemma-2-9b-it"))
    assert report.best == layer_of(SHAPES["gemma-2-9b-it"].saes[0][1])
    assert not caplog.records
