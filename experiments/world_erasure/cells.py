"""Which settings are measured on which worlds and forget sets, and by which attacks."""

from __future__ import annotations

from typing import NamedTuple

TUNED = (0, 0)
"""World seed and forget set on which every choice was made."""
FRESH = tuple((seed, forget_set) for forget_set in (0, 1, 2) for seed in (1, 2, 3))
MAIN = ("sae_erase", "gold")
BESIDE = ("none", "grad_diff", "tar", "sae_distribution")
ABLATIONS = ("no_sae", "no_output", "no_hidden", "no_share", "no_meta", "cap", "no_patch", "no_noise", "no_replay", "no_virtual", "every2")
IDEAS = ("patch_one", "share_more", "within", "lessons", "readout")
"""The setting before the last choice; a weight against what is left, terms that are off in ``sae_erase``, each by itself."""
SCALE = ("targets1", "targets1_gold", "targets30", "targets30_long", "targets30_gold", "large", "large_gold")
"""1 and 30 targets of 100, the latter also with three times the steps; a world twice as large with a model of six blocks."""
SEQUENCE = ("sequence", "sequence_no_replay")
"""Three requests, one after the other; measured on all of their targets in the end."""
THIRTY = ("targets30_long", *SEQUENCE)
"""Settings beside ``targets30`` that forget the same people."""
FEW = ("relearn", "relearn_lora", "patch", "steer", "quantise")
MORE = (*FEW, "relearn_half", "relearn_benign", "relearn_statements", "probe", "lens")


class Cell(NamedTuple):
    """A setting on one world and forget set."""

    setting: str
    seed: int
    forget_set: int

    @property
    def label(self) -> str:
        """Name of its file."""
        return f"{self.setting}_seed{self.seed}_set{self.forget_set}"

    @property
    def place(self) -> tuple[int, int]:
        """World and forget set."""
        return self.seed, self.forget_set

    @property
    def gold(self) -> Cell:
        """The gold model of the same world and targets."""
        setting = "targets30" if self.setting in THIRTY else self.setting.removesuffix("_gold")
        return self._replace(setting=f"{setting}_gold" if f"{setting}_gold" in SCALE else "gold")

    @property
    def suite(self) -> str:
        """Attacks that it meets."""
        if self.setting in MAIN:
            return "full"
        return ",".join(FEW if self.setting in (*BESIDE, *ABLATIONS) else MORE)


CELLS = [
    *(Cell(setting, *TUNED) for setting in (*MAIN, *BESIDE)),
    *(Cell(setting, *place) for place in FRESH for setting in MAIN),
    *(Cell(setting, *TUNED) for setting in (*ABLATIONS, *IDEAS)),
    *(Cell(setting, *place) for place in FRESH for setting in ("no_replay", "lean")),
    *(Cell(setting, seed, 0) for seed in (1, 2, 3) for setting in (*SCALE, *SEQUENCE)),
]
"""Every cell, in the order in which they are made."""

PARTS = {
    "fresh": [cell for cell in CELLS if cell.setting in (*MAIN, "no_replay", "lean") and cell.place != TUNED],
    "tuned": [cell for cell in CELLS if cell.place == TUNED],
    "scale": [cell for cell in CELLS if cell.setting in (*SCALE, *SEQUENCE)],
}
"""The tables."""
