from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

import unlearn.methods.dsg as module
from tests.oracles.load import OracleSAE, oracle, sae_hidden
from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.methods.dsg import DSG, DSGConfig, gate_fractions, gate_statistic
from unlearn.models.capture import capture
from unlearn.models.forward import generate
from unlearn.models.intervene import Seen

SAE = oracle("sae")
FEATURES = torch.tensor(SAE["clamp_input"]["features"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def on_oracle(made: Toy, gate: str, tau: float) -> tuple[DSG, torch.Tensor, Seen]:
    """The method with the oracle's SAE, features and threshold, the hidden states, and a pass whose first token is BOS."""
    method = made.method("dsg", gate=gate, multiplier=25.0)
    del method._modules["sae"]
    method.sae = OracleSAE()
    method.latents_S, method.tau = FEATURES, torch.tensor(tau)
    hidden_BTD, _ = sae_hidden("target", 1)
    content_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.bool)
    content_BT[:, 0] = False
    return method, hidden_BTD, Seen(content_BT)


@pytest.mark.parametrize("tau", [0.2, 0.5, 0.9])
def test_published_gate_and_clamp_are_those_of_the_reference_code(made: Toy, tau: float) -> None:
    method, hidden_BTD, seen = on_oracle(made, "published", tau)
    wanted = torch.tensor(SAE["dsg"][f"clamp_mult25_threshold{tau}"], dtype=torch.float64)
    torch.testing.assert_close(method.edit(hidden_BTD, seen), wanted, atol=1e-6, rtol=0)


def test_where_the_gates_differ(made: Toy) -> None:
    """Row 0 fires on all 8 content tokens: 1.0 of the content, 8/9 with BOS counted."""
    method, hidden_BTD, seen = on_oracle(made, "sequence", 0.9)
    out = method.edit(hidden_BTD, seen)
    assert not torch.equal(out[0], hidden_BTD[0])
    assert torch.equal(out[2], hidden_BTD[2])
    published, _, again = on_oracle(made, "published", 0.9)
    assert torch.equal(published.edit(hidden_BTD, again)[0], hidden_BTD[0])


def test_running_gate_by_hand() -> None:
    fires = torch.tensor([[False, True, False, True, True]])
    counted = torch.tensor([[False, True, True, True, True]])
    fires = fires & counted
    assert gate_fractions(fires, counted, 1)[0].tolist() == pytest.approx([0, 1, 1 / 2, 2 / 3, 3 / 4])
    assert gate_fractions(fires, counted, None)[0].tolist() == pytest.approx([3 / 4] * 5)
    past = torch.tensor([1.0]), torch.tensor([4.0])
    assert gate_fractions(fires, counted, 1, *past)[0].tolist() == pytest.approx([1 / 4, 2 / 5, 2 / 6, 3 / 7, 4 / 8])
    assert gate_fractions(fires, counted, 3)[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 3 / 4])
    assert gate_fractions(fires, counted, 8, *past)[0].tolist() == pytest.approx([1 / 8, 2 / 8, 2 / 8, 3 / 8, 4 / 8])
    assert gate_statistic(fires, counted, 1).tolist() == [1.0]
    assert gate_statistic(torch.zeros_like(fires), counted, 1).tolist() == [0.0]


def test_tau_leaves_the_given_share_of_retain_rows_untouched(made: Toy) -> None:
    lm, method = made.ready("dsg", n_features=3, ratio_percentile=60.0, tau_percentile=75.0)
    rho, touched = [], []
    for batch in made.reader(1).batches(made.data.streams["retain"]):
        hidden_BTD = capture(lm, batch, LAYER)
        fires = (made.sae.encode(hidden_BTD, method.latents_S) > 0).any(-1)[0, 1:].double()
        running = fires.cumsum(0) / torch.arange(1, len(fires) + 1).clamp(min=16)
        rho.append(float((running * fires).max()))
        content_BT = torch.ones_like(batch.input_ids_BT, dtype=torch.bool)
        content_BT[:, 0] = False
        touched.append(not torch.equal(method.edit(hidden_BTD, Seen(content_BT)), hidden_BTD))
    assert method.tau.item() == pytest.approx(np.percentile(rho, 75), abs=1e-6)
    assert touched == [value > method.tau.item() + 1e-7 for value in rho]
    assert sum(touched) <= 0.25 * len(touched)


@pytest.mark.parametrize("gate", ["running", "sequence"])
def test_padding_and_batch_mates_have_no_say(made: Toy, gate: str) -> None:
    _, method = made.ready("dsg", n_features=3, ratio_percentile=60.0, gate=gate)
    method.tau = torch.tensor(0.05)
    hidden_BTD = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1)) * 3
    real = torch.ones(3, 7, dtype=torch.bool)
    out = method.edit(hidden_BTD, Seen(real))
    assert not torch.equal(out, hidden_BTD)
    wide, mask = torch.randn(3, 11, 32), torch.zeros(3, 11, dtype=torch.bool)
    for row, shift in enumerate((0, 2, 4)):
        wide[row, shift : shift + 7], mask[row, shift : shift + 7] = hidden_BTD[row], True
    padded = method.edit(wide, Seen(mask))
    torch.testing.assert_close(padded[mask].view(3, 7, 32), out)
    for row in range(3):
        torch.testing.assert_close(method.edit(hidden_BTD[row : row + 1], Seen(real[:1]))[0], out[row])


def test_running_gate_token_by_token_equals_at_once(made: Toy) -> None:
    _, method = made.ready("dsg", n_features=3, ratio_percentile=60.0)
    method.tau = torch.tensor(0.05)
    hidden_BTD = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2)) * 3
    content_BT = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    whole = method.edit(hidden_BTD, Seen(content_BT))
    memory: dict = {}
    cuts = (0, 4, 5, 6, 9)
    parts = [method.edit(hidden_BTD[:, a:b], Seen(content_BT[:, a:b], memory)) for a, b in zip(cuts, cuts[1:], strict=False)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert not torch.equal(whole, hidden_BTD)


def test_generation_in_a_batch_equals_generation_alone(made: Toy) -> None:
    lm, _ = made.trained("dsg", n_features=3, ratio_percentile=60.0, tau_percentile=20.0, multiplier=30.0)
    rows = made.reader().tokens(made.data.streams["forget"])
    prompts = [list(row.ids[: row.answer_start]) for row in rows]
    together = generate(lm, made.tokenizer, prompts, 5)
    assert together == [generate(lm, made.tokenizer, [p], 5)[0] for p in prompts]
    assert together != generate(made.lm, made.tokenizer, prompts, 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("ratio_percentile", 101.0), ("tau_percentile", -1.0), ("multiplier", -1.0), ("n_features", 0), ("gate", "causal"), ("min_tokens", 0)],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"method.{key} must be"):
        DSGConfig(name="dsg", **{key: value})


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
