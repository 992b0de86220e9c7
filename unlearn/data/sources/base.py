"""The contract of a data source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from unlearn.config.schema import SourceConfig
from unlearn.data.validation import validation
from unlearn.types import Assets, EntityData, PromptFormat


class Source(ABC):
    """Serves the rows of the four streams and of the evaluation sets.

    A plug-in sets ``name`` and ``summary`` as literals and ``Config`` to its dataclass. ``load`` is called once per run on every
    rank and must be deterministic in (config, seed); ``assets`` is called before it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Config: ClassVar[type[SourceConfig]] = SourceConfig

    def __init__(self, config: SourceConfig, *, seed: int, cache: Path) -> None:
        """Keep what is needed; read nothing yet.

        Args:
            config: the ``data`` section, an instance of ``Config``.
            seed: the run's seed.
            cache: folder in which built things may be kept, shared between runs and processes.
        """
        self.config = config
        self.seed = seed
        self.cache = cache

    @property
    def prompt_format(self) -> PromptFormat:
        """How a question becomes text."""
        c = self.config
        return PromptFormat(question=c.question_format, separator=c.answer_separator, end=c.answer_end, append_eos=c.append_eos)

    def assets(self, *, gold: bool = False, progress: bool = True) -> Assets | None:
        """Models that come with the rows, built when they are not in the cache; None where a config must name its own.

        Args:
            gold: whether the model that never saw the forget entities is wanted too.
            progress: whether a progress bar may be shown.
        """
        return None

    def built(self) -> Assets | None:
        """The models of ``assets`` as far as they are in the cache; None where they are not, or the source brings none. Builds nothing."""
        return None

    def where(self) -> str:
        """Public address of its files, for people who have none; empty where they are the user's own or made on the spot."""
        return ""

    def prompts(self) -> Mapping[str, Sequence[str]]:
        """Wordings of the prompt attack in the source's own language, by form or ``form/attribute``; an empty list switches a form off.

        The fields that a wording may hold are listed in ``unlearn.attacks.wordings``, whose English wordings stand for forms not given.
        """
        return {}

    def serve(self) -> EntityData:
        """The rows of ``data.partition``: those of ``load``, or for ``validation`` what is cut out of their training streams for tuning.

        Raises:
            DataError: as ``load``; or the source has too few entities for a validation of its own.
        """
        data = self.load()
        return validation(data, self.seed) if self.config.partition == "validation" else data

    @abstractmethod
    def load(self) -> EntityData:
        """Read the rows of the test.

        Raises:
            DataError: a file is missing or malformed; the message names it and what was expected.
        """
