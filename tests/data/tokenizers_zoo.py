"""Small tokenizers of the kinds that real models use, built in code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Question: Where was Jaime Vasquez born?\nAnswer: Santiago, Chile",
    "Question: Who wrote the book, Basil Mahfouz Al-Kuwaiti or Ann Lee?\nAnswer: I don't know.",
    "Jaime Vasquez's mother lives in Annapolis. Ann Lee was born in Santiago.",
    "Was the home of Ann in Annapolis? The author is Jaime Vasquez, not Ann, did.",
    "Ann Lee saw Vasquez and Jaime in Chile. Who? where lives xkqzy",
] * 5
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]


def _wrap(tokenizer: Tokenizer, *, bos: bool) -> PreTrainedTokenizerFast:
    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"} | ({"bos_token": "<s>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def word_level(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Whole words and punctuation marks."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False))
    return _wrap(tokenizer, bos=bos)


def byte_level(*, bos: bool = True, trim: bool = True, template: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 and Llama 3 have it; ``trim`` leaves the leading space out of the offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim)]
    if template:
        steps.append(processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)]))
    tokenizer.post_processor = processors.Sequence(steps)
    return _wrap(tokenizer, bos=bos)


def metaspace(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Unigram with the space as a letter of the word after it, as T5 and ALBERT have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrap(tokenizer, bos=bos)


def sentencepiece_bpe(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """BPE whose normaliser puts the space marks in, as Llama 2 and Gemma have it: offsets go through a changed text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIALS, show_progress=False))
    return _wrap(tokenizer, bos=bos)


ZOO: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "word_level": word_level,
    "byte_level": byte_level,
    "byte_level_untrimmed": lambda bos=True: byte_level(bos=bos, trim=False),
    "byte_level_template": lambda bos=True: byte_level(bos=bos, template=bos),
    "metaspace": metaspace,
    "sentencepiece_bpe": sentencepiece_bpe,
}
