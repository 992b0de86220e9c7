"""Questions in the turns of a tokenizer's chat template.

The template is asked once, with marks in the place of question and answer; what stands around them becomes a ``PromptFormat``. Rows are
then tokenised as any others: prompt and answer as one text, the answer found by its characters.
"""

from __future__ import annotations

from typing import Any

from unlearn.config.schema import ChatConfig
from unlearn.errors import ConfigError
from unlearn.types import PromptFormat

DATE = "26 Jul 2024"
"""What templates with a date in them (Llama 3.1) are told that today is, so that a run can be repeated."""

_QUESTION, _ANSWER = "\ue000question\ue001", "\ue000answer\ue001"


def chat_format(fmt: PromptFormat, tokenizer: Any, chat: ChatConfig) -> PromptFormat:
    """How a question becomes text for this tokenizer: in its chat template, or as ``fmt`` says.

    In a template the question stands in ``chat.user``, the answer follows the head of the model's turn, and the first special token after
    it (the end of the turn) is learnt and ends a generation.

    Args:
        fmt: the format of the data source, for base models.
        tokenizer: a Hugging Face tokenizer.
        chat: the section ``model.chat``.

    Raises:
        ConfigError: a template or a system prompt for a tokenizer that has none, or a template that loses the question.
    """
    own = bool(getattr(tokenizer, "chat_template", None))
    if chat.template == "never" or (chat.template == "auto" and not own):
        if chat.system is not None:
            why = "model.chat.template never" if own else "a tokenizer without a chat template"
            raise ConfigError(f"model.chat.system must be null with {why}; found {chat.system!r}. Put it into data.question_format.")
        return fmt
    if not own:
        raise ConfigError("model.chat.template must be auto or never for a tokenizer without a chat template; found always.")
    turns = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    turns.append({"role": "user", "content": chat.user.replace("{question}", _QUESTION)})
    before = _rendered(tokenizer, turns, chat, True)
    whole = _rendered(tokenizer, [*turns, {"role": "assistant", "content": _ANSWER}], chat, False)
    if before.count(_QUESTION) != chat.user.count("{question}") or _ANSWER not in whole:
        raise ConfigError("model.chat.template must be never for a chat template that does not hold question and answer as they are.")
    end = _until_special(whole.rpartition(_ANSWER)[2], tokenizer)
    return PromptFormat(question=before.replace(_QUESTION, "{question}"), separator="", end=end, append_eos=not end and fmt.append_eos)


def _rendered(tokenizer: Any, turns: list[dict[str, str]], chat: ChatConfig, asking: bool) -> str:
    """The conversation as text, with the head of the model's turn if ``asking``."""
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asking, date_string=DATE))
    except TemplateError as error:
        if chat.system is None:
            raise ConfigError(f"model.chat.template must be never for a chat template that fails; found {error}.") from error
        raise ConfigError(
            f"model.chat.system must be null for this chat template ({error}); found {chat.system!r}. Put it into model.chat.user, "
            f'before {{question}}: "{chat.system}\\n\\n{{question}}".'
        ) from error


def _until_special(text: str, tokenizer: Any) -> str:
    """``text`` up to the end of its first special token; without one, up to its last visible character."""
    specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    places = [(text.find(token), token) for token in specials if token in text]
    if not places:
        return text.rstrip()
    start, token = min(places)
    return text[: start + len(token)]
