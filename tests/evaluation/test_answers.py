from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.toys import Toy, toy
from unlearn.evaluation.answers import AnswerRecords, measure_answers
from unlearn.types import Row


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_keys_and_intervals_of_a_set(made: Toy) -> None:
    rows = [Row(row_id=i, entity="ab"[i % 2], prompt="", answer="x") for i in range(4)]
    records = AnswerRecords(rows, ["x"] * 4, {"accuracy": np.array([1.0, 0.0, 1.0, 0.0]), "refusal_rate": np.zeros(4)})
    assert records.summary("forget_paraphrased", bootstrap=200) == {
        "forget/accuracy_paraphrased": 0.5,
        "forget/accuracy_paraphrased/ci_low": 0.0,
        "forget/accuracy_paraphrased/ci_high": 1.0,
        "forget/refusal_rate_paraphrased": 0.0,
    }
    assert records.summary("real_authors") == {"real_authors/accuracy": 0.5, "real_authors/refusal_rate": 0.0}


def test_truth_ratio_is_read_by_scope(made: Toy) -> None:
    rows = [Row(row_id=0, entity="a", prompt="", answer="x")]
    records = AnswerRecords(rows, ["x"], {"truth_ratio": np.array([4.0])})
    assert records.summary("forget") == {"forget/truth_ratio": 0.25}
    assert records.summary("retain") == {"retain/truth_ratio": 0.0}


def test_measures_rows_with_wrong_answers(made: Toy) -> None:
    row = Row(
        row_id=0,
        entity="Ann Lee",
        prompt="Where was Ann Lee born?",
        answer="Paris",
        mentions=("Ann Lee",),
        perturbed_answers=("London", "Rome"),
    )
    values = measure_answers(made.lm, [row, replace(made.data.evaluation["forget"][1], perturbed_answers=())], made.reader()).values
    prompt = "Question: Where was Ann Lee born?\nAnswer: "

    def nll(answer: str) -> float:
        encoded = made.tokenizer(prompt + answer, return_offsets_mapping=True)
        ids = torch.tensor([[*encoded.input_ids, made.tokenizer.eos_token_id]])
        start = next(i for i, (_, end) in enumerate(encoded.offset_mapping) if end > len(prompt))
        return cross_entropy(made.lm(input_ids=ids).logits[0, start - 1 : -1], ids[0, start:]).item()

    expected = np.exp(nll("Paris") - np.mean([nll("London"), nll("Rome")]))
    assert values["truth_ratio"].shape == (1,)
    assert values["truth_ratio"][0] == pytest.approx(expected, rel=1e-4)
    assert values["probability"][0] == pytest.approx(np.exp(-nll("Paris")), rel=1e-4)


def test_a_wrong_answer_may_leave_out_the_name_that_the_right_one_gives(made: Toy) -> None:
    """TOFU asks who someone is; the name then stands in the answer alone, and each wrong answer names somebody else."""
    question = "Who was born there?"
    named = Row(row_id=0, entity="Ann Lee", prompt=question, answer="Ann Lee", mentions=("Ann Lee",), perturbed_answers=("Bob Moss",))
    plain = Row(row_id=0, entity="", prompt=question, answer="Ann Lee", perturbed_answers=("Bob Moss",))
    ratios = [measure_answers(made.lm, [row], made.reader()).values["truth_ratio"][0] for row in (named, plain)]
    assert ratios[0] == ratios[1]
