import copy
import hashlib
from dataclasses import replace

import pytest

from tests.tiny import tiny_llama, tiny_tokenizer
from tests.toys import toy_data
from unlearn.attacks.asking import ask
from unlearn.attacks.base import AttackContext
from unlearn.attacks.facts import Facts, control_facts, target_facts
from unlearn.attacks.strip import Strip
from unlearn.data.reader import Reader
from unlearn.evaluation.answers import answer, right
from unlearn.models.intervene import intervene
from unlearn.types import PromptFormat

READ = Reader(tokenizer=tiny_tokenizer(), prompt_format=PromptFormat(), refusals=(), max_length=128, batch_size=4, max_new_tokens=4)


def fingerprint(lm):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in lm.state_dict().values())).hexdigest()


def test_it_asks_what_is_under_the_intervention():
    """The facts are what the bare weights say; with the edit on them they say something else."""
    data, bare, ticks = toy_data(), tiny_llama(), []
    acting = copy.deepcopy(bare)
    intervene(acting, {2: lambda hidden_BTD, seen: -3 * hidden_BTD.flip(-1)})
    rows = data.streams["forget"]
    rows = tuple(replace(row, accepted_answers=(text,)) for row, text in zip(rows, answer(bare, READ.tokens(rows), READ), strict=True))
    facts = Facts(rows, rows)
    control = control_facts(data, target_facts(data), 0)
    wanted = [float(right(row.accepted_answers[0], row)) for row in rows]
    assert sum(wanted) >= len(rows) // 2
    assert ask(acting, rows, READ).sum() == 0
    before = fingerprint(acting)
    context = AttackContext(lm=acting, reader=READ, data=data, target=facts, control=control, bare=lambda: bare, tick=ticks.append)
    outcome = Strip(Strip.Config()).run(context)
    assert fingerprint(acting) == before
    assert ask(acting, rows, READ).sum() == 0
    assert outcome.cells == ("bare",)
    assert outcome.target.tolist() == [wanted]
    assert outcome.control.tolist() == [ask(bare, control.test, READ).tolist()]
    assert ticks == [1.0]
    results = outcome.results("attack/strip", Strip.measure, 0, 0)
    assert results == {"attack/strip_accuracy": sum(wanted) / 6, "attack/strip_control": 0.0, "attack/strip_excess": sum(wanted) / 6}


def test_weights_that_were_changed_have_nothing_to_strip():
    data, lm = toy_data(), tiny_llama()
    facts = target_facts(data)
    context = AttackContext(lm=lm, reader=READ, data=data, target=facts, control=control_facts(data, facts, 0))
    assert Strip(Strip.Config()).missing(context) == "a method that acts at inference"
    assert Strip(Strip.Config()).missing(replace(context, bare=lambda: lm)) is None
    with pytest.raises(ValueError, match="inference"):
        Strip(Strip.Config()).run(context)
