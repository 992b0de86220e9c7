"""Questions in chat templates: what is said, where the answer starts and the entity ends, where a generation stops."""

from __future__ import annotations

from typing import Any

import pytest

from tests.architectures.vocabularies import tokenizer_for
from tests.tiny import tiny_tokenizer
from unlearn.config.schema import ChatConfig
from unlearn.data.chat import DATE, chat_format
from unlearn.data.tokenize import stop_ids, tokenize_rows
from unlearn.errors import ConfigError
from unlearn.types import PromptFormat, Row

BASE = PromptFormat()
KINDS = {"gemma2": "<end_of_turn>", "llama": "<|eot_id|>"}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {kind: tokenizer_for(kind, chat=True) for kind in KINDS}


def row(prompt: str, answer: str, *mentions: str) -> Row:
    return Row(row_id=0, entity=mentions[0] if mentions else "", prompt=prompt, answer=answer, mentions=mentions)


def test_gemma_turn_by_turn(tokenizers: dict[str, Any]) -> None:
    fmt = chat_format(BASE, tokenizers["gemma2"], ChatConfig())
    assert fmt.question == "<bos><start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
    assert (fmt.separator, fmt.end, fmt.append_eos) == ("", "<end_of_turn>", False)


def test_llama_turn_by_turn_with_a_date_that_stays(tokenizers: dict[str, Any]) -> None:
    fmt = chat_format(BASE, tokenizers["llama"], ChatConfig(system="Be brief."))
    head = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: {DATE}\n\n"
    user = "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
    assert fmt.question == f"{head}{user}<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert fmt.end == "<|eot_id|>"


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("user", ["{question}", "Answer in a word. {question}"])
def test_rows_are_what_the_template_makes_of_the_conversation(tokenizers: dict[str, Any], kind: str, user: str) -> None:
    """The template itself is the oracle: whole conversation, prompt to generate from, answer with the end of the turn."""
    tokenizer = tokenizers[kind]
    fmt = chat_format(BASE, tokenizer, ChatConfig(user=user))
    (tokens,) = tokenize_rows([row("Where was Orla Quill born?", "In Brandt.", "Orla Quill")], tokenizer, fmt, 512)
    asked = {"role": "user", "content": user.replace("{question}", "Where was Orla Quill born?")}
    said = {"role": "assistant", "content": "In Brandt."}
    whole = tokenizer.apply_chat_template([asked, said], tokenize=False, date_string=DATE).rstrip("\n")
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, date_string=DATE, add_generation_prompt=True)
    assert list(tokens.ids) == tokenizer(whole, add_special_tokens=False).input_ids
    assert list(tokens.ids[: tokens.answer_start]) == tokenizer(prompt, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokens.ids[tokens.answer_start :]).strip() == f"In Brandt.{KINDS[kind]}"
    assert tokenizer.decode(tokens.ids[: tokens.entity_end + 1]).endswith("Orla Quill")
    assert stop_ids(tokenizer, fmt) == (tokenizer.convert_tokens_to_ids(KINDS[kind]),)
    assert tokens.ids[-1] == stop_ids(tokenizer, fmt)[0]


def test_an_entity_that_the_template_names_too_is_found_in_the_question(tokenizers: dict[str, Any]) -> None:
    chat = ChatConfig(user="You know the model. {question} Speak of the model.")
    for tokenizer in tokenizers.values():
        fmt = chat_format(BASE, tokenizer, chat)
        (tokens,) = tokenize_rows([row("What is a model for?", "Tests.", "model")], tokenizer, fmt, 512)
        text = tokenizer.decode(tokens.ids)
        before = len(tokenizer.decode(tokens.ids[: tokens.entity_end + 1]))
        assert text[:before].endswith("What is a model")


def test_base_models_keep_their_stub(tokenizers: dict[str, Any]) -> None:
    assert chat_format(BASE, tiny_tokenizer(), ChatConfig()) is BASE
    assert chat_format(BASE, tokenizers["gemma2"], ChatConfig(template="never")) is BASE


def test_a_template_whose_head_differs_between_asking_and_telling() -> None:
    """As of models that think: a generation starts from the head that is asked with."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<eos>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant][no thoughts]' }}{% endif %}"
    )
    fmt = chat_format(BASE, tokenizer, ChatConfig(template="always"))
    assert fmt.question == "[user]{question}<eos>[assistant][no thoughts]"
    assert (fmt.end, fmt.append_eos) == ("<eos>", False)
    (tokens,) = tokenize_rows([row("Who?", "Paris")], tokenizer, fmt, 128)
    assert [tokens.ids[0], tokens.ids[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokens.ids[-2] != tokenizer.eos_token_id


def test_a_template_without_an_end_gets_the_end_of_sequence() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    fmt = chat_format(BASE, tokenizer, ChatConfig())
    assert (fmt.end, fmt.append_eos) == ("", True)


def test_what_cannot_be_said(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^model.chat.system must be null for this chat template \(System role not supported\); .*user"):
        chat_format(BASE, tokenizers["gemma2"], ChatConfig(system="Be brief."))
    for tokenizer, template in ((tiny_tokenizer(), "auto"), (tokenizers["gemma2"], "never")):
        with pytest.raises(ConfigError, match=r"model.chat.system must be null with .*; found 'Hi'. Put it into data.question_format"):
            chat_format(BASE, tokenizer, ChatConfig(template=template, system="Hi"))
    with pytest.raises(ConfigError, match="model.chat.template must be auto or never for a tokenizer without a chat template; found"):
        chat_format(BASE, tiny_tokenizer(), ChatConfig(template="always"))
    broken = tiny_tokenizer()
    broken.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(ConfigError, match="that does not hold question and answer as they are"):
        chat_format(BASE, broken, ChatConfig())
    with pytest.raises(ConfigError, match="model.chat.user must be a text that contains {question}"):
        ChatConfig(user="hello")
