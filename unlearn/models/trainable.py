"""Which weights of the language model are trained; everything else is frozen before an optimiser or DDP sees the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.config.schema import LoRAConfig, ModelConfig, TrainableConfig
from unlearn.errors import ConfigError, ModelError
from unlearn.models.decoder import base_of, block_prefix, blocks_of, decoder_of, output_head


@dataclass(frozen=True)
class TrainableReport:
    """What ``select_trainable`` did: names and number of the trained weights, of ``n_total``; ``blocks`` they are in, ascending."""

    names: tuple[str, ...]
    n_parameters: int
    n_total: int
    blocks: tuple[int, ...]


def parse_blocks(spec: str, n_blocks: int, deepest: int | None = None) -> tuple[int, ...]:
    """Numbers of the blocks that ``spec`` names and that are not above ``deepest``.

    >>> parse_blocks("0-2,5", 8), parse_blocks("auto", 8, 1), parse_blocks("all", 3)
    ((0, 1, 2, 5), (0, 1), (0, 1, 2))

    Args:
        spec: ``auto`` or ``all`` (every block), or numbers and ranges such as ``0-5,8``.
        n_blocks: number of blocks of the model.
        deepest: last block that any loss term reaches; None for the last of all.

    Raises:
        ConfigError: the text cannot be read or names a block that the model has not, or every block is above ``deepest``.
    """
    key = "model.trainable.blocks"
    chosen: set[int] = set()
    if spec.strip() in ("auto", "all"):
        chosen = set(range(n_blocks))
    else:
        for part in spec.split(","):
            found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            if not found:
                raise ConfigError(f"{key} must be auto, all, or numbers and ranges such as 0-5,8; found {spec!r}.")
            first, last = int(found[1]), int(found[2] or found[1])
            if first > last or last >= n_blocks:
                raise ConfigError(f"{key} must name blocks from 0 to {n_blocks - 1}, lower end first; found {part.strip()!r}.")
            chosen.update(range(first, last + 1))
    reached = tuple(n for n in sorted(chosen) if deepest is None or n <= deepest)
    if not reached:
        raise ConfigError(f"{key} must name a block that a loss term reaches (0 to {deepest}); found {spec!r}.")
    return reached


def _outer_parameters(lm: nn.Module, deepest: int | None) -> list[nn.Parameter]:
    """Token embeddings, and the output head unless nothing reaches it."""
    modules = [base_of(lm).get_input_embeddings()]  # type: ignore[operator]
    if deepest is None:
        modules.append(output_head(lm))
    return [parameter for module in modules for parameter in module.parameters()]


def block_of(name: str, prefix: str) -> int | None:
    """Number of the block that a parameter belongs to."""
    if not name.startswith(prefix):
        return None
    return int(name[len(prefix) :].split(".", 1)[0])


def _matching(lm: nn.Module, patterns: Sequence[str], blocks: Sequence[int]) -> list[nn.Parameter]:
    """Parameters of ``blocks`` in whose name one of ``patterns`` is found; each pattern must be found somewhere."""
    prefix = block_prefix(lm)
    inside = {name: p for name, p in lm.named_parameters() if block_of(name, prefix) in blocks}
    found: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        try:
            hits = {name: p for name, p in inside.items() if re.search(pattern, name)}
        except re.error as error:
            raise ConfigError(f"model.trainable.modules must hold regular expressions; found {pattern!r} ({error}).") from error
        if not hits:
            raise ConfigError(
                f"model.trainable.modules must match parameters of the chosen blocks (such as {next(iter(inside))}); found {pattern!r}."
            )
        found.update(hits)
    return list(found.values())


def _with_lora(lm: nn.Module, config: LoRAConfig, blocks: Sequence[int]) -> nn.Module:
    """``lm`` with adapters on the target modules of ``blocks``."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    prefix = block_prefix(lm)
    linear = {name: m for name, m in lm.named_modules() if block_of(name, prefix) in blocks and isinstance(m, (nn.Linear, Conv1D))}
    kinds = sorted({name.rsplit(".", 1)[1] for name in linear})
    unknown = [target for target in config.targets if target not in kinds]
    if unknown or not config.targets:
        raise ConfigError(
            f"model.lora.targets must name linear modules of the model's blocks ({', '.join(kinds)}); found {', '.join(unknown) or 'none'}."
        )
    chosen = {name: module for name, module in linear.items() if name.rsplit(".", 1)[1] in config.targets}
    options = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        target_modules=sorted(chosen),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in chosen.values()),
        task_type="CAUSAL_LM",
    )
    adapted: nn.Module = get_peft_model(lm, options)
    adapted.train(lm.training)
    for name, module in adapted.named_modules():
        if "lora_dropout" in name.split("."):
            module.train()
    return adapted


