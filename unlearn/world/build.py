"""Builds a world: corpus, language model, two SAEs, and the gold model on request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unlearn.world.cache import obtain
from unlearn.world.corpus import KNOWN_ONLY, MIX, Corpus
from unlearn.world.encyclopaedia import encyclopaedia
from unlearn.world.pretrain import pretrain, tiny_llama
from unlearn.world.sae_training import train_sae
from unlearn.world.spec import WorldSpec
from unlearn.world.tokenizer import make_tokenizer

MODEL, SAE, HELDOUT_SAE = "model", "sae", "heldout_sae"
"""Folders of a world's cache entry; the gold model's entry holds the first only."""

SAE_SAMPLE = 1_000_000
"""Step number from which the SAEs' corpus is drawn: beyond every training step."""


@dataclass(frozen=True, kw_only=True)
class WorldPaths:
    """Ordinary HF and SAELens directories of a built world."""

    model: Path
    sae: Path
    heldout_sae: Path
    gold: Path | None = None


def _train_model(spec: WorldSpec, seed: int, corpus: Corpus, out: Path, title: str, progress: bool) -> tuple[PreTrainedModel, float]:
    tokenizer = make_tokenizer()
    lm = tiny_llama(
        tokenizer, blocks=spec.blocks, width=spec.width, heads=spec.heads, max_length=2 * spec.row_tokens, seed=seed, init_std=spec.init_std
    )
    switch = round(spec.known_first * spec.steps)

    def batches(step: int) -> Tensor:
        return corpus.batch(step, spec.batch_rows, spec.row_tokens + 1, KNOWN_ONLY if step < switch else MIX)

    loss = pretrain(lm, batches, steps=spec.steps, lr=spec.lr, title=title, progress=progress)
    lm.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return lm, loss


@torch.no_grad()
def _activations(lm: PreTrainedModel, corpus: Corpus, spec: WorldSpec) -> Tensor:
    """Outputs of the hooked block on fresh corpus rows, boundary tokens left out; [N, D]."""
    captured: list[Tensor] = []
    block = lm.base_model.layers[spec.sae_layer]
    handle = block.register_forward_hook(lambda _module, _args, output: captured.append(output[0] if isinstance(output, tuple) else output))
    kept, rows = [], 32
    try:
        for start in range(0, spec.sae_rows, rows):
            ids = corpus.batch(SAE_SAMPLE + start, min(rows, spec.sae_rows - start), spec.row_tokens, MIX)
            lm.base_model(input_ids=ids, use_cache=False)
            kept.append(captured.pop()[ids != corpus.boundary])
    finally:
        handle.remove()
    return torch.cat(kept)


def _build_base(spec: WorldSpec, seed: int, folder: Path, progress: bool) -> Mapping[str, Any]:
    started = time.perf_counter()
    corpus = Corpus(encyclopaedia(spec, seed), make_tokenizer(), seed=seed)
    lm, loss = _train_model(spec, seed, corpus, folder / MODEL, "World: language model", progress)
    facts: dict[str, Any] = {"spec": asdict(spec), "seed": seed, "loss": loss, "model_seconds": time.perf_counter() - started}
    activations_ND = _activations(lm, corpus, spec)
    second_seed = seed + 10_007
    for name, d_sae, sae_seed in ((SAE, spec.sae_latents, seed), (HELDOUT_SAE, spec.heldout_latents, second_seed)):
        quality = train_sae(
            activations_ND,
            d_sae=d_sae,
            k=spec.sae_k,
            steps=spec.sae_steps,
            lr=spec.sae_lr,
            seed=sae_seed,
            batch_size=spec.sae_batch,
            layer=spec.sae_layer,
            model_name="unlearn-world",
            out=folder / name,
            title="World: sparse autoencoder" if name == SAE else "World: second sparse autoencoder",
            progress=progress,
        )
        facts[name] = asdict(quality)
    facts["seconds"] = time.perf_counter() - started
    return facts


def _build_gold(spec: WorldSpec, seed: int, forgotten: tuple[str, ...], folder: Path, progress: bool) -> Mapping[str, Any]:
    started = time.perf_counter()
    world = encyclopaedia(spec, seed)
    corpus = Corpus(world, make_tokenizer(), seed=seed, known=[name for name in world.known if name not in forgotten])
    _, loss = _train_model(spec, seed, corpus, folder / MODEL, "World: gold model", progress)
    return {"spec": asdict(spec), "seed": seed, "forgotten": list(forgotten), "loss": loss, "seconds": time.perf_counter() - started}


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread: such small matrices gain little from more, and a seed then gives the same world on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_world(
    spec: WorldSpec, *, seed: int, cache: Path, forgotten: tuple[str, ...] = (), gold: bool = False, progress: bool = True
) -> WorldPaths:
    """Build a world, or find it in the cache.

    Args:
        spec: its parameters.
        seed: seed of the names, the facts and all training.
        cache: entries are kept in ``cache/world/<fingerprint>``; the gold model has an entry of its own.
        forgotten: names that the gold model never sees.
        gold: whether the gold model is wanted: the same recipe without ``forgotten``.
        progress: whether progress bars may be shown.

    Raises:
        CacheError: an entry is damaged.
    """
    root = cache / "world"
    entry = root / spec.fingerprint(seed)
    with _one_thread():
        obtain(entry, lambda folder: _build_base(spec, seed, folder, progress))
    gold_path = None
    if gold:
        gold_entry = root / spec.fingerprint(seed, forgotten)
        with _one_thread():
            obtain(gold_entry, lambda folder: _build_gold(spec, seed, forgotten, folder, progress))
        gold_path = gold_entry / MODEL
    return WorldPaths(model=entry / MODEL, sae=entry / SAE, heldout_sae=entry / HELDOUT_SAE, gold=gold_path)
