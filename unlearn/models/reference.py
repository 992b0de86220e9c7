"""What the model said before training: computed once, kept on disk, looked up by row, so that no second model stays in memory.

Stored are block outputs at every token, and at the answer positions the final hidden states (D numbers where logits would be V) with the
negative log-likelihood. Logits are made from the final hidden states by the head as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearn.errors import CacheError, ModelError
from unlearn.models.capture import check_layer
from unlearn.models.decoder import head, hidden_size, output_head
from unlearn.models.reference_files import HEAD, Rows, Slot, hidden_file, read_manifest, row_sizes, write_store
from unlearn.models.sharded import blank
from unlearn.tracking.files import alone
from unlearn.types import TokenBatch


class ReferenceStore:
    """Quantities of the frozen model, looked up by ``batch.row_id_B``; arrays are memory-mapped.

    A row must come with the tokens and labels it was stored with; batches may be made up and padded in any way.
    """

    def __init__(self, lm: nn.Module, path: Path) -> None:
        """Open the store at ``path``.

        Args:
            lm: the model the store was built with, before any training; its head is used for as long as it stays as it is.
            path: folder that ``build`` made.

        Raises:
            CacheError: a file is missing or damaged, or the store belongs to a model of another width.
        """
        self.path = path
        manifest = read_manifest(path)
        if manifest["width"] != hidden_size(lm):
            width = manifest["width"]
            raise CacheError(
                f"{path} must hold references of a model of width {hidden_size(lm)}; found {width}. Delete it to have it built again."
            )
        self.layers: tuple[int, ...] = tuple(manifest["layers"])
        self.width: int = manifest["width"]
        table = np.load(path / "index.npy")
        self._slots = {int(row[0]): Slot(*(int(v) for v in row[1:])) for row in table}
        self._hidden = {layer: np.load(path / hidden_file(layer), mmap_mode="r") for layer in self.layers}
        self._final = np.load(path / "final.npy", mmap_mode="r")
        self._nll = np.load(path / "nll.npy", mmap_mode="r")
        self._lm = lm
        self._blank_head = blank(output_head(lm))
        self._state = self._head_state()
        self._frozen_head: nn.Module | None = None

    @classmethod
    def build(
        cls, lm: nn.Module, batches: Iterable[TokenBatch], *, layers: Sequence[int], path: Path, dtype: str = "float32"
    ) -> ReferenceStore:
        """The store at ``path``; where there is none, run the model over the rows and write it. Call it before training.

        Adapters of a peft model are off meanwhile. Processes that want the same store at once build it once.

        Args:
            lm: the language model, untrained.
            batches: all rows that will be looked up, padded on the right; a row may occur more than once.
            layers: blocks whose output is stored; -1 for the input of block 0.
            path: folder of the store, named by a fingerprint of everything that changes the result.
            dtype: float32 or float16, on disk.

        Raises:
            CacheError: the folder at ``path`` is damaged, or does not hold these rows and layers.
            ModelError: two different rows have one ``row_id``; a layer is out of range; values do not fit float16.
        """
        batches = list(batches)
        rows = Rows.of(batches)
        layers = tuple(dict.fromkeys(layers))
        for layer in layers:
            check_layer(lm, layer)
        with alone(path):
            if not path.exists():
                write_store(lm, batches, rows, layers, path, dtype)
        store = cls(lm, path)
        store._check_holds(rows, layers)
        return store

    def _check_holds(self, rows: Rows, layers: Sequence[int]) -> None:
        absent = [layer for layer in layers if layer not in self.layers]
        wrong = [i for i, slot in rows.slots.items() if i not in self._slots or self._slots[i].digest != slot.digest]
        if absent or wrong:
            what = f"layer {absent[0]}" if absent else f"row {wrong[0]} as it is now"
            raise CacheError(f"{self.path} must hold the references of this run; found none for {what}. Delete it to have it built again.")

    def _head_state(self) -> tuple[tuple[int, int], ...]:
        """Identity and in-place changes of the live head's weights."""
        return tuple((id(p), p._version) for p in output_head(self._lm).parameters())

    def _head(self) -> nn.Module | None:
        """The head as it was: None for the live one while nothing has trained or changed it, else a copy read from disk."""
        live = output_head(self._lm)
        if self._frozen_head is None and (any(p.requires_grad for p in live.parameters()) or self._head_state() != self._state):
            self._frozen_head = _head_copy(self._blank_head, self.path / HEAD)
        return self._frozen_head

    def _find(self, batch: TokenBatch) -> list[Slot]:
        slots = []
        for row_id, length, answers in row_sizes(batch):
            slot = self._slots.get(row_id)
            if slot is None:
                raise ModelError(f"row_id must be one of the {len(self._slots)} rows of the reference; found {row_id}.")
            if (slot.length, slot.answers) != (length, answers):
                raise ModelError(
                    f"Row {row_id} must have as many tokens and labels as it was stored with ({slot.length}, {slot.answers}); "
                    f"found {length}, {answers}."
                )
            slots.append(slot)
        return slots

    def _answers(self, array: np.ndarray, batch: TokenBatch) -> Tensor:
        parts = [array[slot.answer : slot.answer + slot.answers] for slot in self._find(batch)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(batch.labels_BT.device)

    def hidden(self, batch: TokenBatch, layer: int) -> Tensor:
        """Output of block ``layer``, [B, T, D] fp32, zero on padding.

        Raises:
            ModelError: the layer or a row is not in the store.
        """
        if layer not in self._hidden:
            raise ModelError(f"layer must be one that the reference holds ({', '.join(map(str, self.layers)) or 'none'}); found {layer}.")
        slots = self._find(batch)
        values = np.zeros((*batch.input_ids_BT.shape, self.width), np.float32)
        for row, slot in enumerate(slots):
            values[row, : slot.length] = self._hidden[layer][slot.token : slot.token + slot.length]
        return torch.from_numpy(values).to(batch.input_ids_BT.device)

    def final(self, batch: TokenBatch) -> Tensor:
        """Final hidden states at the answer positions, [A, D] fp32, in the order of ``answer_positions``."""
        return self._answers(self._final, batch)

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """Logits at the answer positions, [A, V], in the head's dtype, without a graph.

        Raises:
            ModelError: a row is not in the store.
        """
        final_AD = self.final(batch)
        module = self._head()
        if module is not None:
            module.to(final_AD.device)
        return head(self._lm, final_AD, module)

    def nll(self, batch: TokenBatch) -> Tensor:
        """Negative log-likelihood of each answer token in nats, [A] fp32.

        Raises:
            ModelError: a row is not in the store.
        """
        return self._answers(self._nll, batch)


def _head_copy(shape: nn.Module, file: Path) -> nn.Module:
    """A head of that shape with the weights in ``file``, frozen."""
    kept = copy.deepcopy(shape).to_empty(device="cpu")
    kept.load_state_dict(load_file(file))
    return kept.requires_grad_(False).eval()
