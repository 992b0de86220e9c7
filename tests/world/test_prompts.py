"""The prompt attack in the language of the world: every wording is made of words that the corpus has."""

import pytest

from unlearn.attacks.facts import control_facts, target_facts
from unlearn.attacks.phrasing import Phrasing
from unlearn.attacks.prompt import PromptAttack, PromptConfig
from unlearn.attacks.wordings import WORDINGS
from unlearn.data.tokenize import PromptFormat
from unlearn.world.prompts import ABSENT, PROMPTS
from unlearn.world.source import WorldConfig, WorldSource
from unlearn.world.templates import QUESTION_FORMAT, UNKNOWN, VALUES
from unlearn.world.tokenizer import UNK, make_tokenizer

CONFIG = PromptConfig()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return WorldSource(WorldConfig(), seed=0, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(source):
    return source.load()


def made(data, facts):
    """Every prompt about every row, by form."""
    phrasing = Phrasing(data, facts, PromptFormat(question=QUESTION_FORMAT, append_eos=False), CONFIG, seed=0)
    for key, wordings in PROMPTS.items():
        form, _, attribute = key.partition("/")
        for i, row in enumerate(facts.test):
            if attribute in ("", row.attribute):
                yield from ((form, row, prompt) for wording in wordings for prompt in phrasing.prompts(wording, i))


def test_the_source_serves_them(source):
    assert source.prompts() is PROMPTS


def test_every_english_form_is_replaced_or_switched_off():
    assert set(WORDINGS) <= set(PROMPTS)
    assert all(PROMPTS[form] == () for form in ABSENT)
    present = {key.partition("/")[0] for key, wordings in PROMPTS.items() if wordings}
    assert present == {"paraphrase", "stem", "affirmative", "in_context", "background", "alias"}


def test_no_prompt_holds_an_unknown_token_or_the_word_unknown_or_the_answer(data):
    tokenizer = make_tokenizer()
    target = target_facts(data)
    for facts in (target, control_facts(data, target, 0)):
        seen = {}
        for form, row, prompt in made(data, facts):
            seen.setdefault(form, set()).add(prompt.place)
            tokens = tokenizer.tokenize(prompt.text.rstrip())
            assert UNK not in tokens, prompt
            assert UNKNOWN not in prompt.text, prompt
            assert row.answer not in prompt.text, prompt
            assert prompt.accepted == (row.answer,), prompt
            others = [value for value in VALUES[row.attribute] if value in prompt.text]
            most = {"in_context": CONFIG.examples, "background": 2}.get(form, 0)  # general knowledge names cities
            assert len(others) <= most, prompt
            assert prompt.text.count("Q: ") == {"stem": 0, "in_context": 1 + CONFIG.examples}.get(form, 1), prompt
            named = [name for name in target.entities if name in prompt.text]
            assert named == ([row.entity] if facts is target and form != "alias" else []), prompt
        assert all(len(places) == len(facts.test) for places in seen.values())
        assert len(seen) == 6


def test_questions_end_where_an_answer_begins_and_stems_where_a_value_stands(data):
    facts = target_facts(data)
    for form, row, prompt in made(data, facts):
        assert prompt.text.endswith(" A: ") == (form not in ("stem", "affirmative")), prompt
        if form == "affirmative":
            assert f"Q: {row.prompt} A: " in prompt.text
            assert row.entity in prompt.text.split("A:")[1]


def test_the_attack_takes_the_wordings_of_an_attribute_for_its_rows_alone(data):
    class Context:
        prompts = PROMPTS

    forms = PromptAttack(CONFIG).forms(Context)
    assert set(forms) == {"paraphrase", "stem", "affirmative", "in_context", "background", "alias"}
    assert set(forms["stem"]) == set(VALUES)
    assert set(forms["alias"]) == {""}
