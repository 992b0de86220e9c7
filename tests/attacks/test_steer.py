import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import tiny_llama, tiny_sae, tiny_tokenizer
from tests.toys import PEOPLE, toy_data
from unlearn.attacks.base import AttackContext
from unlearn.attacks.facts import Facts, control_facts, target_facts
from unlearn.attacks.steer import Steer, SteerConfig, anchors, best_latents
from unlearn.data.reader import Reader
from unlearn.errors import ConfigError
from unlearn.evaluation.answers import right
from unlearn.latents.selection import Selection, Separation
from unlearn.models.sae import FrozenSAE
from unlearn.types import PromptFormat

READ = Reader(tokenizer=tiny_tokenizer(), prompt_format=PromptFormat(), refusals=(), max_length=128, batch_size=5, max_new_tokens=6)
ADD = ("add_layer0_x20_token", "add_layer2_x20_token", "add_layer0_x20_onwards", "add_layer2_x20_onwards")
LATENT = ("known_on_x20_token", "unknown_off_token", "known_on_x20_onwards", "unknown_off_onwards")
SETTINGS = {"strengths": [20.0], "blocks": 2}


def context_of(lm, **changes):
    data = toy_data()
    target = target_facts(data)
    return AttackContext(**{"lm": lm, "reader": READ, "data": data, "target": target, "control": control_facts(data, target, 0), **changes})


def fingerprint(lm):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in lm.state_dict().values())).hexdigest()


def hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.modules())


@torch.no_grad()
def at_names(lm, rows, layer):
    """Hidden states at the end of the names, one row at a time, [N, D]."""
    found = []
    for tokens in READ.tokens(rows):
        hidden = lm(input_ids=torch.tensor([tokens.ids]), output_hidden_states=True).hidden_states
        found.append(hidden[layer + 1][0, tokens.entity_end])
    return torch.stack(found)


