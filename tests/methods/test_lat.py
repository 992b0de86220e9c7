from __future__ import annotations

import doctest

import pytest
import torch

from tests.tiny import tiny_batch, tiny_gemma2, tiny_gpt2, tiny_llama
from tests.toys import LAYER, Toy, toy
from unlearn.errors import ConfigError
from unlearn.functional.tokens import token_nll
from unlearn.methods import lat
from unlearn.methods.base import concatenate
from unlearn.methods.gradient_ascent import GradientAscentConfig
from unlearn.methods.lat import TOKENS, LATConfig, attacked_tokens, matching_rows, perturbed, project
from unlearn.methods.sae_guided import SAEGuidedConfig
from unlearn.models.capture import capture
from unlearn.models.edit import edited
from unlearn.models.forward import forward
from unlearn.types import TokenBatch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def mean_nll(lm: torch.nn.Module, batch: TokenBatch) -> float:
    with torch.no_grad():
        out = forward(lm, batch)
        return token_nll(out.logits_AV, out.targets_A).mean().item()


def test_doctests() -> None:
    assert doctest.testmod(lat).failed == 0


def test_project_leaves_what_is_inside_the_ball() -> None:
    delta = torch.randn(2, 5, 8)
    inside = project(delta, 1.0)
    assert (inside.norm(dim=-1) <= 1 + 1e-6).all()
    short = delta.norm(dim=-1) <= 1
    assert torch.equal(inside[short], delta[short])
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(inside, delta, dim=-1), torch.ones(2, 5))


def batch_by_hand() -> TokenBatch:
    """Two rows: BOS, name (1 and 2 tokens), a word, answer; the second is shorter, and generic text."""
    return TokenBatch(
        input_ids_BT=torch.tensor([[1, 5, 6, 7, 8, 9], [1, 10, 11, 0, 0, 0]]),
        attention_mask_BT=torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
        labels_BT=torch.tensor([[-100, -100, -100, -100, 8, 9], [-100, 10, 11, -100, -100, -100]]),
        entity_end_B=torch.tensor([2, -1]),
        answer_start_B=torch.tensor([4, 1]),
        row_id_B=torch.tensor([0, 1]),
    )


def test_attacked_tokens_by_hand() -> None:
    batch = batch_by_hand()
    whole = [False, True, True, False, False, False]  # the second row has neither prompt nor entity
    expected = {
        "prompt": [[False, True, True, True, False, False], whole],
        "answer": [[False, False, False, False, True, True], whole],
        "entity": [[False, False, True, False, False, False], whole],
        "all": [[False, True, True, True, True, True], whole],
    }
    assert {tokens: attacked_tokens(batch, tokens).tolist() for tokens in TOKENS} == expected


def test_matching_rows_by_hand() -> None:
    ids = torch.tensor(
        [
            [1, 10, 11, 0, 0, 0, 0],  # the second row, wider padding
            [1, 5, 6, 7, 8, 9, 0],  # the first, whole
            [1, 5, 6, 7, 12, 13, 14],  # its prompt with another answer
            [1, 5, 6, 12, 8, 9, 0],  # another prompt
            [1, 10, 12, 0, 0, 0, 0],  # generic text has no prompt to be found by
        ]
    )
    index, agree = matching_rows(ids, batch_by_hand())
    assert agree.tolist() == [3, 6, 4, 0, 0]
    assert index[:3].tolist() == [1, 0, 0]
    assert matching_rows(ids[:, :5], batch_by_hand())[1].tolist() == [3, 4, 4, 0, 0]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2, tiny_gpt2])
def test_a_perturbation_reaches_the_forget_rows_and_no_others(make) -> None:  # noqa: ANN001
    lm = make()
    forget, retain = tiny_batch(rows=3, seed=1), tiny_batch(rows=3, length=15, seed=2, first_id=10)
    delta = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0)) * attacked_tokens(forget, "all")[..., None]
    both = concatenate([retain, forget])
    plain = capture(lm, both, 1)
    with perturbed(lm, 1, forget, delta):
        moved = capture(lm, both, 1)
        alone = capture(lm, forget, 1)
    torch.testing.assert_close(moved[:3], plain[:3])
    torch.testing.assert_close(moved[3:, :12] - plain[3:, :12], delta, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone - capture(lm, forget, 1), delta, atol=1e-5, rtol=1e-5)


