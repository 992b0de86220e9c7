"""The prompt attack: what is put into the prompts and what is not, what counts as right, and that a row counts in its best wording."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.toys import rows, toy_data
from unlearn.attack import weights_hash
from unlearn.attacks.facts import Facts, control_facts, target_facts
from unlearn.attacks.phrasing import GAP, Phrasing, Prompt, misspellings
from unlearn.attacks.prompt import PromptAttack, PromptConfig, judge, tokenised
from unlearn.attacks.wordings import WORDINGS
from unlearn.errors import ConfigError, DataError
from unlearn.types import PromptFormat, Row

FORMAT = PromptFormat(question="Question: {question}\nAnswer:", append_eos=False)


@pytest.fixture
def data():
    return toy_data()


def phrasing(data, facts=None, **config):
    return Phrasing(data, facts or target_facts(data), FORMAT, PromptConfig(**config), seed=0)


def texts(data, wording, place=0, facts=None, **config):
    return [prompt.text for prompt in phrasing(data, facts, **config).prompts(wording, place)]


def test_a_question_goes_through_the_prompt_format_and_the_rest_around_it(data):
    asked = target_facts(data).test[0].prompt
    assert asked == "Tell me who employs Ann Lee."
    assert texts(data, "[[{question}]]") == [f"Question: {asked}\nAnswer: "]
    assert texts(data, "[[Well? {question}]]Sure,") == [f"Question: Well? {asked}\nAnswer: Sure, "]
    assert texts(data, "About {name}: she was born in") == ["About Ann Lee: she was born in "]
    assert texts(data, "[[{masked}]]") == [f"Question: Tell me who employs {GAP}.\nAnswer: "]
    assert texts(data, "[[{renamed}]]") == [f"Question: Tell me who employs {name}.\nAnswer: " for name in ("Lee", "Ann")]


def test_a_stem_is_not_put_as_a_question(data):
    row = Row(row_id=0, entity="Ann Lee", prompt="Ann Lee was born in", answer="Paris", kind="statement", mentions=("Ann Lee",))
    assert texts(data, "[[{question}]]", facts=Facts((row,), (row,))) == ["Ann Lee was born in "]


def test_misspellings_are_one_letter_away():
    name = "Robin Lane"
    found = misspellings(name, np.random.default_rng(0))
    assert len(set(found)) == len(found) > 5
    assert name not in found
    for other in found:
        assert other[0] == "R"
        assert other.split()[1][0] == "L"
        assert abs(len(other) - len(name)) <= 1
        dropped = {name[:i] + name[i + 1 :] for i in range(len(name))}
        doubled = {name[:i] + name[i] + name[i:] for i in range(len(name))}
        swapped = {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)}
        assert other in dropped | doubled | swapped
    assert misspellings("", np.random.default_rng(0)) == []


def test_every_misspelt_question_differs_from_the_question(data):
    found = texts(data, "[[{misspelt}]]", variants=4)
    assert len(set(found)) == 4
    assert not any("Ann Lee." in text for text in found)


def test_examples_are_about_others_and_have_other_answers(data):
    facts = target_facts(data)
    for place, row in enumerate(facts.test):
        (text,) = texts(data, "{examples}\n\n[[{question}]]", place, examples=3)
        parts = text.split("\n\n")
        assert len(parts) == 4
        assert parts[-1] == f"Question: {row.prompt}\nAnswer: "
        known = {f"Question: {r.prompt}\nAnswer: {r.answer}": r for r in data.streams["retain"]}
        shown = [known[part] for part in parts[:-1]]
        assert len({r.entity for r in shown}) == 3
        assert not {r.entity for r in shown} & set(facts.entities)
        assert row.answer not in {r.answer for r in shown}


def test_examples_are_of_the_same_kind_where_there_are_such(data):
    row = replace(rows("forget", 0)[0], answer="somewhere else")
    (text,) = texts(data, "{examples}\n\n[[{question}]]", facts=Facts((row,), (row,)), examples=4)
    assert text.count("Where was") == 5


def test_no_examples_no_prompt(data):
    empty = replace(data, streams={**data.streams, "retain": ()}, evaluation={**data.evaluation, "retain": ()})
    assert texts(empty, "{examples}\n\n[[{question}]]", facts=target_facts(data)) == []


def test_background_holds_neither_name_nor_answer(data):
    secret = replace(target_facts(data).test[0], answer="city")
    told = replace(data, generic=("The city is old.", "Lee ran away.", "A dog barks.", "x" * 301))
    assert texts(told, "[[{context} {question}]]", facts=Facts((secret,), (secret,))) == [
        f"Question: A dog barks. {secret.prompt}\nAnswer: "
    ]
    assert texts(replace(data, generic=()), "[[{context} {question}]]") == []


def test_options_hold_the_right_value_once_in_changing_places(data):
    facts = target_facts(data)
    letters = set()
    for place, row in enumerate(facts.test):
        (prompt,) = phrasing(data, options=3).prompts("[[{question}\n{options}]]", place)
        values = [value for _, value in prompt.options]
        assert [letter for letter, _ in prompt.options] == ["A", "B", "C"]
        assert values.count(row.answer) == 1
        assert set(values) <= {row.answer, *row.perturbed_answers}
        assert f"{row.prompt}\nA. {values[0]}\nB. {values[1]}\nC. {values[2]}\n" in prompt.text
        letters.add(values.index(row.answer))
    assert len(letters) > 1
    alone = tuple(replace(row, perturbed_answers=()) for row in facts.test)
    assert texts(data, "[[{question}\n{options}]]", facts=Facts(alone, alone)) == []


def test_a_reversed_question_asks_for_the_name_and_does_not_hold_it(data):
    for form in ("reverse", "two_hop"):
        for wording in WORDINGS[form]:
            for place, row in enumerate(target_facts(data).test):
                for prompt in phrasing(data).prompts(wording, place):
                    assert not any(part in prompt.text for part in ("Ann", "Lee", "Bob", "Moss"))
                    assert prompt.accepted == ((row.entity,) if form == "reverse" else (row.answer,))
    telling = replace(target_facts(data).test[0], answer="Ann Lee was born in Paris")
    assert texts(data, "[[{masked} {answer}]]", facts=Facts((telling,), (telling,))) == []


def test_a_clue_is_another_fact(data):
    facts = target_facts(data)
    found = {row.entity: texts(data, "{clue} / {clue_answer} / {masked}", i)[0].split(" / ") for i, row in enumerate(facts.test[:1])}
    clue, answer, asked = found["Ann Lee"]
    other = next(row for row in facts.test if row.prompt.replace("Ann Lee", GAP) == clue and row.entity == "Ann Lee")
    assert (answer, asked) == (other.answer, f"{facts.test[0].prompt.replace('Ann Lee', GAP)} ")
    assert other.answer != facts.test[0].answer


def test_only_choices_and_reversed_questions_hold_the_answer(data):
    """For every English wording, on both sides, with answers that occur nowhere else."""
    target = target_facts(data)
    for facts in (target, control_facts(data, target, 0)):
        facts = Facts(
            *(tuple(replace(row, answer=f"Zq{i}x{row.entity[0]}") for i, row in enumerate(part)) for part in (facts.train, facts.test))
        )
        made = phrasing(data, facts)
        used = set()
        for form, wordings in WORDINGS.items():
            for wording in wordings:
                for place, row in enumerate(facts.test):
                    for prompt in made.prompts(wording, place):
                        used.add(wording)
                        assert (row.answer in prompt.text) == (form in ("multiple_choice", "reverse")), (form, prompt)
                        assert "{" not in prompt.text
                        assert "[[" not in prompt.text
        assert used == {wording for wordings in WORDINGS.values() for wording in wordings}


@pytest.mark.parametrize(
    ("wording", "message"),
    [("[[{questoin}]]", "must use the fields .*questoin"), ("[[{question} is {answer}?]]", "must not hold the name")],
)
def test_wordings_that_cannot_be_are_refused(data, wording, message):
    with pytest.raises(DataError, match=message):
        texts(data, wording)


FREE = Prompt(0, "", ("New York", "NYC"))
CHOICE = Prompt(0, "", ("New York",), (("A", "York"), ("B", "New York"), ("C", "New York City")))


@pytest.mark.parametrize(
    ("reply", "prompt", "expected"),
    [
        ("He was born in New York.", FREE, True),
        ("the NYC", FREE, True),
        ("York", FREE, False),
        ("", FREE, False),
        ("B", CHOICE, True),
        ("(B) because", CHOICE, True),
        ("B. New York", CHOICE, True),
        ("new york, of course", CHOICE, True),
        ("A. New York", CHOICE, False),
        ("New York City", CHOICE, False),
        ("By boat", CHOICE, False),
        ("I choose New York", CHOICE, False),
    ],
)
def test_what_counts_as_right(reply, prompt, expected):
    assert judge(reply, prompt) is expected


def test_prompts_are_cut_where_the_answer_begins(taught):
    prompts = [Prompt(0, "Question: Who?\nAnswer: ", ("Paris",)), Prompt(1, "Question: Who?\nAnswer: It is ", ("Paris",))]
    for row, prompt in zip(tokenised(prompts, taught), prompts, strict=True):
        decode = taught.reader.tokenizer.decode
        assert decode(row.ids[: row.answer_start], skip_special_tokens=True) == prompt.text.rstrip()
        assert decode(row.ids[row.answer_start :], skip_special_tokens=True) == " Paris"


ASKED = dict.fromkeys(WORDINGS, ())


def test_a_row_counts_in_its_best_wording_and_a_choice_by_its_share(taught, monkeypatch):
    """Replies made by hand: each wording that holds "yes" is answered right, every other one wrong."""

    def replies(lm, tokens, reader):
        asked = [reader.tokenizer.decode(row.ids[: row.answer_start]) for row in tokens]
        given = [reader.tokenizer.decode(row.ids[row.answer_start :], skip_special_tokens=True) for row in tokens]
        return [
            f"It is {answer.strip()}\nor not" if "yes" in text else "well\n" + answer for text, answer in zip(asked, given, strict=True)
        ]

    monkeypatch.setattr("unlearn.attacks.prompt.answer", replies)
    prompts = {
        **ASKED,
        "some": ["[[no {question}]]", "[[yes {question}]]"],
        "none": ["[[no {question}]]"],
        "half/a": ["[[yes {question}]]"],
        "mixed": ["[[no {question}\n{options}]]It is", "[[yes {question}\n{options}]]"],
    }
    test = tuple(replace(row, attribute="a" if i % 2 else "b") for i, row in enumerate(taught.target.test))
    context = replace(taught, prompts=prompts, target=Facts(test, test))
    outcome = PromptAttack(PromptConfig()).run(context)
    assert outcome.cells == ("some", "none", "half", "mixed")
    some, none, half, mixed = outcome.target
    assert (some == 1).all()
    assert (none == 0).all()
    assert np.isnan(half[::2]).all()
    assert (half[1::2] == 1).all()
    assert np.isnan(outcome.control[2]).all()
    assert (mixed == 0).all()  # "It is ..." is no choice
    only = PromptAttack(PromptConfig(forms=["none", "some"], wordings=1)).run(context)
    assert only.cells == ("some", "none")
    assert (only.target == 0).all()


def test_it_finds_what_a_model_says_and_leaves_it_alone(taught):
    before, state = weights_hash(taught.lm), torch.get_rng_state()
    context = replace(taught, prompts={**ASKED, "paraphrase": ["[[{question}]]"], "in_context": ["{examples}\n[[{question}]]"]})
    first = PromptAttack(PromptConfig(examples=1)).run(context)
    assert (first.target[first.cells.index("paraphrase")] == 1).all()
    assert first.control.max(0).mean() < 0.7
    assert first.record() == PromptAttack(PromptConfig(examples=1)).run(context).record()
    assert weights_hash(taught.lm) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_that_do_not_fit_the_model_are_left_out(taught):
    long = "word " * 300
    context = replace(taught, prompts={**ASKED, "long": [f"[[{long}{{question}}]]"], "plain": ["[[{question}]]"]})
    assert PromptAttack(PromptConfig()).run(context).cells == ("plain",)
    with pytest.raises(DataError, match="must fit a wording of one of the forms long"):
        PromptAttack(PromptConfig(forms=["long"])).run(context)


def test_a_form_that_does_not_exist_is_refused(taught):
    with pytest.raises(ConfigError, match="^attack.prompt.forms must be one of .*paraphrase"):
        PromptAttack(PromptConfig(forms=["paraphrases"])).forms(taught)


@pytest.mark.parametrize(
    ("field", "value"), [("wordings", 0), ("variants", 0), ("examples", 0), ("options", 1), ("options", 27), ("forms", [""])]
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^attack.prompt.{field} must be"):
        PromptConfig(**{field: value})


TURNS = PromptFormat(question="<bos><user>{question}<end><model>", separator="", end="<end>", append_eos=False)


def in_turns(data, wording):
    return [prompt.text for prompt in Phrasing(data, target_facts(data), TURNS, PromptConfig(), seed=0).prompts(wording, 0)]


def test_in_a_chat_template_everything_before_the_question_is_said_in_the_users_turn(data):
    asked = target_facts(data).test[0].prompt
    assert in_turns(data, "[[Well? {question}]]Sure,") == [f"<bos><user>Well? {asked}<end><model>Sure, "]
    (text,) = in_turns(data, "Some answers.\n\n{examples}\n\n[[{question}]]")
    assert text.startswith("<bos><user>Some answers.\n\nQuestion: ")
    assert text.endswith(f"\n\n{asked}<end><model> ") or text.endswith(f"\n\n{asked}<end><model>")
    assert text.count("<bos>") == text.count("<user>") == text.count("<model>") == 1
    assert "\nAnswer: " in text
