import doctest
import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import unlearn.attacks.patching as patching
from tests.tiny import BOS, EOS, PAD, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.toys import toy_data
from unlearn.attacks.base import AttackContext
from unlearn.attacks.facts import Facts, control_facts, target_facts
from unlearn.attacks.patch import Patch, PatchConfig
from unlearn.attacks.patching import Side, changed, entity_states, inner_blocks
from unlearn.data.reader import Reader
from unlearn.data.tokenize import TokenRow, collate
from unlearn.errors import ConfigError, ModelError
from unlearn.evaluation.answers import right
from unlearn.evaluation.scoring import score
from unlearn.models.forward import generate
from unlearn.types import PromptFormat

FAMILIES = {"llama": tiny_llama, "gemma2": tiny_gemma2, "gpt2": tiny_gpt2}
ROWS = [TokenRow((BOS, 17, 40, 99, 23, 9, 31), 5, 2, 0), TokenRow((BOS, 8, 301, 77, 12), 4, 1, 1), TokenRow((BOS, *range(44, 54)), 9, 5, 2)]
OTHER = TokenRow((BOS, 200, 201, 202, 203), 4, 2, 3)
READER = SimpleNamespace(batch_size=2, pad_id=PAD)


def own(states):
    return {layer: (lambda hidden_ND, row_N, layer=layer: states[layer][row_N]) for layer in states}


def logits(lm, ids, mask=None):
    with torch.no_grad():
        return lm(input_ids=ids, attention_mask=mask).logits


READ = Reader(tokenizer=tiny_tokenizer(), prompt_format=PromptFormat(), refusals=(), max_length=128, batch_size=3, max_new_tokens=4)


def context_of(lm, **changes):
    data = toy_data()
    target = target_facts(data)
    return AttackContext(**{"lm": lm, "reader": READ, "data": data, "target": target, "control": control_facts(data, target, 0), **changes})


def said_by_hand(lm, row, writes):
    """What the model says when hidden states are written in at (block, position), without a cache, one row at a time."""
    tokens = READ.tokens([row])[0]
    handles = []
    for layer, (place, state_D) in writes.items():

        def hook(module, args, output, place=place, state_D=state_D):
            output = output.clone()
            output[0, place] = state_D
            return output

        handles.append(lm.model.layers[layer].register_forward_hook(hook))
    ids = list(tokens.ids[: tokens.answer_start])
    for _ in range(4):
        ids.append(int(logits(lm, torch.tensor([ids]))[0, -1].argmax()))
    for handle in handles:
        handle.remove()
    return READ.tokenizer.decode(ids[tokens.answer_start :], skip_special_tokens=True).strip()


def hidden_by_hand(lm, row):
    tokens = READ.tokens([row])[0]
    with torch.no_grad():
        states = lm(input_ids=torch.tensor([tokens.ids]), output_hidden_states=True).hidden_states
    return tokens.entity_end, [h[0, tokens.entity_end] for h in states[1:]]


def fingerprint(lm):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in lm.state_dict().values())).hexdigest()


def hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.modules())


