"""Are there enough known and unknown names for the tests of a run to see anything?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unlearn.cli.doctor import Finding
from unlearn.functional.power import detectable_auc, detectable_ks, entities_for_auc, smallest_p

if TYPE_CHECKING:
    from unlearn.cli.pieces import Pieces
    from unlearn.types import Row

WANTED_AUC = 0.85
"""A classifier that tells the sides apart this well should be found in four of five cases."""
FEW_ANCHORS = 20
"""Below that many names a side's share of firing latents is known to no better than about a fifth."""


def entities(rows: Sequence[Row]) -> int:
    """Number of different names that rows mention."""
    return len({row.entity for row in rows if row.mentions})


def power(pieces: Pieces) -> Iterator[Finding]:
    """What the two-sample tests can see: targets against held-out unknown names, and the anchors that latents are chosen by."""
    latent, streams = pieces.data.latent, pieces.data.streams
    n, m = entities(latent["forget"]), entities(latent["unknown"])
    auc = detectable_auc(n, m)
    facts = {
        "targets": n, "unknown_heldout": m, "detectable_auc": None if math.isinf(auc) else auc,
        "smallest_mmd_p": smallest_p(n, m, pieces.run.evaluation.permutations) if n and m else None,
    }  # fmt: skip
    if min(n, m) < 2:
        text = f"{n} targets and {m} held-out unknown names: a classifier test needs two of each"
        yield Finding("fail", "power", text, _more(n, pieces), facts)
    else:
        seen = f"tells an AUC of {auc:.2f} or more from 0.5" if math.isfinite(auc) else "tells no AUC from 0.5, not even 1"
        text = (
            f"{n} targets against {m} held-out unknown names: C2ST {seen} (4 of 5 times, at 5 %); the smallest p-value of the MMD test is "
            f"{facts['smallest_mmd_p']:.2g}"
        )
        enough = auc <= WANTED_AUC
        yield Finding("ok" if enough else "warn", "power", text, "" if enough else _more(n, pieces), facts)
    rows = len(pieces.data.evaluation.get("forget", ()))
    if pieces.run.evaluation.gold is not None and rows:
        distance = detectable_ks(rows, rows)
        yield Finding(
            "ok" if math.isfinite(distance) else "warn", "power",
            f"forget quality compares {rows} truth ratios with the gold model's: KS finds a distance of {distance:.2f} or more",
            "" if math.isfinite(distance) else "give more forget rows", {"ks_rows": rows, "detectable_ks": distance},
        )  # fmt: skip
    known, unknown = entities(streams["known"]), entities(streams["unknown"])
    noise = 1.96 * math.sqrt(0.25 / max(known, 1) + 0.25 / max(unknown, 1))
    text = f"{known} known and {unknown} unknown anchor names: a latent's separation score is noise up to {noise:.2f}"
    few = min(known, unknown) < FEW_ANCHORS
    remedy = f"give {FEW_ANCHORS} names or more on either side; `unlearn doctor --label-entities` sorts names by what the model knows"
    yield Finding(
        "warn" if few else "ok", "anchors", text, remedy if few else "", {"known": known, "unknown": unknown, "score_noise": noise}
    )


def _more(n: int, pieces: Pieces) -> str:
    """How many more names would do."""
    needed = entities_for_auc(WANTED_AUC, n) if n else None
    if needed is not None:
        return f"hold out {needed} unknown names or more, with which an AUC of {WANTED_AUC} would be found"
    return f"forget more entities: with {n} no number of unknown names is enough to find an AUC of {WANTED_AUC}"