@torch.no_grad()
def said(lm, row, layer, change, onwards):
    """What the model says with the output of one block changed by position, without a cache."""
    tokens = READ.tokens([row])[0]

    def hook(module, args, output):
        output = output.clone()
        where = slice(tokens.entity_end, None if onwards else tokens.entity_end + 1)
        output[0, where] = change(output[0, where])
        return output

    handle = lm.model.layers[layer].register_forward_hook(hook)
    ids = list(tokens.ids[: tokens.answer_start])
    for _ in range(6):
        ids.append(int(lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    handle.remove()
    return READ.tokenizer.decode(ids[tokens.answer_start :], skip_special_tokens=True).strip()


def check_cell(context, cell, layer, change):
    """What the changed model says, row by row, counts as right: the cell must find it, though the model as it is says other things."""
    rows, differ = [], 0
    for row in context.target.test:
        text = said(context.lm, row, layer, change, cell.endswith("onwards"))
        differ += text != said(context.lm, row, layer, lambda hidden: hidden, False)
        rows.append(replace(row, accepted_answers=(text,)))
    assert differ >= 2
    wanted = [float(right(row.accepted_answers[0], row)) for row in rows]
    assert sum(wanted) >= len(rows) // 2
    outcome = Steer(SteerConfig(**SETTINGS, choice=False)).run(replace(context, target=Facts(tuple(rows), tuple(rows))))
    assert outcome.target[outcome.cells.index(cell)].tolist() == wanted
    return outcome


@pytest.mark.parametrize("cell", ADD)
def test_adding_the_difference_of_means_by_hand(cell):
    lm = tiny_llama()
    context, layer = context_of(lm), int(cell[9])
    streams = context.data.streams
    vector_D = at_names(lm, streams["known"], layer).mean(0) - at_names(lm, anchors(context, "unknown", 99), layer).mean(0)
    before = fingerprint(lm), hooks(lm)
    outcome = check_cell(context, cell, layer, lambda hidden: hidden + 20 * vector_D)
    assert outcome.cells == ADD
    assert (fingerprint(lm), hooks(lm)) == before


@pytest.mark.parametrize("cell", LATENT)
def test_latents_by_hand(cell):
    """``W_dec`` and the activations as sae_lens gives them."""
    lm, raw = tiny_llama(), tiny_sae(32, 64, "jumprelu", 1)
    sae = FrozenSAE(tiny_sae(32, 64, "jumprelu", 1))
    score_F = torch.linspace(-1, 1, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    scores = Separation(score_F.clamp(min=0), (-score_F).clamp(min=0))
    context = context_of(lm, sae=sae, selection=Selection(torch.arange(4), scores))
    order = score_F.argsort()
    off, on = order[:16], order[-16:]
    mean_F = raw.encode(at_names(lm, context.data.streams["known"], 1)).mean(0)

    def change(hidden):
        if cell.startswith("known_on"):
            return hidden + 20 * mean_F[on] @ raw.W_dec[on]
        return hidden - raw.encode(hidden)[:, off] @ raw.W_dec[off]

    outcome = check_cell(context, cell, 1, change)
    assert set(outcome.cells) == {*ADD, *LATENT}


def test_a_routed_sae_and_no_sae_leave_the_latents_out():
    lm = tiny_llama()
    sae = FrozenSAE(tiny_sae(32, 64, "topk", 1))
    sae.layers = (1, 2)
    scores = Selection(torch.arange(4), Separation(torch.ones(64), torch.zeros(64)))
    for found in ({"sae": sae, "selection": scores}, {"selection": scores}, {}):
        assert {cell.name for cell in Steer(SteerConfig(**SETTINGS)).cells(context_of(lm, **found))} == set(ADD)
    cells = Steer(SteerConfig(strengths=[0.5, 1.0], blocks=9, onwards=False)).cells(context_of(lm))
    assert [cell.name for cell in cells] == [f"add_layer{n}_x{s}_token" for n in (0, 1, 2) for s in ("0.5", "1")]


def test_best_latents():
    assert best_latents(torch.tensor([0.1, 0.9, 0.0, -0.5, 0.4]), 2).tolist() == [1, 4]
    assert best_latents(torch.tensor([0.1, -0.9]), 2).tolist() == [0]


def test_anchors_are_about_nobody_who_is_attacked():
    context = context_of(tiny_llama())
    control = {row.entity for row in context.control.test}
    assert control <= set(PEOPLE["unknown_heldout"])
    assert {row.entity for row in anchors(context, "unknown", 99)} == set(PEOPLE["unknown"])
    assert anchors(context, "forget", 99) == ()
    known = context.data.streams["known"]
    assert anchors(context, "known", 3) == (known[0], known[4], known[8])
    mixed = (replace(known[0], kind="statement"), known[1], replace(known[2], mentions=("Somebody Else",)))
    data = replace(context.data, streams={**context.data.streams, "known": mixed})
    assert anchors(replace(context, data=data), "known", 9) == (known[1],)


def test_choice_is_each_side_at_its_best_and_repeats():
    ticks = []
    context = context_of(tiny_llama(), tick=ticks.append)
    attack = Steer(SteerConfig(strengths=[0.5, 3.0]))
    outcome = attack.run(context)
    assert outcome.record() == attack.run(context).record()
    assert set(outcome.extra) == {"attack/steer_choice", "attack/steer_choice_control"}
    assert 0 <= outcome.extra["attack/steer_choice_control"] <= 1
    assert ticks[:12] == [i / 12 for i in range(12)]
    assert Steer(SteerConfig(**SETTINGS, choice=False)).run(context).extra == {}


def test_choice_finds_what_is_likeliest():
    """With one setting that changes nothing to speak of, the rows' likeliest values, worked out from the model's own losses."""
    lm = tiny_llama()
    context = context_of(lm)
    hits = []
    for row in context.target.test:
        options, losses = (row.answer, *row.perturbed_answers), []
        for tokens in READ.tokens([replace(row, answer=value) for value in options]):
            with torch.no_grad():
                logprobs = lm(input_ids=torch.tensor([tokens.ids])).logits[0].log_softmax(-1)
            losses.append(-np.mean([float(logprobs[t - 1, tokens.ids[t]]) for t in range(tokens.answer_start, len(tokens.ids))]))
        hits.append(losses[0] == min(losses))
    outcome = Steer(SteerConfig(strengths=[1e-6], blocks=1, onwards=False)).run(context)
    assert outcome.extra["attack/steer_choice"] == pytest.approx(np.mean(hits))


def test_what_is_missing():
    context = context_of(tiny_llama())
    attack = Steer(SteerConfig())
    assert attack.missing(context) is None
    assert attack.missing(replace(context, lm=tiny_llama(layers=1))) == "a model of two blocks or more"
    data = replace(context.data, streams={**context.data.streams, "known": ()})
    assert attack.missing(replace(context, data=data)) == "questions with names in the known and unknown streams"
    nameless = tuple(replace(row, mentions=()) for row in context.target.test)
    assert attack.missing(replace(context, target=Facts(nameless, nameless))) == "questions that go on after the entity's name"


@pytest.mark.parametrize(
    ("field", "bad"),
    [("strengths", []), ("strengths", [0.0]), ("strengths", [1.0, -1.0]), ("strengths", [math.nan]), ("strengths", [math.inf])]
    + [(name, bad) for name in ("blocks", "latents", "anchors") for bad in (0, -3, math.nan)],
)
def test_bad_values_are_refused(field, bad):
    with pytest.raises(ConfigError, match=rf"^attack\.steer\.{field}"):
        SteerConfig(**{field: bad})


def test_the_quick_suite_is_a_configuration():
    assert SteerConfig(**Steer.quick).choice is False
