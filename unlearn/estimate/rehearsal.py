"""A rehearsal: the method's own code, on the model's own architecture, for two optimiser steps, with shapes in the place of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn.assembly import select_weights
from unlearn.estimate.optimisers import optimiser, saved_by_bits
from unlearn.estimate.shadow import META, Kernels, Shadow
from unlearn.estimate.stand_in import BlankReference
from unlearn.latents.banks import POSITIONS, Banks
from unlearn.latents.selection import Selection, Separation
from unlearn.methods.base import Method, MethodContext
from unlearn.models.decoder import base_of, blocks_of, hidden_size, output_head, text_config
from unlearn.registry import find
from unlearn.types import TokenBatch

if TYPE_CHECKING:
    from unlearn.config.schema import RunConfig
    from unlearn.data.reader import Reader
    from unlearn.models.sae import FrozenSAE
    from unlearn.types import EntityData

KINDS = ("weights", "gradients", "optimiser", "activations", "logits", "sae", "banks", "reference")
"""Parts of the memory of a step."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What two steps took, in bytes.

    ``parts`` are what is live at the peak of the second step, by kind (``KINDS``), ``peak`` their sum; ``setup``, ``measuring`` the peaks
    of the method's preparation and of one evaluation batch. ``work`` maps (FLOPs, bytes touched) of single operations to how often one
    optimiser step runs them. ``trained`` and ``total`` are numbers of weights, ``block`` and ``outside`` the bytes of the largest decoder
    block and of the largest module outside, ``trained_bytes`` those of the gradients.
    """

    parts: Mapping[str, int]
    peak: int
    setup: int
    measuring: int
    work: Mapping[tuple[int, int], int]
    trained: int
    trained_bytes: int
    total: int
    block: int
    outside: int
    tokens: int
    notes: tuple[str, ...] = ()


def blank_lm(lm_config: Any, dtype: str, attention: str | None) -> Any:
    """The language model of a Hugging Face configuration on the meta device, frozen and in eval mode."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(lm_config, dtype=getattr(torch, dtype), **options)
    for module in lm.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_floating_point():
                module.register_buffer(name, torch.zeros_like(buffer, device="cpu"), persistent=False)
    return lm.requires_grad_(False).eval()


def _banks(width: int, rows: int, layer: int, batch: TokenBatch | None, matched: int) -> Banks:
    ids = batch.row_id_B.repeat_interleave(max(1, matched)) if batch is not None else torch.zeros(1, dtype=torch.long)
    sides = {
        side: {p: torch.zeros(n, width, device=META) for p in POSITIONS}
        for side, n in (("known", rows), ("unknown", rows), ("matched", len(ids)))
    }
    return Banks(layer, **sides, matched_ids=ids)


@dataclass
class _Stage:
    """Objects of a rehearsal."""

    config: RunConfig
    shadow: Shadow
    vocabulary: int
    kind: str = "activations"
    notes: list[str] = field(default_factory=list)

    def name(self, tensor: Tensor) -> str:
        wide = self.kind == "activations" and tensor.dim() and tensor.shape[-1] == self.vocabulary
        return "logits" if wide else self.kind

    @contextmanager
    def naming(self, kind: str) -> Iterator[None]:
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before


def rehearse(
    config: RunConfig,
    lm: nn.Module,
    batches: Mapping[str, TokenBatch],
    *,
    sae: FrozenSAE | None,
    data: EntityData,
    reader: Reader,
    on_gpu: bool = False,
) -> Rehearsal:
    """Two optimiser steps of a run, on one device that holds everything.

    Args:
        config: the run.
        lm: from ``blank_lm``.
        batches: one micro-batch of one device, by stream.
        sae: the SAE on the meta device; None where the method needs none.
        data: rows for methods that read them.
        reader: makes batches of those rows.
        on_gpu: whether the optimiser runs as on a GPU, which takes all weights at once.

    Raises:
        Exception: whatever the method raises; one that cannot work with shapes alone is not caught here.
    """
    mixed = torch.bfloat16 if "bf16-mixed" in str(config.trainer.precision) else None
    shadow, kernels = Shadow(), Kernels(mixed)
    stage = _Stage(config, shadow, int(text_config(lm).vocab_size))
    shadow.name_of = stage.name
    shadow.hold(_tensors(lm), "weights")
    if sae is not None:
        shadow.hold(sae.sae.parameters(), "sae")
    with kernels, torch.autocast("cpu", torch.bfloat16, enabled=mixed is not None), shadow, torch.random.fork_rng(devices=[]):
        lm, method = _method(stage, lm, batches, sae, data, reader)
        _again(lm, kernels)
        setup = shadow.peak
        for parameter in trained_of(lm, method):
            parameter.register_post_accumulate_grad_hook(lambda p: shadow.rename([p.grad], "gradients"))
        parts, peak, work = _steps(stage, kernels, lm, method, batches, on_gpu)
        saved, unpacked = saved_by_bits(lm, blocks_of(lm), config.model)
        parts["weights"] -= saved
        parts["activations"] += unpacked
        shadow.reset()
        _measure(lm, batches, config.evaluation.batch_size)
    trained = list(trained_of(lm, method))
    return Rehearsal(
        parts={kind: parts[kind] for kind in KINDS},
        peak=peak - saved + unpacked,
        setup=setup - saved + unpacked,
        measuring=shadow.peak - saved + unpacked,
        work=work,
        trained=sum(p.numel() for p in trained),
        trained_bytes=sum(p.numel() * p.element_size() for p in trained),
        total=sum(p.numel() for p in base_of(lm).parameters()),
        block=max(_bytes(block) for block in blocks_of(lm)),
        outside=max((_bytes(m) for m in (base_of(lm).get_input_embeddings(), output_head(lm))), default=0),  # type: ignore[operator]
        tokens=sum(b.input_ids_BT.numel() for b in batches.values()) * config.trainer.accumulate,
        notes=tuple(stage.notes),
    )


