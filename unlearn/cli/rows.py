"""``unlearn collect`` and ``unlearn label``: the commands that make rows and labels for a data source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG.yaml | KEY=VALUE",
        help="YAML files, a later one wins, and keys to override, such as seed=1 or optim.lr=1e-4.",
        show_default=False,
    ),
]


def collect_command(
    maker: Annotated[str, typer.Argument(metavar="MAKER", help="How: `unlearn list makers` shows them.", show_default=False)],
    words: Words = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON-lines file to write.")] = Path("rows.jsonl"),
    entities: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="About whom; may be repeated, may be a file of names. Left out: the source's targets."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    help_config: Annotated[bool, typer.Option("--help-config", help="Explain every key of the maker.")] = False,
) -> None:
    """Have the model write the forget set itself: a file of rows that the jsonl source reads."""
    from unlearn.cli import collect

    if help_config:
        collect.explain(maker)
    else:
        collect.start(maker, words or [], out, entities or [], force)


def label_command(
    words: Words = None,
    entities: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Facts to ask: JSON lines, PopQA's records or a Wikidata file. Left out: the source's."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Labels (JSON); an unfinished file is gone on with.")] = Path("labels.json"),
    samples: Annotated[int, typer.Option(metavar="N", help="Answers drawn for each question.")] = 10,
    hits: Annotated[int, typer.Option(metavar="N", help="Right answers among them that make an attribute known.")] = 3,
    known: Annotated[int, typer.Option(metavar="N", help="Known attributes that make an entity known; none makes it unknown.")] = 2,
    temperature: Annotated[float, typer.Option(metavar="X", help="Temperature of the answers.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Longest answer in tokens.")] = 32,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that was made in another way.")] = False,
) -> None:
    """Ask the model which entities it knows, and keep the labels for a data source."""
    from unlearn.cli import label
    from unlearn.data.labels import Rule

    rule = Rule(samples=samples, hits=hits, known=known, temperature=temperature, max_new_tokens=max_new_tokens)
    label.start(words or [], entities, out, rule, force)