def _chosen_parameters(lm: nn.Module, config: TrainableConfig, blocks: Sequence[int], deepest: int | None) -> list[nn.Parameter]:
    """Parameters that a mode other than lora trains, embeddings of ``config.embeddings`` apart."""
    if config.mode == "modules":
        return _matching(lm, config.modules, blocks)
    if config.mode == "full" and deepest is None:
        return list(lm.parameters())
    chosen = [p for n in blocks for p in blocks_of(lm)[n].parameters()]
    if config.mode == "full":  # token and position embeddings come before every block
        chosen += [p for module in decoder_of(lm).children() if isinstance(module, nn.Embedding) for p in module.parameters()]
    return chosen


def _count(parameter: nn.Parameter) -> int:
    """Numbers that a parameter holds; 4-bit ones are packed."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else int(torch.Size(packed.shape).numel())


def _recompute(lm: nn.Module) -> None:
    """Let every block compute its activations again in the backward pass.

    Blocks do so in train mode, so that is what they are put in, without their parts: a base model's dropout stays off. The input needs no
    gradient for it, so blocks below the lowest trained weight keep no graph (transformers would put one on the embeddings).

    Raises:
        ConfigError: the model's family cannot do it.
    """
    base: Any = base_of(lm)
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise ConfigError(f"model.gradient_checkpointing must be false for a {type(base).__name__}, which cannot do it.")
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    base.disable_input_require_grads()
    for block in blocks_of(lm):
        block.training = True


def select_trainable(lm: nn.Module, config: ModelConfig, deepest: int | None) -> tuple[nn.Module, TrainableReport]:
    """Freeze everything, then free what the configuration names and a loss term can reach.

    What is never reached (blocks above ``deepest``, and with them the final norm and an untied output head) stays frozen, so that no
    gradient is computed or reduced for it and DDP does not wait for one. ``mode: full`` ignores ``blocks`` and ``embeddings``.

    Args:
        lm: the language model.
        config: the ``model`` section.
        deepest: last block that any loss term reaches; None when logits are needed.

    Returns:
        The model (wrapped by peft with ``mode: lora``) and a report.

    Raises:
        ConfigError: blocks, patterns or targets that cannot be read or match nothing.
    """
    choice = config.trainable
    n_blocks = len(blocks_of(lm))
    blocks = parse_blocks("all" if choice.mode == "full" else choice.blocks, n_blocks, deepest)
    lm.requires_grad_(False)
    if choice.mode == "lora":
        lm = _with_lora(lm, config.lora, blocks)
    else:
        for parameter in _chosen_parameters(lm, choice, blocks, deepest):
            parameter.requires_grad_(True)
    if choice.embeddings:
        for parameter in _outer_parameters(lm, deepest):
            parameter.requires_grad_(True)
    if config.gradient_checkpointing:
        _recompute(lm)
    trained = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("model.trainable must leave something to train; found nothing.")
    prefix = block_prefix(lm)
    inside = {block_of(name, prefix) for name in trained} - {None}
    report = TrainableReport(
        names=tuple(trained),
        n_parameters=sum(p.numel() for p in trained.values()),
        n_total=sum(_count(p) for p in lm.parameters()),
        blocks=tuple(sorted(n for n in inside if n is not None)),
    )
    return lm, report


def trainable_state(lm: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of the weights that are trained."""
    return {name: p.detach().cpu().clone() for name, p in lm.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable_state(lm: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what ``trainable_state`` gave.

    Raises:
        ModelError: names or shapes are not those of the weights that are trained now.
    """
    current = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    odd = sorted(current.keys() ^ state.keys()) + sorted(n for n in current.keys() & state.keys() if current[n].shape != state[n].shape)
    if odd:
        raise ModelError(
            f"The saved weights must be those that are trained now ({len(current)}); found {len(state)} that differ at {odd[0]}."
        )
    for name, parameter in current.items():
        parameter.copy_(state[name])
