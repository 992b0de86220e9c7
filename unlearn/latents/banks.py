"""Banks: the frozen model's activations of known and unknown entities, as the SAE reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from unlearn.errors import CacheError, DataError
from unlearn.models.capture import capture_layers
from unlearn.tracking.files import alone
from unlearn.tracking.tensors import load_tensors, save_tensors
from unlearn.types import NO_ENTITY, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unlearn.models.sae import FrozenSAE

POSITIONS: tuple[str, ...] = ("entity_end", "answer_start")
"""Where a bank reads: at the last entity token, and at the last prompt token (the one that predicts the answer)."""

SIDES: tuple[str, ...] = ("known", "unknown", "matched")


@dataclass(frozen=True)
class Banks:
    """Activations of the frozen model, fp32, by position: ``known[p]`` [N, D], ``unknown[p]`` [M, D], ``matched[p]`` [K, D].

    ``matched`` are the targets' own rows with unknown names in the place of theirs; ``matched_ids`` [K] the row each was made from.
    ``layer`` is the block that was read, the deepest one where an SAE reads several.
    """

    layer: int
    known: Mapping[str, Tensor]
    unknown: Mapping[str, Tensor]
    matched: Mapping[str, Tensor]
    matched_ids: Tensor

    def save(self, path: Path) -> None:
        """Write a safetensors file with a checksum, through a temporary name."""
        tensors = {f"{side}.{p}": t for side in SIDES for p, t in getattr(self, side).items()}
        save_tensors(path, {**tensors, "matched_ids": self.matched_ids}, {"layer": str(self.layer)})

    @classmethod
    def load(cls, path: Path, layer: int) -> Banks:
        """Read what ``save`` wrote.

        Raises:
            CacheError: the file is damaged.
        """
        try:
            tensors = load_tensors(path)
            sides = {side: {p: tensors[f"{side}.{p}"] for p in POSITIONS} for side in SIDES}
        except (ValueError, OSError, KeyError) as error:
            raise CacheError(f"{path} is damaged ({error}); delete it and run again.") from error
        return cls(layer, **sides, matched_ids=tensors["matched_ids"])


def position_index(batch: TokenBatch, position: str) -> Tensor:
    """Index of ``position`` in every row, shape [B]; ``NO_ENTITY`` where a row names no entity."""
    return batch.entity_end_B if position == "entity_end" else batch.answer_start_B - 1


def activations_at(lm: PreTrainedModel, batch: TokenBatch, site: int | FrozenSAE, position: str) -> Tensor:
    """What is read at ``position`` of the rows that have it, shape [N, D], N <= B; blocks above do not run.

    Args:
        lm: the language model.
        batch: rows.
        site: a block, whose output is given; or an SAE, whose input is: its block's output, or the routed one of several.
        position: one of ``POSITIONS``.
    """
    index_B = position_index(batch, position)
    keep = index_B > NO_ENTITY
    layers = (site,) if isinstance(site, int) else site.layers
    hidden = {n: h_BD[keep] for n, h_BD in capture_layers(lm, batch, layers, index_B.clamp(min=0)).items()}
    return hidden[site] if isinstance(site, int) else site.read({n: h_ND.to(site.device) for n, h_ND in hidden.items()})


@torch.no_grad()
def collect(lm: PreTrainedModel, batches: Iterable[TokenBatch], site: int | FrozenSAE, position: str) -> Tensor:
    """``activations_at`` of many batches on the CPU, fp32, shape [N, D], in the order of the rows.

    Raises:
        DataError: no row has the position.
    """
    parts = [activations_at(lm, batch, site, position).float().cpu() for batch in batches]
    if not parts or sum(map(len, parts)) == 0:
        raise DataError(f"The anchors must hold rows that name an entity; found none to read at '{position}'.")
    return torch.cat(parts)


def build_banks(
    lm: PreTrainedModel,
    known: Iterable[TokenBatch],
    unknown: Iterable[TokenBatch],
    matched: Iterable[TokenBatch],
    site: int | FrozenSAE,
    path: Path | None = None,
) -> Banks:
    """Banks of the frozen model, read from ``path`` when they are there; processes that want them at once build them once.

    Args:
        lm: the model before any training.
        known: batches of known-anchor rows.
        unknown: batches of unknown-anchor rows.
        matched: batches of the targets' rows with unknown names in them; every row has an entity.
        site: block whose output is read (0-based), or the SAE whose input is.
        path: cache file, named by a fingerprint of everything that changes the result.
    """
    if path is not None:
        with alone(path):
            if path.exists():
                return Banks.load(path, site if isinstance(site, int) else max(site.layers))
            banks = build_banks(lm, known, unknown, matched, site)
            banks.save(path)
            return banks
    layer = site if isinstance(site, int) else max(site.layers)
    sides = {"known": list(known), "unknown": list(unknown), "matched": list(matched)}
    read = {side: {p: collect(lm, batches, site, p) for p in POSITIONS} for side, batches in sides.items()}
    return Banks(layer, **read, matched_ids=torch.cat([b.row_id_B for b in sides["matched"]]).cpu())
