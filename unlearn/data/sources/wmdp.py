"""WMDP (Li et al., 2403.03218): hazardous knowledge in biology, chemistry and computer security, four-choice questions and corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unlearn.config.checks import check, one_of
from unlearn.data.sources.benchmark import PART, Benchmark, Parts
from unlearn.data.sources.choices import ChoiceConfig, choice_problem, choice_rows, with_terms
from unlearn.data.sources.mmlu import HUB as MMLU_HUB
from unlearn.data.sources.mmlu import read_mmlu
from unlearn.data.sources.pieces import text_rows, with_stem_terms
from unlearn.data.sources.tables import Tables, fields
from unlearn.types import EntityData, Row

DOMAINS: tuple[str, ...] = ("bio", "chem", "cyber")
CORPORA = "cais/wmdp-corpora"
BIO_FORGET = "cais/wmdp-bio-forget-corpus"

_SUBJECT = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
_FILES = {
    ("bio", "forget"): ("bio-forget-corpus", "bio_remove_dataset.jsonl", "bio_forget_dataset.jsonl"),
    ("bio", "retain"): ("bio-retain-corpus", "bio_retain_dataset.jsonl"),
    ("cyber", "forget"): ("cyber-forget-corpus", "cyber-forget-corpus.jsonl"),
    ("cyber", "retain"): ("cyber-retain-corpus", "cyber-retain-corpus.jsonl"),
}


@dataclass(frozen=True, kw_only=True)
class WmdpConfig(ChoiceConfig):
    """WMDP."""

    domains: list[str] = field(default_factory=lambda: ["bio", "cyber"])
    """what to forget: any of bio, chem, cyber"""
    train: str = "corpus"
    """what is trained on: corpus (chem has none, bio's forget part is handed out on request) or questions (half of them)"""
    texts: int | None = 1000
    """first texts of each corpus that are read, >= 1; null reads all"""
    text_words: int = 150
    """words of a piece of a text, > stem_words"""
    stem_words: int = 30
    """words at the beginning of a piece that are given and not learnt, >= 1"""
    mmlu_root: str | None = None
    """folder with MMLU's files, which are the questions to be kept; null looks in root, or downloads cais/mmlu"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.domains) and len(set(self.domains)) == len(self.domains), "data.domains", "different domains", self.domains)
        for name in self.domains:
            one_of(name, DOMAINS, "data.domains")
        one_of(self.train, ("corpus", "questions"), "data.train")
        check(self.train == "questions" or "chem" not in self.domains, "data.train", "questions with chem, which has no corpus", self.train)
        check(self.texts is None or self.texts >= 1, "data.texts", ">= 1", self.texts)
        check(self.stem_words >= 1, "data.stem_words", ">= 1", self.stem_words)
        check(self.text_words > self.stem_words, "data.text_words", "> data.stem_words", self.text_words)


class WmdpSource(Benchmark):
    """Corpora (or half of the questions) of the domains to forget; measured on their questions, and on MMLU's as what is to be kept.

    ``forget`` are the questions of all chosen domains, and each domain has its own set ``wmdp_<domain>`` where there are several. A
    question is about its most telling term, a piece about its text, and it names the most telling term of its stem; nothing to be kept
    names these terms. Known anchors are MMLU questions, unknown
    ones MMLU questions about words made of the halves of real terms.
    """

    name = "wmdp"
    summary = "WMDP: hazardous knowledge in biology, chemistry, computer security; corpora and four-choice questions"
    title = "WMDP"
    hub = "cais/wmdp"
    Config = WmdpConfig
    config: WmdpConfig

    def questions(self, others: Sequence[str]) -> tuple[dict[str, list[Row]], int]:
        """Rows of the chosen domains, and how many were too long.

        Args:
            others: texts that must not name their terms.
        """
        found, long = {}, 0
        for place, domain in enumerate(self.config.domains):
            patterns = (f"{domain}_questions.json", f"wmdp-mcqs/{domain}_questions.json", f"wmdp-{domain}/test-*.parquet")
            records = self.tables.read(patterns, f"wmdp-{domain}", "test", choice_problem)
            listed = [{**record, "subject": _SUBJECT[domain]} for record in records]
            rows, asked, cut = choice_rows(listed, place * PART, self.config.header, self.config.max_words)
            found[domain] = with_terms(rows, asked, others)
            long += cut
        return found, long

    def corpus(self, domain: str, part: str, first_id: int) -> list[Row]:
        """Pieces of a corpus, at most ``train_rows`` of them, drawn at random.

        Raises:
            DataError: it is missing.
        """
        config, *files = _FILES[domain, part]
        gated = (domain, part) == ("bio", "forget")
        hub = BIO_FORGET if gated else CORPORA
        origin = f"https://huggingface.co/datasets/{hub}" + (", on request" if gated else "")
        tables = Tables(self.title, self.config.root, hub, self.config.revision, origin)
        patterns = (*files, f"{config}.jsonl", f"{config}/train-*.parquet")
        records = tables.read(patterns, None if gated else config, "train", fields("text"), hub=hub)
        texts = [str(record["text"]) for record in records[: self.config.texts]]
        rows = text_rows(texts, first_id, f"{domain} {part} text", self.config.text_words, self.config.stem_words)
        return list(self.cut(rows, self.config.train_rows, f"{domain} {part}"))

    def mmlu(self) -> tuple[list[Row], dict[int, str], int]:
        """Questions to be kept."""
        c = self.config
        tables = Tables("MMLU", c.mmlu_root or c.root, MMLU_HUB, None)
        return choice_rows(read_mmlu(tables, "test"), 10 * PART, c.header, c.max_words)

    def load(self) -> EntityData:
        """Read questions and corpora and divide them."""
        c = self.config
        kept, asked, long = self.mmlu()
        retain_texts = [
            row for i, domain in enumerate(c.domains) if c.train == "corpus" for row in self.corpus(domain, "retain", (20 + i) * PART)
        ]
        others = [row.prompt for row in (*kept, *retain_texts)]
        questions, cut = self.questions(others)
        everything = [row for rows in questions.values() for row in rows]
        kept = with_terms(kept, asked)
        notes = {"domains": ", ".join(c.domains), "questions left out because they are too long": str(long + cut), "trained on": c.train}
        evaluation = {"forget": everything} | ({f"wmdp_{name}": rows for name, rows in questions.items()} if len(questions) > 1 else {})
        if c.train == "corpus":
            texts = [row for i, domain in enumerate(c.domains) for row in self.corpus(domain, "forget", (30 + i) * PART)]
            forget, retain = with_stem_terms(texts, others, own=False), retain_texts
            evaluation["retain"] = kept
        else:
            away = self.hold_out(everything, 0.5, "the forget questions")
            forget, retain = [row for row in everything if row.entity not in away], kept
            evaluation["forget_paraphrased"] = [row for row in everything if row.entity in away]
            notes["forget_paraphrased"] = "the questions that are not trained on"
        return self.build(Parts(forget=forget, retain=retain, anchors=kept, evaluation=evaluation, notes=notes))
