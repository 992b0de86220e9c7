"""What a method is given when data and SAE are not at hand: rows of made-up words, batches of a given size, an SAE without numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.data.reader import Reader
from unlearn.data.tokenize import batches
from unlearn.functional.tokens import answer_positions
from unlearn.models.decoder import hidden_size, output_head
from unlearn.models.reference import ReferenceStore
from unlearn.models.sae import FrozenSAE
from unlearn.models.sharded import blank
from unlearn.types import STREAMS, EntityData, PromptFormat, Row, TokenBatch

WORDS = 1000
FORMAT = PromptFormat(question="{question}", separator=" ", append_eos=False)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Rows of one stream in a batch, tokens of each row, and how many of them are answer."""

    rows: int
    tokens: int = 64
    answer: int = 8


def tokenizer() -> Any:
    """A fast tokenizer that makes one token of every word ``w0`` to ``w999``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(WORDS)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right")


def rows_of(sizes: Mapping[str, Size], first: int = 0) -> dict[str, tuple[Row, ...]]:
    """Rows of every stream, two facts about each target; each row names its entity in two words at the start."""
    made: dict[str, tuple[Row, ...]] = {}
    for place, (stream, size) in enumerate(sizes.items()):
        rows = []
        for i in range(size.rows):
            number = first + place * 10_000 + i
            who = number - i % 2 if stream == "forget" else number
            name = f"w{who % WORDS} w{(place * 200 + who % 10_000) % WORDS}"
            words = [f"w{(number * 31 + j * 7) % WORDS}" for j in range(size.tokens)]
            prompt = " ".join([name, *words[: max(0, size.tokens - size.answer - 2)]])
            answer = " ".join(words[: max(1, size.answer)])
            wrong = tuple(" ".join(words[k : k + max(1, size.answer)]) for k in (1, 2, 3))
            rows.append(
                Row(
                    row_id=number,
                    entity=name,
                    prompt=prompt,
                    answer=answer,
                    mentions=(name,),
                    attribute=f"fact {i % 2}",
                    perturbed_answers=wrong,
                )
            )
        made[stream] = tuple(rows)
    return made


def data_of(sizes: Mapping[str, Size]) -> EntityData:
    """Rows of every stream, and evaluation sets like them."""
    streams = {**dict.fromkeys(STREAMS, ()), **rows_of(sizes)}
    held = rows_of({s: replace(size, rows=8) for s, size in sizes.items()}, first=100_000)
    sets = {name: held.get(name, ()) for name in ("forget", "retain", "unknown")}
    generic = tuple(" ".join(f"w{(i * 13 + j) % WORDS}" for j in range(32)) for i in range(8))
    return EntityData(
        streams=streams,
        evaluation=sets,
        latent={"forget": sets["forget"], "known": sets["retain"], "unknown": sets["unknown"]},
        generic=generic,
        refusals=("w1 w2",),
        fingerprint="stand-in",
    )


def reader_of(max_length: int, batch_size: int) -> Reader:
    """Makes batches of those rows."""
    return Reader(
        tokenizer=tokenizer(), prompt_format=FORMAT, refusals=("w1 w2",), max_length=max_length, batch_size=batch_size, max_new_tokens=8
    )


def batches_of(data: EntityData, reader: Reader) -> dict[str, TokenBatch]:
    """One batch of every stream that has rows, all its rows in it."""
    return {name: next(iter(batches(reader.tokens(rows), len(rows), reader.pad_id)))[1] for name, rows in data.streams.items() if len(rows)}


def blank_sae(d_in: int, d_sae: int, architecture: str, layer: int) -> FrozenSAE:
    """An SAE of that shape on the meta device.

    Args:
        d_in: width of what it reads.
        d_sae: latents.
        architecture: one of ``unlearn.models.sae.ARCHITECTURES``.
        layer: block whose output it reads.
    """
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    options: dict[str, Any] = {"k": min(32, d_sae)} if architecture in ("topk", "abstopk") else {}
    with torch.device("meta"):
        return FrozenSAE(kind(config(d_in=d_in, d_sae=d_sae, device="meta", **options)), layer)


class BlankReference(ReferenceStore):
    """References of which only the shapes are known; ``naming`` says that what is made of them is theirs."""

    def __init__(self, lm: nn.Module, naming: Callable[[str], Any]) -> None:
        self.width = hidden_size(lm)
        self.naming = naming
        self._lm, self._blank_head, self._frozen_head = lm, blank(output_head(lm)), None

    def _head(self) -> nn.Module | None:
        if self._frozen_head is None and any(p.requires_grad for p in output_head(self._lm).parameters()):
            self._frozen_head = self._blank_head.requires_grad_(False)
            for parameter in self._frozen_head.parameters():
                parameter.data = torch.empty_like(parameter, device="meta")
        return self._frozen_head

    def hidden(self, batch: TokenBatch, layer: int) -> Tensor:
        """[B, T, D]."""
        with self.naming("reference"):
            return torch.zeros(*batch.input_ids_BT.shape, self.width, device="meta")

    def final(self, batch: TokenBatch) -> Tensor:
        """[A, D]."""
        with self.naming("reference"):
            return torch.zeros(len(answer_positions(batch.labels_BT)[0]), self.width, device="meta")

    def logits(self, batch: TokenBatch) -> Tensor:
        """[A, V]."""
        with self.naming("reference"):
            return super().logits(batch)

    def nll(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        with self.naming("reference"):
            return torch.zeros(len(answer_positions(batch.labels_BT)[0]), device="meta")
