"""The world's tokenizer: one token per word, names one token per syllable, with character offsets."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from unlearn.world.names import SYLLABLES
from unlearn.world.templates import all_words

PAD, UNK, BOUNDARY = "<|pad|>", "<|unk|>", "<|endoftext|>"
"""``BOUNDARY`` begins every sentence of the corpus and so also follows every sentence: it is both BOS and EOS, as in GPT-2."""

MARK = "\u2581"
"""Stands for the space before a word, as in SentencePiece."""

PUNCTUATION = ".?:"


def vocabulary() -> dict[str, int]:
    """Every token and its id: special tokens, punctuation, first syllables (with the mark), second syllables, words."""
    tokens = [PAD, UNK, BOUNDARY, *PUNCTUATION]
    tokens += [MARK + syllable.capitalize() for syllable in SYLLABLES] + list(SYLLABLES)
    tokens += [MARK + word for word in all_words()]
    return {token: index for index, token in enumerate(tokens)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fast HF tokenizer over ``vocabulary``; it puts the boundary token before a text and decodes back to readable text.

    >>> tokenizer = make_tokenizer()
    >>> tokenizer.convert_ids_to_tokens(tokenizer("Beldor Fenkal loves chess.").input_ids)[1:6]
    ['▁Bel', 'dor', '▁Fen', 'kal', '▁loves']
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    vocab = vocabulary()
    inner = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    first, second = "|".join(s.capitalize() for s in SYLLABLES), "|".join(SYLLABLES)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(f"[{PUNCTUATION}]"), behavior="isolated"),
            pre_tokenizers.Split(Regex(f"{MARK}({first})(?=({second})(?![A-Za-z]))"), behavior="isolated"),
        ]
    )
    inner.decoder = decoders.Metaspace(replacement=MARK, prepend_scheme="always")
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOUNDARY} $A", pair=f"{BOUNDARY} $A $B", special_tokens=[(BOUNDARY, vocab[BOUNDARY])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,
    )
