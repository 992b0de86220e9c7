"""A RouteSAE that the authors' code trained (github.com/swei2001/RouteSAEs), for ``sae.route``.

    python experiments/route_sae/convert.py FILE.pt FOLDER BLOCKS K [sum|mean]

BLOCKS is the number of decoder blocks of the language model; K and the pooling are what the file's name says (``sum_hard_K64_...``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from unlearn.models.route_sae import convert_checkpoint


def main(file: str, folder: str, blocks: str, k: str, pool: str = "sum") -> None:
    """Convert one file."""
    convert_checkpoint(Path(file), Path(folder), n_blocks=int(blocks), k=int(k), pool=pool)


if __name__ == "__main__":
    main(*sys.argv[1:])
