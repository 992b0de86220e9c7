"""Writing and checking the files of a reference store (``unlearn.models.reference``)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unlearn.errors import CacheError, ModelError
from unlearn.functional.tokens import answer_positions, answer_targets, token_nll
from unlearn.models.capture import tapped
from unlearn.models.decoder import adapters_off, base_of, decoder_of, evaluating, head, hidden_size, output_head
from unlearn.models.forward import forward
from unlearn.types import IGNORE_INDEX, TokenBatch

FORMAT = 1
"""Version of the files."""

EDGE = 1 << 20
"""Bytes at either end of a file that its checksum covers."""

TOLERANCE = 0.02
"""Largest relative difference of logits made in two ways."""

CHUNK = 1024
"""Answer positions whose logits are made at once."""

HEAD = "head.safetensors"
"""File of the output head's weights."""

DTYPES: Mapping[str, type[np.floating]] = {"float32": np.float32, "float16": np.float16}


class Slot(NamedTuple):
    """Where a row stands: first token, tokens, first answer position, answer positions, hash of ids and labels."""

    token: int
    length: int
    answer: int
    answers: int
    digest: int


@dataclass(frozen=True)
class Rows:
    """The rows of some batches, each once."""

    slots: dict[int, Slot]
    tokens: int
    answers: int

    @staticmethod
    def of(batches: Sequence[TokenBatch]) -> Rows:
        """Read ids, labels and row ids; rows are laid end to end in the order in which they first occur."""
        slots: dict[int, Slot] = {}
        tokens = answers = 0
        for batch in batches:
            ids_BT, labels_BT = batch.input_ids_BT.cpu().numpy(), batch.labels_BT.cpu().numpy()
            for row, (row_id, length, count) in enumerate(row_sizes(batch)):
                content = np.stack([ids_BT[row, :length], labels_BT[row, :length]]).astype(np.int64).tobytes()
                digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
                known = slots.get(row_id)
                if known is None:
                    slots[row_id] = Slot(tokens, length, answers, count, digest)
                    tokens, answers = tokens + length, answers + count
                elif known.digest != digest:
                    raise ModelError(f"row_id must name one row only; found two different rows with row_id {row_id}.")
        return Rows(slots, tokens, answers)


def row_sizes(batch: TokenBatch) -> list[list[int]]:
    """``[row_id, tokens, answer positions]`` of each row, in one transfer."""
    answers_B = (batch.labels_BT[:, 1:] != IGNORE_INDEX).sum(1)
    sizes: list[list[int]] = torch.stack([batch.row_id_B, batch.attention_mask_BT.sum(1), answers_B], 1).tolist()
    return sizes


def _checksum(file: Path) -> str:
    """Hash of a file's size, first and last MiB."""
    size = file.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with file.open("rb") as stream:
        digest.update(stream.read(EDGE))
        stream.seek(max(0, size - EDGE))
        digest.update(stream.read(EDGE))
    return digest.hexdigest()


def hidden_file(layer: int) -> str:
    """File of a block's output."""
    return f"hidden_{layer}.npy"


def _fits(lm: nn.Module, batches: Sequence[TokenBatch]) -> None:
    """Raise unless logits made from final hidden states are those of the model's own forward (tried on one row)."""
    for batch in batches:
        labelled = (batch.labels_BT[:, 1:] != IGNORE_INDEX).any(1).nonzero()
        if len(labelled):
            one = TokenBatch(*(t[labelled[0]] for t in batch))
            own_AV, ours_AV = forward(lm, one).logits_AV.float(), head(lm, _final(lm, one)).float()
            if (own_AV - ours_AV).norm() > TOLERANCE * own_AV.norm():
                found = type(base_of(lm)).__name__
                raise ModelError(f"Logits must follow from the final hidden states by the head and a known scaling; {found} does more.")
            return


def _final(lm: nn.Module, batch: TokenBatch) -> Tensor:
    """Final hidden states at the answer positions, [A, D]."""
    states_BTD = decoder_of(lm)(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).last_hidden_state
    found: Tensor = states_BTD[answer_positions(batch.labels_BT)]
    return found