def test_another_answer_to_a_forget_prompt_is_perturbed_on_the_prompt() -> None:
    lm, forget = tiny_llama(), tiny_batch(rows=2, seed=1, shortest=12)
    ids = forget.input_ids_BT.clone()
    ids[:, 8:] = torch.tensor([7, 9, 11, 13])
    other = forget._replace(input_ids_BT=ids)
    delta = torch.ones(2, 12, 32)
    plain = capture(lm, other, 0)
    with perturbed(lm, 0, forget, delta):
        shift = capture(lm, other, 0) - plain
    torch.testing.assert_close(shift[:, :8], torch.ones(2, 8, 32))
    assert not shift[:, 8:].any()


@pytest.mark.parametrize("layer", [-1, 2])
def test_the_adversary_brings_the_answers_back_within_its_ball_and_leaves_the_weights_alone(made: Toy, layer: int) -> None:
    lm, method = made.ready("lat", eps=0.5, layer=layer)
    batch = made.batch()["forget"]
    delta, _ = method.attack(lm, batch)
    assert delta.norm(dim=-1).max().item() == pytest.approx(0.5, rel=1e-4)
    assert not delta[~attacked_tokens(batch, "prompt")].any()
    assert all(p.grad is None for p in lm.parameters())
    clean = mean_nll(lm, batch)
    with edited(lm, layer, lambda hidden: hidden + delta):
        attacked = mean_nll(lm, batch)
    drawn = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
    with edited(lm, layer, lambda hidden: hidden + drawn * (0.5 / drawn.norm(dim=-1, keepdim=True)) * (delta != 0)):
        by_chance = mean_nll(lm, batch)
    assert attacked < min(clean, by_chance) - 0.1


def test_one_step_goes_against_the_sign_of_the_gradient(made: Toy) -> None:
    lm, method = made.ready("lat", attack_steps=1, attack_lr=1e-3, tokens="all")
    batch = made.batch()["forget"]
    delta, nll = method.attack(lm, batch)
    shift = torch.zeros_like(delta, requires_grad=True)
    with edited(lm, method.layer, lambda hidden: hidden + shift):
        out = forward(lm, batch)
        (gradient,) = torch.autograd.grad(token_nll(out.logits_AV, out.targets_A).sum(), [shift])
    clear = (gradient.abs() > 1e-3) & attacked_tokens(batch, "all")[..., None]
    assert clear.any()
    torch.testing.assert_close(delta[clear], -1e-3 * gradient[clear].sign(), rtol=1e-2, atol=0)
    assert nll.item() == pytest.approx(mean_nll(lm, batch), rel=1e-5)


def test_what_is_found_for_a_row_does_not_depend_on_the_others(made: Toy) -> None:
    lm, method = made.ready("lat", eps=0.5, attack_steps=3)
    batch = made.batch()["forget"]
    together, _ = method.attack(lm, batch)
    alone, _ = method.attack(lm, TokenBatch(*(t[:1] for t in batch)))
    torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_inner_one_under_the_perturbation(made: Toy) -> None:
    lm, method = made.ready("lat", eps=0.5, layer=1)
    batch = made.batch()
    out = method.loss(lm, batch)
    delta, _ = method.attack(lm, batch["forget"])
    with edited(lm, 1, lambda hidden: hidden + delta):
        forget = -mean_nll(lm, batch["forget"])
    assert out.terms["forget"].item() == pytest.approx(forget, rel=1e-4)
    assert out.terms["retain"].item() == pytest.approx(mean_nll(lm, batch["retain"]), rel=1e-4)
    assert out.terms["attacked_nll"].item() < mean_nll(lm, batch["forget"])
    out.total.backward()
    assert any(p.grad is not None and p.grad.any() for p in lm.parameters())


def test_a_vanishing_ball_is_the_inner_method(made: Toy) -> None:
    lm, method = made.ready("lat", eps=1e-6, attack_steps=2)
    alone = made.method("grad_diff").loss(lm, made.batch()).total.item()
    assert method.loss(lm, made.batch()).total.item() == pytest.approx(alone, abs=1e-4)


def test_the_perturbation_must_reach_the_forgetting_term(made: Toy) -> None:
    inner = SAEGuidedConfig(name="sae_guided")
    assert made.method("lat", inner=inner).layer == LAYER
    with pytest.raises(ConfigError, match=rf"method\.layer must be at most {LAYER}, .*'sae_guided'.* found 2"):
        made.method("lat", inner=inner, layer=2)
    assert made.method("lat", inner=GradientAscentConfig(name="gradient_ascent"), layer=3).layer == 3
    with pytest.raises(ConfigError, match=r"method\.layer must be a block of the model, -1 to 3; found 4"):
        made.method("lat", layer=4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("layer", -2), ("eps", 0.0), ("eps", float("inf")), ("attack_steps", 0), ("attack_lr", -1.0), ("tokens", "prompts")],
)
def test_bad_settings_name_their_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{key} must be"):
        LATConfig(name="lat", **{key: value})