def _steps(
    stage: _Stage, kernels: Kernels, lm: Any, method: Method, batches: Mapping[str, TokenBatch], on_gpu: bool
) -> tuple[Counter[str], int, Counter[tuple[int, int]]]:
    """What is live at the peak of the second step, its sum, and the step's work; of a method without steps, what it keeps."""
    shadow = stage.shadow
    if not method.streams_of(method.config) or not any(True for _ in trained_of(lm, method)):
        return Counter(shadow.kinds), shadow.live, Counter()
    step = _Step(stage, kernels, lm, method, batches, on_gpu)
    step.run(0)
    shadow.reset()
    step.run(1)
    found = Counter(shadow.at_peak), shadow.peak, Counter(shadow.work)
    step.close()
    return found


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def trained_of(lm: nn.Module, method: Method) -> Iterator[nn.Parameter]:
    """Weights that are trained."""
    return (p for p in (*lm.parameters(), *method.parameters()) if p.requires_grad)


def _method(
    stage: _Stage, lm: Any, batches: Mapping[str, TokenBatch], sae: FrozenSAE | None, data: EntityData, reader: Reader
) -> tuple[Any, Method]:
    """The method, set up on the model whose trained weights are selected."""
    config = stage.config
    cls = find("method", config.method.name, "method.name").load()
    layers = (len(blocks_of(lm)) // 2,) if sae is None else sae.layers
    width, latents = hidden_size(lm), 2 * config.latents.top_k if sae is None else min(2 * config.latents.top_k, sae.d_sae)
    if sae is not None and config.latents.select == "all":
        latents = sae.d_sae
    scores = Separation(torch.zeros(1), torch.zeros(1))
    context = MethodContext(
        n_blocks=len(blocks_of(lm)),
        hook_layer=max(layers),
        sae=sae,
        banks=_banks(width, config.latents.bank_rows, max(layers), batches.get("forget"), config.latents.matched),
        selection=Selection(torch.arange(latents), scores),
        reference=BlankReference(lm, stage.naming),
        data=data,
        reader=reader,
        seed=config.seed,
    )
    with stage.naming("banks"):
        method: Method = cls(config.method, context.only(cls.required(config.method)))
    lm, _ = select_weights(lm, method, config.model)
    stage.shadow.hold(_tensors(lm), "weights")
    with stage.naming("banks"):
        method.setup(lm)
    return lm, method


def _again(lm: nn.Module, kernels: Kernels) -> None:
    """Blocks that are computed again in the backward pass are computed with the same kernels: there, function modes are off."""
    for module in lm.modules():
        checkpoint = getattr(module, "_gradient_checkpointing_func", None)
        if checkpoint is not None:
            again: Any = partial(checkpoint, context_fn=lambda: (nullcontext(), kernels))
            module._gradient_checkpointing_func = again


class _Step:
    """One optimiser step after another, in Lightning's order."""

    def __init__(self, stage: _Stage, kernels: Kernels, lm: Any, method: Method, batches: Mapping[str, TokenBatch], on_gpu: bool) -> None:
        self.stage, self.kernels, self.lm, self.method = stage, kernels, lm, method
        self.batches = {s: batches[s] for s in method.streams_of(method.config)}
        self.optimizer = optimiser(stage.config.optim, list(trained_of(lm, method)), on_gpu)

    def run(self, number: int) -> None:
        """Forward and backward of every micro-batch, then the optimiser."""
        config = self.stage.config
        self.method.before_step(self.lm, number, max(2, config.optim.steps))
        for micro in range(config.trainer.accumulate):
            loss = self.method.loss(self.lm, self.batches).total / config.trainer.accumulate
            if micro == 0:
                self.optimizer.zero_grad()
            self.kernels.forget()
            loss.backward()
            del loss
        self.method.adjust_gradients(self.lm)
        with self.stage.naming("optimiser"):
            if config.optim.clip:
                nn.utils.clip_grad_norm_(list(trained_of(self.lm, self.method)), config.optim.clip)
            self.optimizer.step()

    def close(self) -> None:
        """Training has ended."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()


def _measure(lm: Any, batches: Mapping[str, TokenBatch], rows: int) -> None:
    """One batch of generation: the prompts, with a key-value cache."""
    longest = max((b.input_ids_BT for b in batches.values()), key=lambda ids: ids.shape[1])
    ids = longest[:1].expand(rows, -1)
    with torch.no_grad():
        base_of(lm)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