def test_docstrings():
    assert doctest.testmod(patching).failed == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_hidden_states_at_the_entity(family):
    lm = FAMILIES[family]()
    states = entity_states(lm, ROWS, READER, [0, 2])
    for place, row in enumerate(ROWS):
        with torch.no_grad():
            hidden = lm(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        for layer in (0, 2):
            torch.testing.assert_close(states[layer][place], hidden[layer + 1][0, row.entity_end], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_activation_changes_nothing(family):
    lm = FAMILIES[family]()
    batch = collate(ROWS, PAD)
    plain, said = (
        logits(lm, batch.input_ids_BT, batch.attention_mask_BT),
        generate(lm, tiny_tokenizer(), [r.ids[: r.answer_start] for r in ROWS], 6),
    )
    with changed(lm, ROWS, own(entity_states(lm, ROWS, READER, [0, 1, 2]))):
        torch.testing.assert_close(logits(lm, batch.input_ids_BT, batch.attention_mask_BT), plain, atol=1e-4, rtol=1e-4)
        assert generate(lm, tiny_tokenizer(), [r.ids[: r.answer_start] for r in ROWS], 6) == said
    assert hooks(lm) == 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_patching_the_input_is_swapping_the_token(family):
    lm = FAMILIES[family]()
    new = [300, 310, 320]
    swapped = [list(row.ids) for row in ROWS]
    for ids, row, token in zip(swapped, ROWS, new, strict=True):
        ids[row.entity_end] = token
    states = {-1: torch.stack([entity_states(lm, [TokenRow(tuple(ids), row.answer_start, row.entity_end, 0)], READER, [-1])[-1][0]
                               for ids, row in zip(swapped, ROWS, strict=True)])}  # fmt: skip
    batch, wanted = collate(ROWS, PAD), collate([replace(r, ids=tuple(i)) for r, i in zip(ROWS, swapped, strict=True)], PAD)
    prompts = [list(r.ids[: r.answer_start]) for r in ROWS]
    said = generate(lm, tiny_tokenizer(), [i[: r.answer_start] for i, r in zip(swapped, ROWS, strict=True)], 6)
    assert said != generate(lm, tiny_tokenizer(), prompts, 6)
    with changed(lm, ROWS, own(states)):
        found = logits(lm, batch.input_ids_BT, batch.attention_mask_BT)
        assert generate(lm, tiny_tokenizer(), prompts, 6) == said  # prompts of other lengths in one batch, padded on the left
    right = batch.attention_mask_BT.bool()
    torch.testing.assert_close(found[right], logits(lm, wanted.input_ids_BT, wanted.attention_mask_BT)[right], atol=1e-4, rtol=1e-4)


def test_other_texts_and_other_positions_are_left_alone():
    lm = tiny_llama()
    seen = []
    with changed(lm, ROWS, {1: lambda h, row: seen.append(row.tolist()) or h + 1.0}):
        ids = torch.tensor([OTHER.ids])
        with_hook = logits(lm, ids)
        row = torch.tensor([ROWS[0].ids])
        pushed = logits(lm, row)
    assert torch.equal(with_hook, logits(lm, ids))
    assert seen == [[0]]
    plain = logits(lm, row)
    assert torch.equal(pushed[:, : ROWS[0].entity_end], plain[:, : ROWS[0].entity_end])
    assert not torch.allclose(pushed[:, ROWS[0].entity_end :], plain[:, ROWS[0].entity_end :])


def test_the_longest_name_wins():
    short, long = TokenRow((BOS, 5, 6, 7, 8), 4, 1, 0), TokenRow((BOS, 5, 6, 9, 8), 4, 2, 1)
    seen = []
    lm = tiny_llama()
    with changed(lm, [short, long], {0: lambda h, row: seen.append(row.tolist()) or h}):
        logits(lm, torch.tensor([[BOS, 5, 6, 9], [BOS, 5, 7, 9]]))
    assert seen == [[1, 0]]


@pytest.mark.parametrize("onwards", [False, True])
def test_generation_is_changed_where_it_should_be(onwards):
    """Against the uncached model, one text at a time, with the change written out by position."""
    lm, push = tiny_llama(), torch.linspace(-2, 2, 32)
    with changed(lm, ROWS, {1: lambda h, row: h + push * (1 + row[:, None])}, onwards):
        found = generate(lm, tiny_tokenizer(), [r.ids[: r.answer_start] for r in ROWS], 5)
    for place, row in enumerate(ROWS):
        ids = list(row.ids[: row.answer_start])

        def hook(module, args, output, place=place, row=row):
            output = output.clone()
            output[:, row.entity_end : None if onwards else row.entity_end + 1] += push * (1 + place)
            return output

        handle = lm.model.layers[1].register_forward_hook(hook)
        for _ in range(5):
            ids.append(int(logits(lm, torch.tensor([ids]))[0, -1].argmax()))
        handle.remove()
        new = ids[row.answer_start :]
        stop = next((i for i, token in enumerate(new) if token == EOS), 5)
        assert found[place] == new[:stop]


def test_scoring_is_changed_too():
    lm, side = tiny_llama(), Side.of(toy_data().streams["forget"], READ)
    plain = score(lm, side.tokens, READ).nll()
    with changed(lm, side.tokens, own(entity_states(lm, side.tokens, READ, [0, 1]))):
        torch.testing.assert_close(score(lm, side.tokens, READ).nll(), plain, atol=1e-4, rtol=1e-4)
    with changed(lm, side.tokens, {2: lambda h, row: h.flip(-1)}):
        assert float((score(lm, side.tokens, READ).nll() - plain).abs().min()) > 1e-4


def test_a_pass_without_ids_is_refused():
    lm = tiny_llama()
    with changed(lm, ROWS, {}), pytest.raises(ModelError, match="input_ids"):
        lm(inputs_embeds=torch.zeros(1, 3, 32))
    assert hooks(lm) == 0


def test_rows_that_cannot_be_patched_are_left_out():
    row = toy_data().streams["forget"][0]
    bare = replace(row, mentions=())  # names nobody
    in_answer = replace(row, prompt="Who is it?", answer="Ann Lee")
    at_the_end = replace(row, kind="statement", prompt="The city of Ann Lee", answer="Paris")
    side = Side.of([bare, row, in_answer, at_the_end], READ)
    assert side.places == (1,)
    assert side.rows == (row,)
    np.testing.assert_array_equal(side.whole(np.array([1.0])), [np.nan, 1.0, np.nan, np.nan])


def test_blocks():
    lm = tiny_llama(layers=6)
    assert [inner_blocks(lm, n) for n in (1, 2, 3, 5, 99)] == [[0], [0, 4], [0, 2, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert inner_blocks(tiny_llama(layers=1), 3) == []


@pytest.mark.parametrize("name", ["layer0", "layer2", "layer0_up", "layer1_up"])
def test_every_cell_by_hand(name):
    """Answers are made what the patched model says, row by row; without the patch it says other things."""
    attacked, original = tiny_llama(seed=0), tiny_llama(seed=5)
    layers = (int(name[5]),) if name[-1] != "p" else range(int(name[5]), 3)
    rows, differ = [], 0
    for row in toy_data().streams["forget"]:
        place, states = hidden_by_hand(original, row)
        text = said_by_hand(attacked, row, {layer: (place, states[layer]) for layer in layers})
        differ += text != said_by_hand(attacked, row, {})
        rows.append(replace(row, accepted_answers=(text,)))
    assert differ >= 2
    context = context_of(attacked, original=lambda: original, target=Facts(tuple(rows), tuple(rows)))
    before = fingerprint(attacked), hooks(attacked), hooks(original)
    outcome = Patch(PatchConfig()).run(context)
    assert (fingerprint(attacked), hooks(attacked), hooks(original)) == before
    assert outcome.cells == ("layer0", "layer1", "layer2", "layer0_up", "layer1_up")
    wanted = [float(right(row.accepted_answers[0], row)) for row in rows]
    assert outcome.target[outcome.cells.index(name)].tolist() == wanted
    assert sum(wanted) >= len(rows) // 2
    assert outcome.record() == Patch(PatchConfig()).run(context).record()


def test_the_model_itself_loses_nothing():
    lm = tiny_llama()
    rows = tuple(replace(row, accepted_answers=(said_by_hand(lm, row, {}),)) for row in toy_data().streams["forget"])
    nameless = replace(rows[0], mentions=())
    ticks = []
    context = context_of(lm, original=lambda: lm, target=Facts(rows, (*rows, nameless)), tick=ticks.append)
    outcome = Patch(PatchConfig(upwards=False)).run(context)
    assert outcome.target[:, :-1].tolist() == [[float(right(row.accepted_answers[0], row)) for row in rows]] * 3
    assert np.isnan(outcome.target[:, -1]).all()
    assert ticks == [0.0, 1 / 3, 2 / 3]


def test_what_is_missing():
    context = context_of(tiny_llama())
    attack = Patch(PatchConfig())
    assert attack.missing(context) == "the original model (--base)"
    there = replace(context, original=lambda: context.lm)
    assert attack.missing(there) is None
    assert attack.missing(replace(there, lm=tiny_llama(layers=1))) == "a model of two blocks or more"
    nameless = tuple(replace(row, mentions=()) for row in context.target.test)
    assert attack.missing(replace(there, target=Facts(nameless, nameless))) == "questions that go on after the entity's name"
    with pytest.raises(ValueError, match="original"):
        attack.run(context)


def test_cells_and_config():
    context = SimpleNamespace(lm=tiny_llama(layers=6))
    assert list(Patch(PatchConfig(blocks=2, upwards=False)).cells(context).items()) == [("layer0", (0,)), ("layer4", (4,))]
    assert Patch(PatchConfig(blocks=3)).cells(context)["layer2_up"] == (2, 3, 4)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match=r"^attack\.patch\.blocks"):
            PatchConfig(blocks=bad)
    PatchConfig(**Patch.quick)