class _Writer:
    """Fills the arrays of a new store."""

    def __init__(self, folder: Path, rows: Rows, layers: Sequence[int], width: int, dtype: str) -> None:
        self.folder, self.rows, self.dtype = folder, rows, DTYPES[dtype]
        self.done: set[int] = set()

        def new(name: str, *shape: int, kind: type[np.floating] = self.dtype) -> np.ndarray:
            if 0 in shape:
                np.save(folder / name, np.zeros(shape, kind))
                return np.zeros(shape, kind)
            return np.lib.format.open_memmap(folder / name, mode="w+", dtype=kind, shape=shape)

        self.hidden = {layer: new(hidden_file(layer), rows.tokens, width) for layer in layers}
        self.final = new("final.npy", rows.answers, width)
        self.nll = new("nll.npy", rows.answers, kind=np.float32)

    def add(self, lm: nn.Module, batch: TokenBatch) -> None:
        """Run the model on a batch and store the rows that are not there yet."""
        sizes = row_sizes(batch)
        if all(row_id in self.done for row_id, _, _ in sizes):
            return
        with tapped(lm, list(self.hidden)) as hidden:
            final_AD = _final(lm, batch)
        pieces = zip(final_AD.split(CHUNK), answer_targets(batch.labels_BT).split(CHUNK), strict=True)
        nll_A = torch.cat([token_nll(head(lm, part_AD), targets_A) for part_AD, targets_A in pieces]).cpu()
        final = self._stored(final_AD)
        stored = {layer: self._stored(hidden_BTD) for layer, hidden_BTD in hidden.items()}
        start = 0
        for row, (row_id, length, answers) in enumerate(sizes):
            slot = self.rows.slots[row_id]
            for layer, values in stored.items():
                self.hidden[layer][slot.token : slot.token + length] = values[row, :length]
            self.final[slot.answer : slot.answer + answers] = final[start : start + answers]
            self.nll[slot.answer : slot.answer + answers] = nll_A[start : start + answers].numpy()
            start += answers
            self.done.add(row_id)

    def _stored(self, values: Tensor) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = values.float().cpu().numpy().astype(self.dtype)
        if not np.isfinite(array).all():
            raise ModelError(f"Reference values must be finite in {self.dtype.__name__}; found some that are not (float16 ends at 65504).")
        return array

    def finish(self, lm: nn.Module, dtype: str, width: int) -> None:
        """Write the index, the head and, last, the manifest."""
        for array in (*self.hidden.values(), self.final, self.nll):
            if isinstance(array, np.memmap):
                array.flush()
        slots = self.rows.slots
        table = np.array([(row_id, *slot) for row_id, slot in slots.items()], dtype=np.int64).reshape(len(slots), 6)
        np.save(self.folder / "index.npy", table)
        save_file({name: t.detach().cpu().contiguous() for name, t in output_head(lm).state_dict().items()}, self.folder / HEAD)
        files = {file.name: _checksum(file) for file in sorted(self.folder.iterdir())}
        manifest = {"format": FORMAT, "layers": list(self.hidden), "dtype": dtype, "width": width, "files": files}
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def write_store(lm: nn.Module, batches: Sequence[TokenBatch], rows: Rows, layers: Sequence[int], path: Path, dtype: str) -> None:
    """Compute and write a store in a folder of its own, then put it in place."""
    if dtype not in DTYPES:
        raise ModelError(f"The reference's dtype must be one of {', '.join(DTYPES)}; found {dtype!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        width = hidden_size(lm)
        with evaluating(lm), adapters_off(lm):
            writer = _Writer(folder, rows, layers, width, dtype)
            _fits(lm, batches)
            for batch in batches:
                writer.add(lm, batch)
            writer.finish(lm, dtype, width)
        try:
            os.replace(folder, path)
        except OSError:
            if not path.is_dir():  # another process was first otherwise
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, after every file has been held against it."""
    again = "Delete the folder to have it built again."
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files, version = dict(manifest["files"]), manifest["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CacheError(f"{path} must hold a complete reference; found no readable manifest.json. {again}") from error
    if version != FORMAT:
        raise CacheError(f"{path} must be a reference of format {FORMAT}; found {version}. {again}")
    for name, checksum in files.items():
        if not (path / name).is_file() or _checksum(path / name) != checksum:
            raise CacheError(f"{path / name} must be as it was written; found it missing or damaged. {again}")
    return dict(manifest)
