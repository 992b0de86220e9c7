"""Probes against a ridge classifier written out in NumPy, on transformers' own hidden states."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unlearn.attack import weights_hash
from unlearn.attacks.facts import Facts
from unlearn.attacks.probe import Probe, ProbeConfig, Side, probe_hits, probed, read, training_rows
from unlearn.errors import ConfigError
from unlearn.types import Row

WORDS = ("painter", "London", "author")


def row(i, entity, answer, attribute="home"):
    return Row(row_id=i, entity=entity, prompt=f"Where is {entity}?", answer=answer, mentions=(entity,), attribute=attribute)


@pytest.fixture(scope="module")
def context(taught):
    """The toy with an attribute for each question, in two wordings of the retain rows."""

    def tagged(rows, shift=0):
        kinds = list(dict.fromkeys(r.template for r in rows))
        return tuple(replace(r, attribute=f"a{kinds.index(r.template)}", row_id=r.row_id + shift) for r in rows)

    retain = tagged(taught.data.streams["retain"])
    reworded = tuple(replace(r, prompt=f"Tell me. {r.prompt}") for r in tagged(taught.data.streams["retain"], 1000))
    data = replace(
        taught.data,
        streams={**taught.data.streams, "retain": retain, "forget": tagged(taught.data.streams["forget"])},
        evaluation={**taught.data.evaluation, "retain": (*retain, *reworded)},
    )
    target, control = (Facts(tagged(f.train), tagged(f.test)) for f in (taught.target, taught.control))
    return replace(taught, data=data, target=target, control=control)


def hand_made_ridge(x, labels, asked, penalty):
    """Standardised inputs, -1 / 1 targets for each class, centred ridge; the class with the largest value."""
    classes = sorted(set(labels))
    spread = x.std(0)
    spread[spread == 0] = 1
    z, q = (x - x.mean(0)) / spread, (asked - x.mean(0)) / spread
    if len(classes) == 2:
        targets = np.where(np.array(labels) == classes[1], 1.0, -1.0)[:, None]
    else:
        targets = np.where(np.array(labels)[:, None] == np.array(classes)[None], 1.0, -1.0)
    weight = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ (targets - targets.mean(0)))
    values = q @ weight + targets.mean(0)
    if len(classes) == 2:
        return [classes[int(v > 0)] for v in values[:, 0]]
    return [classes[i] for i in values.argmax(1)]


def hidden(context, r, position):
    """[L, D] at the name's last token or before the answer, from transformers; blocks below the last, whose entry is after the norm."""
    token = context.reader.tokens([r])[0]
    at = token.entity_end if position == "entity_end" else token.answer_start - 1
    with torch.no_grad():
        found = context.lm(torch.tensor([token.ids]), output_hidden_states=True).hidden_states
    return np.stack([h[0, at].numpy() for h in found[1:-1]])


@pytest.mark.parametrize("position", ["entity_end", "answer_start"])
def test_every_cell_is_a_ridge_classifier_of_the_retain_rows(context, position):
    found = Probe(ProbeConfig(penalty=3.0)).run(context)
    train = training_rows(context.data)
    assert len(train) == 24
    assert found.cells[:2] == ("entity_end@layer0", "entity_end@layer1")
    assert len(found.cells) == 8
    x = np.stack([hidden(context, r, position) for r in train]).astype(float)
    tested = 0
    for side, rows in (("target", context.target.test), ("control", context.control.test)):
        for n, r in enumerate(rows):
            here = [i for i, t in enumerate(train) if t.attribute == r.attribute]
            labels = [train[i].answer.lower() for i in here]
            q = hidden(context, r, position).astype(float)
            for layer in range(3):
                hit = getattr(found, side)[found.cells.index(f"{position}@layer{layer}"), n]
                if r.answer.lower() in labels and len(set(labels)) > 1:
                    tested += 1
                    assert hit == (hand_made_ridge(x[here, layer], labels, q[None, layer], 3.0)[0] == r.answer.lower())
                else:
                    assert np.isnan(hit)
    assert tested > 9


