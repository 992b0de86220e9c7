"""Names that must not be told: a keyed hash for each, and texts in which every name is replaced by its hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_GAP = r"(?:[\W_]|%20)+"
"""What may stand between the words of a name: spaces, hyphens, underscores, escapes of an address."""


def keyed_hash(text: str, salt: bytes) -> str:
    """16 hexadecimal digits of HMAC-SHA256 of ``text``, whatever its case and spacing; without the salt nobody can try names out.

    >>> keyed_hash("Ada  Byron", b"salt") == keyed_hash("ada byron", b"salt") != keyed_hash("ada byron", b"pepper")
    True
    """
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hmac.new(salt, normal.encode(), hashlib.sha256).hexdigest()[:16]


class Concealer:
    """Replaces names, and the forms under which texts give them, by hashes.

    Words are matched whole; a name in any case, a single word that is only part of a name as it is written.

    >>> c = Concealer({"Ada Byron": ("Ada Byron", "Byron")}, b"salt")
    >>> token = c.hashes["Ada Byron"]
    >>> c.text("ada_byron; Byron, byronic") == f"entity-{token}; entity-{token}, byronic"
    True
    """

    def __init__(self, names: Mapping[str, Iterable[str]], salt: bytes) -> None:
        """Take names, each with its forms.

        Args:
            names: name -> forms; the name itself need not be among them.
            salt: key of the hashes.
        """
        self._salt = salt
        self.hashes = {name: keyed_hash(name, salt) for name in names}
        forms = {form: name for name, others in names.items() for form in (*others, name) if form.strip()}
        ordered = sorted(forms, key=lambda form: -len(form))
        self._patterns = [(self._pattern(form, name=form == forms[form]), f"entity-{self.hashes[forms[form]]}") for form in ordered]

    @staticmethod
    def _pattern(form: str, *, name: bool) -> re.Pattern[str]:
        words = [re.escape(word) for word in re.split(r"[\W_]+", form) if word] or [re.escape(form.strip())]
        flags = re.IGNORECASE if name or len(words) > 1 else 0
        return re.compile(rf"(?<![^\W_]){_GAP.join(words)}(?![^\W_])", flags)

    def text(self, text: str) -> str:
        """``text`` with every name replaced."""
        for pattern, token in self._patterns:
            text = pattern.sub(token, text)
        return text

    def value(self, value: Any) -> Any:
        """A nested value with every name in its texts and keys replaced."""
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def key(self, text: str) -> str:
        """``keyed_hash`` of ``text`` with the salt of the names."""
        return keyed_hash(text, self._salt)

    def holds(self, text: str) -> bool:
        """Whether a name, or a form of one, stands in ``text``."""
        return any(pattern.search(text) for pattern, _ in self._patterns)

    def holds_name(self, text: str) -> bool:
        """Whether a name of several words stands in ``text``; single words may be in any vocabulary."""
        return any(_GAP in pattern.pattern and pattern.search(text) for pattern, _ in self._patterns)
