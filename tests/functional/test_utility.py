from __future__ import annotations

import math
import statistics

import pytest

from tests.oracles.load import oracle
from unlearn.errors import DataError
from unlearn.functional.utility import TOFU_UTILITY, harmonic_mean


def test_equals_open_unlearning_and_the_standard_library() -> None:
    case = oracle("metrics")["metrics"]["hm_aggregate"]
    assert harmonic_mean(case["values"]) == pytest.approx(case["agg_value"], abs=1e-6)
    assert harmonic_mean(case["values"]) == pytest.approx(statistics.harmonic_mean(case["values"]), abs=1e-12)


def test_zero_and_nan_win() -> None:
    assert harmonic_mean([1.0, 1.0, 0.0]) == 0.0
    assert math.isnan(harmonic_mean([1.0, math.nan, 0.0]))
    assert harmonic_mean([0.3]) == pytest.approx(0.3)


def test_what_has_no_harmonic_mean_is_refused() -> None:
    with pytest.raises(DataError, match="at least one value; found none"):
        harmonic_mean([])
    with pytest.raises(DataError, match="at least 0; found -0.5"):
        harmonic_mean([0.5, -0.5])


def test_tofu_has_nine_parts() -> None:
    assert len(set(TOFU_UTILITY)) == 9