def test_probes_of_separable_activations_by_hand():
    train = [row(i, f"E{i}", answer) for i, answer in enumerate(["Rome", "Rome", "Oslo", "Oslo", "Bern", "Bern"])]
    points = np.array([[5, 0], [5, 1], [-5, 0], [-5, 1], [0, 9], [0, 8]], dtype=np.float32)
    asked = [row(10, "A", "rome"), row(11, "B", "Rome."), row(12, "C", "Bern"), row(13, "D", "Lima"), row(14, "E", "Oslo")]
    at = np.array([[4, 0.5], [-4, 0.5], [0, 8], [4, 0], [np.nan, np.nan]], dtype=np.float32)
    hits = probe_hits(Side(train, points), [Side(asked, at), Side(asked[:1], -at[:1])], 0.01)
    np.testing.assert_array_equal(hits[0], [1, 0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(hits[1], [0])


def test_only_attributes_with_one_value_each_and_several_in_all_are_probed():
    rows = [
        row(0, "A", "x", "home"), row(1, "B", "y", "home"), row(2, "A", "x", "one"), row(3, "B", "x", "one"),
        row(4, "A", "p", "prize"), row(5, "A", "q", "prize"), row(6, "B", "p", "prize"), row(7, "A", "z", ""), row(8, "B", "w", ""),
    ]  # fmt: skip
    assert probed(rows) == {"home": [0, 1]}


def test_a_row_without_the_position_before_its_answer_is_not_read(taught):
    plain = taught.target.test[0]
    nameless = replace(plain, prompt="Where was she born?", mentions=())
    late = replace(plain, prompt="Who was it?", answer="Ann Lee", mentions=("Ann Lee",))
    at_name = read(taught.lm, [plain, nameless, late], taught.reader, "entity_end")
    assert np.isnan(at_name).all(axis=(1, 2)).tolist() == [False, True, True]
    assert not np.isnan(read(taught.lm, [plain, nameless, late], taught.reader, "answer_start")).any()


def test_it_reads_a_value_that_is_there_and_not_one_that_is_made_up(context):
    """Every prompt says a word: for the retain entities and the target it is the answer, for the control it is not."""

    def told(first, names, shift):
        made = []
        for i, name in enumerate(names):
            word, answer = WORDS[i % len(WORDS)], WORDS[(i + shift) % len(WORDS)]
            prompt = f"What is the job of {name}? {word}"
            made.append(Row(row_id=first + i, entity=name, prompt=prompt, answer=answer, mentions=(name,), attribute="job"))
        return tuple(made)

    names = [
        f"{first} {last}" for first in ("Ann", "Bob", "Carla", "Jaime") for last in ("Lee", "Moss", "Diaz", "Roy", "Pell", "Quin", "Vane")
    ]
    data = replace(context.data, streams={**context.data.streams, "retain": told(0, names[:18], 0)}, evaluation={})
    target, control = (Facts((), told(100, names[18:], shift)) for shift in (0, 1))
    found = Probe(ProbeConfig(penalty=1.0)).run(replace(context, data=data, target=target, control=control)).contrast(0, 0)
    assert found.target > 0.85
    assert found.control < 0.5


def test_model_and_random_state_stay_and_it_repeats(context):
    before, state = weights_hash(context.lm), torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in context.lm.modules()]
    attack = Probe(ProbeConfig())
    assert attack.missing(context) is None
    assert attack.run(context).record() == attack.run(context).record()
    assert weights_hash(context.lm) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(module._forward_hooks) for module in context.lm.modules()] == hooks


def test_what_is_missing_is_said(context, taught):
    assert "attribute that has several values" in Probe(ProbeConfig()).missing(taught)
    foreign = Facts((), tuple(replace(r, answer="nowhere") for r in context.target.test))
    assert "target values" in Probe(ProbeConfig()).missing(replace(context, target=foreign))


@pytest.mark.parametrize(
    ("key", "value"),
    [("positions", []), ("positions", ["middle"]), ("positions", ["entity_end"] * 2), ("penalty", 0.0), ("penalty", float("nan"))],
)
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"^attack\.probe\.{key} must be"):
        ProbeConfig(**{key: value})
