"""``unlearn config``: show, compare and explain configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from unlearn.cli.arguments import load, split
from unlearn.cli.console import console
from unlearn.config.document import FieldDoc, describe, fields_of
from unlearn.config.fingerprint import diff, to_yaml
from unlearn.config.fingerprint import fingerprint as fingerprint_of
from unlearn.config.layers import read_file
from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import RunConfig
from unlearn.errors import ConfigError
from unlearn.registry import entries

config_app = typer.Typer(help="Show, compare and explain configurations.", no_args_is_help=True)

SHORT = {"method": "method.name", "source": "data.source"}
KIND = {"method": "method", "data": "source"}
"""Kind of plug-in that types a section."""


@config_app.command("show")
def show_command(
    words: Annotated[list[str], typer.Argument(metavar="CONFIG.yaml | KEY=VALUE", help="As for run.", show_default=False)],
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Of a study, only this run; may be repeated, may hold *.")] = None,
) -> None:
    """Print every key with its value, defaults included, as YAML."""
    documents = [f"# {run.name}, fingerprint {fingerprint_of(run)}\n{to_yaml(run)}" for run in load(words, only or ())]
    text = "---\n".join(documents)
    out = console()
    if out.is_terminal:
        out.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default"))
    else:
        typer.echo(text, nl=False)


@config_app.command("diff")
def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A configuration file or a run folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Print the keys in which two configurations differ."""
    rows = diff(_settings(a), _settings(b))
    if not rows:
        console().print(Text(f"{a} and {b} do not differ."))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("key", style="cyan", no_wrap=True)
    for name, style in ((a, "red"), (b, "green")):
        table.add_column(Text(name, overflow="fold"), style=style, overflow="fold")
    for key, left, right in rows:
        table.add_row(Text(key), *(Text("null" if value is None else str(value)) for value in (left, right)))
    console().print(table)


def _settings(path: str) -> RunConfig | Mapping[str, Any]:
    """A file with its defaults filled in, or what a run folder recorded, which holds them already."""
    if Path(path).is_dir():
        return read_file(Path(path) / "config.yaml").tree
    runs = load([path])
    if len(runs) > 1:
        raise ConfigError(f"{path}: expected one run; found a study of {len(runs)}. Compare two of its run folders instead.")
    return runs[0]


@config_app.command("help")
def help_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[method=NAME] [source=NAME]",
            help="Plug-ins whose keys to explain too; or a configuration that names them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Explain every key: its type, its default and what it means."""
    chosen = _named(words or [])
    schemas = plugin_schemas()
    sections = {section: schemas[section](name) for section, name in chosen.items()}
    groups: dict[str, list[FieldDoc]] = {}
    for row in describe(RunConfig, sections):
        groups.setdefault(row.key.split(".", 1)[0] if "." in row.key else "", []).append(row)
    out = console()
    out.print(Text("Keys of a run. A YAML file sets what differs from the defaults; KEY=VALUE on the command line wins over it."))
    kinds = {info.name: info for info in fields_of(RunConfig)}
    for name, rows in groups.items():
        section = sections.get(name) or (kinds[name].section if name else None)
        plugin = f" ({chosen[name]})" if name in chosen else ""
        title = Text.assemble((f"{name or 'run'}{plugin}", "bold"), ("  " + (_first_line(section) if section else "one run"), "dim"))
        out.print()
        out.print(title)
        out.print(_keys(rows))
        if name in KIND and name not in sections:
            kind = KIND[name]
            out.print(Text(f"  {kind}={'|'.join(entries(kind)) or 'NAME'} adds the keys of one of them.", style="dim"))


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n", 1)[0]


def _keys(rows: Sequence[FieldDoc]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="magenta", no_wrap=True)
    table.add_column(style="green", overflow="fold", max_width=16)
    table.add_column(overflow="fold", ratio=1)
    for row in rows:
        table.add_row(Text(f"  {row.key}"), Text(row.type), Text(row.default), Text(row.text))
    return table


def _named(words: Sequence[str]) -> dict[str, str]:
    """Names of the plug-ins that ``words`` choose, by section."""
    files, settings = split(words)
    if files:
        run = load(words)[0]
        return {"data": run.data.source, "method": run.method.name}
    chosen: dict[str, str] = {}
    for word in settings:
        key, equals, name = word.partition("=")
        full = SHORT.get(key, key)
        if not equals or not name or full not in SHORT.values():
            raise ConfigError(f"--help-config: expected method=NAME or source=NAME; found {word!r}.")
        chosen[full.split(".", 1)[0]] = name
    return chosen
