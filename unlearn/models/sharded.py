"""Weights shared out over processes (PyTorch's ``fully_shard``), and the same model in one piece again.

Training keeps one share of every weight, its gradient and its optimiser state on each device, and gathers one block at a time. What is
outside the blocks (embeddings, final norm, output head) is sharded module by module, so that early exit, hooks and a direct call of the
head find every weight they touch whole; weights that two modules share stay one.

Measuring, editing and exporting see a plain copy in one piece: processes may then read different rows in batches of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn.models.decoder import base_of, blocks_of, decoder_of, device_of, evaluating

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy


def policy_of(precision: str) -> MixedPrecisionPolicy:
    """What is gathered and how gradients are added up: bf16 copies of fp32 weights with ``bf16-mixed``, else the weights as they are;
    gradients in fp32 always."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    gathered = torch.bfloat16 if precision == "bf16-mixed" else None
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)


def _outside(lm: nn.Module) -> list[list[nn.Module]]:
    """Modules outside the blocks that hold weights of their own; those that share one are together."""
    base, decoder = base_of(lm), decoder_of(lm)
    inside = {base, decoder, *blocks_of(lm).modules()}
    groups: list[tuple[set[int], list[nn.Module]]] = []
    for module in reversed(list(base.modules())):  # what is inside another module comes first
        held = {id(p) for p in module.parameters(recurse=False)}
        if not held or module in inside:
            continue
        for known, members in groups:
            if known & held:
                known |= held
                members.insert(0, module)
                break
        else:
            groups.append((held, [module]))
    return [members for _, members in groups]


def blank(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose weights have shapes and no values."""
    weights: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad) for p in module.parameters()
    }
    return copy.deepcopy(module, weights)


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, which is all of it where nothing is shared out."""
    share = getattr(tensor, "to_local", None)
    return share() if callable(share) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor whose shares lie with several processes, all of which must call this."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if callable(gather) else tensor


class Sharded:
    """A language model with its weights shared out over ``mesh``, in place."""

    def __init__(self, lm: nn.Module, mesh: DeviceMesh, precision: str) -> None:
        """Shard every block, what is outside of the blocks, and the whole; every process must call this with equal weights.

        Args:
            lm: the language model, wrapped by peft or not, its trained weights selected.
            mesh: the processes, one dimension.
            precision: precision of the trainer: 32-true or bf16-mixed.
        """
        from torch.distributed.fsdp import fully_shard

        self.lm, self.blank, self.home = lm, blank(lm), device_of(lm)
        options: Mapping[str, Any] = {"mesh": mesh, "mp_policy": policy_of(precision)}
        for block in blocks_of(lm):
            fully_shard(block, **options)
        for members in _outside(lm):
            fully_shard(members if len(members) > 1 else members[0], **options)
        fully_shard(decoder_of(lm), **options)
        fully_shard(base_of(lm), **options)
        with evaluating(lm):  # the first pass tells the parts which whole they belong to
            one = torch.ones(1, 1, dtype=torch.long, device=device_of(lm))
            base_of(lm)(input_ids=one, attention_mask=one, use_cache=False)
        self.close()

    def close(self) -> None:
        """Free whatever is still gathered, so that every weight is this process's share."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.lm.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """A copy in one piece, as it stands, where the model was before it was sharded; every process must call this."""
        self.close()
        shapes = dict(self.blank.named_parameters())
        weights: dict[int, Any] = {}
        for name, weight in self.lm.named_parameters():
            shape = shapes[name]
            weights[id(shape)] = nn.Parameter(full(weight.detach()).to(self.home), requires_grad=weight.requires_grad)
        return copy.deepcopy(self.blank, weights).train(self.lm.training)
