"""What probes of the original model read off: the probe is scikit-learn's, its reading of targets and strangers worked out row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.toys import Toy, toy, toy_data
from unlearn.errors import DataError
from unlearn.functional.erasure import quantile_distance
from unlearn.latents.banks import position_index
from unlearn.methods.readout import PENALTY, Readouts
from unlearn.models.capture import capture
from unlearn.models.forward import forward

PLACE = ("answer_start", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy's rows with the question as their attribute."""
    data = toy_data()
    streams = {name: tuple(replace(row, attribute=row.template) for row in rows) for name, rows in data.streams.items()}
    return toy(Path(tmp_path_factory.mktemp("toy")), data=replace(data, streams=streams))


def code(made: Toy, row: Any) -> np.ndarray[Any, Any]:
    batch = made.reader().batches([row])[0]
    return capture(made.lm, batch, PLACE[1], position_index(batch, PLACE[0]))[0].detach().double().numpy()


def test_standings_are_those_of_scikit_learn_s_probe(made: Toy) -> None:
    lm, method = made.ready("sae_erase", readout_weight=1.0)
    readouts, targets = method.readouts, method.targets
    assert len(readouts.keys) == 8
    streams = made.data.streams
    kept = list({row.row_id: row for row in (*streams["known"], *streams["retain"]) if row.kind == "qa" and row.attribute}.values())
    checked = 0
    for row in streams["forget"]:
        about = [other for other in kept if other.attribute == row.attribute]
        labels = [other.answer for other in about]
        if row.row_id not in readouts.places or len(set(labels)) < 3:  # of two classes scikit-learn makes one
            continue
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=PENALTY)).fit([code(made, other) for other in about], labels)
        at = list(probe.classes_).index(row.answer)
        batch = made.reader().batches([row])[0]
        hidden = forward(lm, batch, layers=range(4)).hidden
        found = readouts.standings(hidden, batch, torch.tensor([0]))[0, readouts.keys.index(PLACE)].item()
        assert found == pytest.approx(scipy.stats.zscore(probe.decision_function([code(made, row)])[0])[at], abs=1e-2)
        theirs = [scipy.stats.zscore(probe.decision_function([code(made, s)])[0])[at] for s in targets.strangers[row.row_id]]
        mine = [z_K[readouts.keys.index(PLACE)].item() for z_K in readouts.scores[row.row_id]]
        assert sorted(mine) == pytest.approx(sorted(theirs), abs=1e-2)
        checked += 1
    assert checked


def test_the_term_matches_targets_to_strangers_at_every_place(made: Toy) -> None:
    lm, method = made.ready("sae_erase", readout_weight=2.0)
    readouts = method.readouts
    batch = made.batch()["forget"]
    out = forward(lm, batch, layers=range(4))
    found = readouts.distance(out.hidden, batch, lambda i: 0)
    ids = [int(i) for i in batch.row_id_B]
    place_N = torch.tensor([place for place, i in enumerate(ids) if i in readouts.scores])
    z_NK = readouts.standings(out.hidden, batch, place_N)
    wanted_NK = torch.stack([readouts.scores[ids[int(place)]][0] for place in place_N])
    expected = torch.stack([quantile_distance(z_NK[:, k], wanted_NK[:, k]) for k in range(8)]).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found > 0
    method.before_step(lm, 0, 10)
    terms = method.loss(lm, made.batch())
    assert terms.terms["readout"].requires_grad
    method.config = replace(method.config, readout_weight=0.0)
    assert "readout" not in method.loss(lm, made.batch()).terms


def test_rows_without_a_value_count_nothing(made: Toy) -> None:
    lm, method = made.ready("sae_erase", readout_weight=2.0)
    batch = made.batch()["retain"]
    assert method.readouts.distance(forward(lm, batch, layers=range(4)).hidden, batch, lambda i: 0).item() == 0


def test_an_attribute_must_have_several_values(made: Toy) -> None:
    bare = [replace(row, attribute="") for row in made.data.streams["known"]]
    with pytest.raises(DataError, match=r"method\.readout_weight must be 0"):
        Readouts(made.data.streams["forget"], bare, 4)
