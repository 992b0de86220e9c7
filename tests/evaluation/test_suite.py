from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.toys import Toy, toy
from unlearn.errors import CacheError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_base_is_measured_once_and_read_later(made: Toy, tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    first = made.suite(null_draws=5).measure_base(made.lm, path)
    again = made.suite(null_draws=5).measure_base(None, path)  # type: ignore[arg-type]
    assert again.results == pytest.approx(first.results, nan_ok=True)
    assert {k: list(v) for k, v in again.texts.items()} == {k: list(v) for k, v in first.texts.items()}
    path.write_text("{")
    with pytest.raises(CacheError, match=r"base\.json is damaged .*; delete it and run again\."):
        made.suite().measure_base(made.lm, path)


def test_the_original_model_is_no_collapse_of_itself(made: Toy) -> None:
    suite = made.suite()
    final = suite.final(suite.measure_base(made.lm))
    assert final["generic/kl_to_base"] == pytest.approx(0.0, abs=1e-5)
    assert final["collapse/hidden_norm_drift"] == pytest.approx(0.0, abs=1e-5)
    assert final["generic/perplexity"] == final["generic/perplexity_base"]


def test_a_broken_model_is_flagged_with_the_reason(made: Toy) -> None:
    suite = made.suite()
    suite.measure_base(made.lm)
    broken = copy.deepcopy(made.lm)
    with torch.no_grad():
        broken.lm_head.weight.mul_(-20.0)
    final = suite.final(suite.measure(broken))
    assert final["collapse/flag"] == 1.0
    assert "perplexity" in str(final["collapse/reason"])


def test_measuring_changes_neither_weights_nor_mode(made: Toy) -> None:
    before = {n: p.clone() for n, p in made.lm.named_parameters()}
    made.lm.train()
    suite = made.suite()
    suite.measure_base(made.lm)
    assert made.lm.training
    made.lm.eval()
    assert all(torch.equal(p, before[n]) for n, p in made.lm.named_parameters())
