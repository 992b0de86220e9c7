"""Linear probes: can the facts be read off the activations?

For each attribute and each layer a linear classifier learns, from questions about entities that are not forgotten, which value the
activation stands for; it is tested on the target's questions. A probe brings no fact of the target, so what it finds beyond what it finds
for unknown names with made-up values (the control) is in the model. Probing what a model holds after it stops saying it: Patil et al., "Can
Sensitive Information Be Deleted From LLMs?" (arXiv 2309.17410); probes as a test of unlearning: Lynch et al., "Eight Methods to Evaluate
Robust Unlearning in LLMs" (arXiv 2402.16835). Linear classifier probes per layer: Alain and Bengio (arXiv 1610.01644).

Two positions are read: the last token of the entity's name (is the fact there as soon as the name is read?) and the token that predicts the
answer. Ridge classifiers on standardised activations (scikit-learn), one of all values against each other for each attribute, layer and
position; the training rows are the questions of the retain stream and those of the retain evaluation set that are worded otherwise.

Reconstruction: the sources probe for other things (whether a text is harmful, which of few classes); classifier, penalty and training rows
are our choice. Only a value that occurs in the training rows can be found: rows with other values are not tested, on both sides alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from unlearn.attacks.base import Array, Attack, AttackConfig, AttackContext, Outcome, outcome
from unlearn.attacks.facts import fact_keys
from unlearn.config.checks import check, one_of
from unlearn.data.tokenize import batches
from unlearn.functional.text import normalise_answer
from unlearn.latents.banks import POSITIONS, position_index
from unlearn.models.capture import capture_layers
from unlearn.models.decoder import blocks_of, device_of, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.data.reader import Reader
    from unlearn.types import EntityData, Row


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(AttackConfig):
    """Probes: where they read, and how strongly they are held back."""

    positions: list[str] = field(default_factory=lambda: list(POSITIONS))
    """of entity_end (last token of the name) and answer_start (the token that predicts the answer)"""
    penalty: float = 100.0
    """ridge penalty on standardised activations, > 0"""

    def __post_init__(self) -> None:
        rule = f"different ones of {', '.join(POSITIONS)}"
        check(bool(self.positions) and len(set(self.positions)) == len(self.positions), "attack.probe.positions", rule, self.positions)
        for name in self.positions:
            one_of(name, POSITIONS, "attack.probe.positions")
        check(0 < self.penalty < float("inf"), "attack.probe.penalty", "a number > 0", self.penalty)


class Side(NamedTuple):
    """Rows and one activation [D] for each."""

    rows: Sequence[Row]
    states_ND: Array


def training_rows(data: EntityData) -> list[Row]:
    """Questions about entities that are not forgotten, each once."""
    rows = [*data.streams["retain"], *data.evaluation.get("retain", ())]
    return list({(row.entity, row.prompt): row for row in rows if row.kind == "qa" and row.mentions}.values())


def probed(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Places of the rows of each attribute that has one value for an entity, and several over all of them."""
    attributes, values = fact_keys(rows).attributes, defaultdict(set)
    places: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.attribute in attributes:
            places[row.attribute].append(i)
            values[row.attribute].add(normalise_answer(row.answer))
    return {attribute: found for attribute, found in places.items() if len(values[attribute]) > 1}


def taught(rows: Sequence[Row], places: Mapping[str, Sequence[int]]) -> dict[str, frozenset[str]]:
    """Values that the probe of each attribute can give."""
    return {attribute: frozenset(normalise_answer(rows[i].answer) for i in found) for attribute, found in places.items()}


def testable(rows: Sequence[Row], known: Mapping[str, frozenset[str]]) -> list[int]:
    """Places of the rows whose value is one that the probe of their attribute can give."""
    return [i for i, row in enumerate(rows) if normalise_answer(row.answer) in known.get(row.attribute, ())]


def read(lm: PreTrainedModel, rows: Sequence[Row], reader: Reader, position: str) -> Array:
    """Outputs of all blocks at a position, [N, L, D] in fp32; nan for a row that does not have it before its answer."""
    layers = range(len(blocks_of(lm)))
    parts: dict[int, Array] = {}
    for places, cpu_batch in batches(reader.tokens(rows), reader.batch_size, reader.pad_id):
        batch = type(cpu_batch)(*(t.to(device_of(lm)) for t in cpu_batch))
        index_B = position_index(batch, position)
        hidden = capture_layers(lm, batch, layers, index_B.clamp(min=0))
        hidden_BLD = torch.stack([hidden[layer].float() for layer in layers], dim=1)
        hidden_BLD[(index_B < 0) | (index_B >= batch.answer_start_B)] = torch.nan
        parts.update(zip(places, hidden_BLD.cpu().numpy(), strict=True))
    return np.stack([parts[i] for i in range(len(rows))])


def probe_hits(train: Side, test: Sequence[Side], penalty: float) -> list[Array]:
    """Whether probes trained on one side give the values of others, [N] each; nan where they cannot, or there is nothing to read.

    Args:
        train: rows with activations [N, D].
        test: the same of other entities.
        penalty: of the ridge classifiers.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    places = probed(train.rows)
    known = taught(train.rows, places)
    hits = [np.full(len(side.rows), np.nan) for side in test]
    for attribute, found in places.items():
        here = [i for i in found if not np.isnan(train.states_ND[i]).any()]
        labels = [normalise_answer(train.rows[i].answer) for i in here]
        if len(set(labels)) < 2:
            continue
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty)).fit(train.states_ND[here].astype(float), labels)
        for side, hits_N in zip(test, hits, strict=True):
            asked = [i for i in testable(side.rows, {attribute: known[attribute]}) if not np.isnan(side.states_ND[i]).any()]
            if asked:
                said = probe.predict(side.states_ND[asked].astype(float))
                hits_N[asked] = [guess == normalise_answer(side.rows[i].answer) for guess, i in zip(said, asked, strict=True)]
    return hits


class Probe(Attack):
    """Trains probes on those who are not forgotten and tests them on the target."""

    name = "probe"
    summary = "trains linear probes for each attribute on other entities and reads the target's values"
    paper = "https://arxiv.org/abs/2402.16835"
    quick = {}
    Config = ProbeConfig

    def missing(self, context: AttackContext) -> str | None:
        """Attributes with several values over the retain entities, some of which the tested rows have."""
        rows = training_rows(context.data)
        known = taught(rows, probed(rows))
        if not known:
            return "retain questions about an attribute that has several values"
        both = all(testable(facts.test, known) for facts in (context.target, context.control))
        return None if both else "target values that entities of the retain questions have too"

    def run(self, context: AttackContext) -> Outcome:
        """One probe for each attribute, layer and position."""
        sides = (training_rows(context.data), context.target.test, context.control.test)
        hits: dict[str, list[Array]] = {}
        for done, position in enumerate(self.config.positions):
            context.tick(done / len(self.config.positions))
            with evaluating(context.lm):
                states = [read(context.lm, rows, context.reader, position) for rows in sides]
            for layer in range(states[0].shape[1]):
                train, *test = (Side(rows, found[:, layer]) for rows, found in zip(sides, states, strict=True))
                hits[f"{position}@layer{layer}"] = probe_hits(train, test, self.config.penalty)
        return outcome(context, list(hits), *zip(*hits.values(), strict=True))
