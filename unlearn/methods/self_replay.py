"""Self-replay: the model itself lists whom it knows, so that nobody has to, and those are kept.

The idea of replaying what a model generates is that of Shin et al., "Continual Learning with Deep Generative Replay" (arXiv 1705.08690);
here the model is given the beginnings of the forget questions, up to the name, and goes on by itself at temperature 1. What it puts
between that beginning and the rest of the question is a name; it is kept if the model then answers a question about it instead of
refusing, and if it is no target's. Names that it makes up and believes to know are kept as well, which does no harm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unlearn.data.entities import find_mention, swap_name
from unlearn.data.tokenize import TokenRow
from unlearn.functional.text import is_refusal
from unlearn.models.forward import generate
from unlearn.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader

ROUND = 256
"""Names that are sampled at a time."""
LEAST_NEW = 0.02
"""Listing ends when less than this share of a round is new."""


def openings(rows: Iterable[Row], reader: Reader) -> dict[str, tuple[str, ...]]:
    """Text of questions up to the name, and the texts that may follow the name after it; questions that begin with the name have none."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        place = find_mention(row.prompt, "", row.mentions) if row.kind == "qa" and row.mentions else None
        if place is None:
            continue
        whole = reader.prompt_format.question.replace("{question}", row.prompt)
        start = whole.index(row.prompt) + place.start
        before, after = whole[:start].rstrip(), whole[start + place.end - place.start :]
        if before:
            found[before][after.strip().split("\n")[0]] = None
    return {before: tuple(after) for before, after in found.items()}


def named(text: str, endings: Sequence[str], longest: int) -> str | None:
    """The name at the beginning of a continuation: what stands before one of ``endings``, of at most ``longest`` words.

    >>> named(" Ada Byron born? A: Paris", ["born? A:"], 3), named(" the sea born?", ["was?"], 3)
    ('Ada Byron', None)
    """
    for ending in sorted(endings, key=len, reverse=True):
        name, met, _ = text.partition(ending)
        if ending and met and 0 < len(name.split()) <= longest:
            return " ".join(name.split())
    return None


def listed_names(
    lm: PreTrainedModel, rows: Sequence[Row], reader: Reader, known: Collection[str], rounds: int, seed: int
) -> tuple[str, ...]:
    """Names that the model lists by itself, in the order in which they come, ``known`` ones left out.

    Args:
        lm: the original model.
        rows: forget rows; the beginnings of their questions are used.
        reader: for the tokenizer and the prompt format.
        known: names that are in the losses already, or must not be kept; others are expected to be no longer than they.
        rounds: most rounds of ``ROUND`` samples.
        seed: of the samples.
    """
    starts = openings(rows, reader)
    words = max((len(row.mentions[0].split()) for row in rows if row.mentions), default=0)
    if not starts or not words:
        return ()
    tokenizer, texts = reader.tokenizer, list(starts)
    names = [*known, *(row.mentions[0] for row in rows if row.mentions)]
    room = _longest(tokenizer, names) + _longest(tokenizer, [end for ends in starts.values() for end in ends]) + 1
    front = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    prompts = [front + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    found: dict[str, None] = {}
    for number in range(rounds):
        asked = [i % len(texts) for i in range(ROUND)]
        said = generate(lm, tokenizer, [prompts[i] for i in asked], room, batch_size=ROUND, temperature=1.0, seed=seed + number)
        new = {
            named(tokenizer.decode(ids, skip_special_tokens=True), starts[texts[i]], words): None
            for i, ids in zip(asked, said, strict=True)
        }
        fresh = [name for name in new if name and name not in found and name not in known]
        found.update(dict.fromkeys(fresh))
        if len(fresh) < LEAST_NEW * ROUND:
            break
    return tuple(found)


def _longest(tokenizer: Any, texts: Sequence[str]) -> int:
    """Tokens of the longest of some texts."""
    return max(map(len, tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]))


def replay_rows(lm: PreTrainedModel, names: Sequence[str], rows: Sequence[Row], reader: Reader) -> list[TokenRow]:
    """Rows about the names that the model believes to know: the first target's sentences with their names, and the model's own answers.

    Row ids count down from -1: they are nobody's.
    """
    first = next((row.entity for row in rows if row.mentions), None)
    frames = [row for row in rows if row.entity == first and row.mentions]
    asked = next((row for row in frames if row.kind == "qa"), None)
    if asked is None or not names:
        return []
    recognised = [
        row.entity for row, text in zip(*_answered(lm, [asked], names, reader), strict=True) if not is_refusal(text, reader.refusals)
    ]
    made, texts = _answered(lm, frames, recognised, reader)
    kept = [replace(row, answer=text, row_id=-1 - i) for i, (row, text) in enumerate(zip(made, texts, strict=True)) if text]
    return reader.tokens(kept)


def _answered(lm: PreTrainedModel, frames: Sequence[Row], names: Sequence[str], reader: Reader) -> tuple[list[Row], list[str]]:
    """Rows with each of the names, and what the model says to them; names that cannot stand in a sentence are left out."""
    rows = []
    for name in names:
        for frame in frames:
            text = swap_name(frame.prompt, frame.mentions[0], name)
            if text is not None and find_mention(text, "", (name,)) is not None:
                rows.append(replace(frame, entity=name, prompt=text, mentions=(name,)))
    if not rows:
        return [], []
    longest = max(len(token.ids) - token.answer_start for token in reader.tokens(list(frames)))
    prompts = [list(token.ids[: token.answer_start]) for token in reader.tokens(rows)]
    limits = {"stop_ids": reader.stop_ids, "batch_size": ROUND}
    said = generate(lm, reader.tokenizer, prompts, min(longest, reader.max_new_tokens), **limits)  # type: ignore[arg-type]
    return rows, [str(reader.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in said]
