"""Targets of the forget rows, and the scores of their answers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.toys import LAYER, Toy, toy
from unlearn.data.neighbours import swaps
from unlearn.methods.answer_share import AnswerShare
from unlearn.methods.counterfactual import Counterfactual, after_name, predicting_all
from unlearn.models.capture import capture
from unlearn.models.forward import forward
from unlearn.types import NO_ENTITY, Row, TokenBatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def targets(made: Toy) -> Counterfactual:
    found = Counterfactual(made.data, made.reader(), 2, seed=0)
    found.measure(made.lm, 4)
    return found


def question(made: Toy, row: Row, name: str) -> TokenBatch:
    changed = dataclasses.replace(row, prompt=row.prompt.replace(row.entity, name), entity=name, mentions=(name,))
    return made.reader().batches([changed])[0]


def test_a_target_is_the_sum_of_its_neighbours_codes(made: Toy, targets: Counterfactual) -> None:
    """By hand, for one row: every draw is a stranger S T, for whom stand S Lee, Ann T and S T."""
    row = made.data.streams["forget"][0]
    names = [name for token, _ in targets._neighbours if token.row_id == row.row_id for name in [made.tokenizer.decode(token.ids)]]
    strangers = {r.mentions[0] for r in made.data.streams["unknown"]}
    used = [s for s in strangers if any(s in text for text in names)]
    assert len(used) == 2
    wanted = torch.zeros(())
    for stranger in used:
        for name, weight in swaps(row.entity, stranger):
            batch = question(made, row, name)
            with torch.no_grad():
                wanted = wanted + weight / 2 * capture(made.lm, batch, LAYER)[0, int(batch.entity_end_B[0]) :]
    torch.testing.assert_close(targets.hidden[row.row_id][LAYER], wanted, atol=1e-5, rtol=1e-4)
    assert targets.hidden[row.row_id].shape[0] == 4


def test_output_targets_are_those_of_one_neighbour_at_a_time(made: Toy, targets: Counterfactual) -> None:
    batch = made.batch()["forget"]
    aims = targets.of(batch, step=3)
    assert aims.place_N.tolist() == [0, 1, 2, 3]
    mask_BT = after_name(batch, aims.place_N)
    assert aims.hidden_LMD.shape == (4, int(mask_BT.sum()), 32)
    out = forward(made.lm, predicting_all(batch, mask_BT))
    assert out.final_AD.shape == aims.final_PD.shape
    several = {tuple(targets.of(batch, step).final_PD[0].tolist()) for step in range(12)}
    assert 1 < len(several) <= 6  # two draws of three swaps each


def test_rows_that_name_nobody_have_no_target(made: Toy, targets: Counterfactual) -> None:
    batch = made.batch()["forget"]
    batch = batch._replace(entity_end_B=torch.full_like(batch.entity_end_B, NO_ENTITY))
    aims = targets.of(batch, 0)
    assert (len(aims.place_N), aims.hidden_LMD.shape, aims.final_PD.shape) == (0, (4, 0, 32), (0, 32))
    assert not after_name(batch, aims.place_N).any()


def test_labels_stand_on_every_token_after_the_name(made: Toy) -> None:
    batch = made.batch()["forget"]
    wide = predicting_all(batch, after_name(batch, torch.tensor([1])))
    labelled = wide.labels_BT != -100
    assert not labelled[0].any()
    place = torch.arange(batch.input_ids_BT.shape[1])
    assert torch.equal(labelled[1], (place > batch.entity_end_B[1]) & batch.attention_mask_BT[1].bool())
    assert torch.equal(wide.labels_BT[1][labelled[1]], batch.input_ids_BT[1][labelled[1]])


def test_strangers_are_scored_on_the_target_s_own_answer(made: Toy, targets: Counterfactual) -> None:
    row = made.data.streams["forget"][1]
    assert len(targets.strangers[row.row_id]) == len(targets.scores[row.row_id]) == 2
    stranger = made.tokenizer.decode(targets.strangers[row.row_id][0].ids, skip_special_tokens=True)
    assert row.entity not in stranger
    assert stranger.rstrip().endswith(row.answer)
    again = targets.score(made.lm, targets.strangers[row.row_id][:1])
    assert again.item() == pytest.approx(targets.scores[row.row_id][0], abs=1e-5)


def test_scores_compete_within_the_attribute_or_are_likelihoods(made: Toy) -> None:
    rows = [
        Row(row_id=i, entity="a", prompt="Ann is", answer=answer, kind="statement", attribute=attribute)
        for i, (answer, attribute) in enumerate([("Paris", "city"), ("London", "city"), ("painter", "job"), ("author of books", "")])
    ]
    tokens = {token.row_id: token for token in made.reader().tokens(rows)}
    share = AnswerShare(rows, tokens)
    assert set(share.choices) == {0, 1}  # one value is no choice, and without an attribute there is none
    batch = made.reader().batches(list(tokens.values()))[0]
    with torch.no_grad():
        out = forward(made.lm, batch)
        found = share.of(out.logits_AV, out.targets_A, out.row_A, batch.row_id_B.tolist())
    for place, row_id in enumerate(batch.row_id_B.tolist()):
        own = out.row_A == place
        log_p = out.logits_AV[own].log_softmax(-1)
        if row_id in share.choices:
            among = log_p[0, share.choices[row_id]]
            expected = log_p[0, out.targets_A[own][0]] - among.logsumexp(0) + math.log(2)
        else:
            expected = log_p.gather(1, out.targets_A[own][:, None]).mean()
        assert found[place].item() == pytest.approx(expected.item(), abs=1e-5)
