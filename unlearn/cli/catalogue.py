"""``unlearn list``: what the registry finds, without importing a plug-in."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from unlearn.cli.console import console
from unlearn.errors import ConfigError, did_you_mean
from unlearn.registry import KINDS, Entry, entries


def show(kind: str | None = None) -> None:
    """Print the plug-ins of one kind (singular or plural), or of all.

    Raises:
        ConfigError: there is no such kind.
    """
    plurals = [f"{k}s" for k in KINDS]
    if kind is not None and kind.removesuffix("s") not in KINDS:
        raise ConfigError(f"list must name one of {', '.join(plurals)}; found {kind!r}.{did_you_mean(kind, plurals)}")
    out = console()
    for number, k in enumerate(KINDS if kind is None else [kind.removesuffix("s")]):
        if number:
            out.print()
        out.print(Text.assemble((f"{k}s", "bold"), (f"  {len(entries(k))}", "dim")))
        out.print(_table(list(entries(k).values())))


def _table(plugins: list[Entry]) -> Table:
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_column(style="cyan", no_wrap=True)
    families = any(plugin.facts.get("family") for plugin in plugins)
    if families:
        table.add_column(style="magenta", no_wrap=True)
    table.add_column(overflow="fold")
    for plugin in plugins:
        table.add_row(Text(f"  {plugin.name}"), *([Text(str(plugin.facts.get("family", "")))] if families else []), _about(plugin))
    return table


def _about(plugin: Entry) -> Text:
    """Summary, what it needs, paper and place, a line each."""
    needs = ", ".join(plugin.facts.get("needs") or ())
    where = "  ".join(str(part) for part in (plugin.facts.get("paper"), plugin.origin) if part)
    lines = [Text(str(plugin.facts.get("summary", "")))]
    lines += [Text(f"needs {needs}", style="dim")] if needs else []
    return Text("\n").join([*lines, Text(where, style="dim")])
