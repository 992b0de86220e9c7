"""Types that cross layers.

Shape suffixes used throughout the package: B rows of a batch, T tokens, V vocabulary, D residual width, F SAE latents,
S selected latents, N activations in a bank, A answer tokens of a batch laid end to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

STREAMS: tuple[str, ...] = ("forget", "retain", "known", "unknown")
"""The four training streams, in the order in which everything lists them."""

IGNORE_INDEX = -100
"""Label of a position that carries no loss (prompt and padding)."""

NO_ENTITY = -1
"""``entity_end_B`` of a row that names no entity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt with its answer.

    ``row_id`` is unique within an ``EntityData``. ``entity`` is the group the row belongs to (``""`` for generic text).
    ``mentions`` are the surface forms to look for, in order of preference; empty means that the row names no entity.
    ``kind`` is ``qa`` (the prompt is a question, put through the prompt format), ``statement`` or ``mention`` (the prompt
    is the stem of a sentence) or ``text`` (no prompt; the answer is the whole text). ``perturbed_answers`` are wrong answers to compare
    with, ``accepted_answers`` what else than ``answer`` counts as right when the model is asked.
    """

    row_id: int
    entity: str
    prompt: str
    answer: str
    kind: str = "qa"
    mentions: tuple[str, ...] = ()
    attribute: str = ""
    template: str = ""
    paraphrased_answer: str = ""
    perturbed_answers: tuple[str, ...] = ()
    accepted_answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EntityData:
    """Everything a source serves.

    ``streams`` has the keys of ``STREAMS``. ``evaluation`` maps the name of an evaluation set to its rows; the names
    ``forget``, ``forget_paraphrased`` (templates never trained on), ``retain``, ``retain_unseen`` (entities in no loss term),
    ``unknown`` (held-out unknown entities) are the ones that results are named after, others are reported under their own name.
    ``latent`` holds the rows on which recognition is measured, on held-out templates: ``forget``, ``known`` (entities that are
    in no loss term), ``unknown`` (held-out names). ``generic`` are texts about no entity. ``refusals`` are the answers that
    count as "unknown" (compared after normalisation, as a prefix). ``holdout`` are rows like those of ``forget`` that no model was ever
    trained on: membership attacks need them. ``members`` names the evaluation set whose rows they are like.
    """

    streams: Mapping[str, tuple[Row, ...]]
    evaluation: Mapping[str, tuple[Row, ...]]
    latent: Mapping[str, tuple[Row, ...]]
    generic: tuple[str, ...]
    refusals: tuple[str, ...]
    fingerprint: str
    holdout: tuple[Row, ...] = ()
    members: str = "forget"
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Assets:
    """Models a source brings along: ordinary HF and SAELens directories."""

    model: Path
    sae: Path
    heldout_sae: Path | None = None
    gold: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """How a ``qa`` row becomes text: ``question.format(question=prompt) + separator + answer + end``."""

    question: str = "Question: {question}\nAnswer:"
    separator: str = " "
    end: str = ""
    append_eos: bool = True


class TokenBatch(NamedTuple):
    """Tokenised rows, padded on the right.

    ``input_ids_BT``, ``attention_mask_BT`` (1 on tokens) and ``labels_BT`` (``IGNORE_INDEX`` on prompt and padding) are aligned
    position by position: shifting is the business of ``unlearn.functional.tokens``. ``entity_end_B`` is the index of the last
    entity token (``NO_ENTITY`` where there is none), ``answer_start_B`` the index of the first answer token.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels_BT: Tensor
    entity_end_B: Tensor
    answer_start_B: Tensor
    row_id_B: Tensor


class LossTerms(NamedTuple):
    """What a method returns: the scalar to minimise (fp32) and its named parts, detached or not, for logging."""

    total: Tensor
    terms: dict[str, Tensor]
