"""``unlearn chat``: questions to a model before and after, side by side."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from unlearn.cli.console import console, note
from unlearn.errors import ConfigError, UnlearnError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unlearn.data.asking import Question
    from unlearn.talk import Conversation, Reply, Side

STYLES = {"known": "green", "unknown": "magenta"}
HELP = (
    ("a question", "is asked in the form that the model was trained on"),
    ("[Some Name]", "marks a name that the data does not have"),
    ("1, 2, ...", "asks an example"),
    ("more", "shows other examples"),
    ("?", "shows this"),
    ("quit, Ctrl-D", "leaves"),
)
BATCH = 32
"""Questions of a file that are asked together."""


def chat_command(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR_OR_RUN", help="A finished run, an exported folder, any model's folder or hub id.", show_default=False),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG.yaml | KEY=VALUE", help="For a model that is no run: sections data and sae.", show_default=False),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Ask the questions in FILE, one a line, and leave.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --prompts: one JSON object a line.")] = False,
    base: Annotated[str | None, typer.Option(metavar="DIR_OR_HUB_ID", help="The original model; a run knows it.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="Longest answer in tokens.")] = None,
) -> None:
    """Ask a model before and after unlearning, side by side, and see whether its latents take the entity for a known one."""
    from unlearn.cli.arguments import split
    from unlearn.talk import open_conversation

    if as_json and prompts is None:
        raise ConfigError("--json needs --prompts FILE; found none.")
    lines = None if prompts is None else _lines(prompts)
    files, overrides = split(["", *(words or [])])
    try:
        talk = open_conversation(model, base, [file for file in files if file], overrides, max_new_tokens)
        if lines is None:
            Session(talk, model).run()
        else:
            ask_all(talk, lines, as_json)
    except KeyboardInterrupt:
        note("")
        raise typer.Exit(0 if lines is None else 130) from None


def _lines(path: Path) -> list[str]:
    """Lines of a file that are neither blank nor comments."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts must be a readable UTF-8 text file; found {error}.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ConfigError(f"--prompts must hold questions, one a line; found none in {path}.")
    return lines


def ask_all(talk: Conversation, lines: list[str], as_json: bool) -> None:
    """Ask every line; a table at the end, or a JSON object for each."""
    from unlearn.tracking.files import dump_json

    _caveats(talk)
    replies: list[Reply] = []
    for first in range(0, len(lines), BATCH):
        part = talk.ask([talk.read(line) for line in lines[first : first + BATCH]])
        if as_json:
            for reply in part:
                sys.stdout.write(dump_json(_record(reply), indent=None) + "\n")
            sys.stdout.flush()
        replies += part
    if not as_json:
        console().print(_table(talk, replies))


def _record(reply: Reply) -> dict[str, Any]:
    """A reply as plain values."""

    def side(of: Side | None) -> dict[str, Any] | None:
        return None if of is None else {"answer": of.answer, "verdict": of.verdict or None, "p_unknown": of.p_unknown}

    q = reply.question
    about = {"question": q.text, "entity": q.name or None, "data": q.group or None, "reference": q.reference or None}
    return {**about, "before": side(reply.before), "after": side(reply.after)}


def _table(talk: Conversation, replies: list[Reply]) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("question", ratio=3)
    heads = ["before", "after"] if talk.before is not None else ["answer"]
    for head in heads:
        table.add_column(head, ratio=2)
        if talk.meter is not None:
            table.add_column("P(unknown)", justify="right")
    for reply in replies:
        cells: list[Text] = []
        for side in (reply.before, reply.after):
            if side is not None:
                cells += [Text(side.answer or "(nothing)"), *([_chance(side)] if talk.meter is not None else [])]
        table.add_row(_marked(reply.question), *cells)
    return table


def _chance(side: Side) -> Text:
    return Text("" if side.p_unknown is None else f"{side.p_unknown:.2f}", STYLES.get(side.verdict, ""))


def _marked(question: Question) -> Text:
    """The question with its entity in bold."""
    text = Text(question.text)
    if question.name:
        text.highlight_words([question.name], "bold")
    return text


def _caveats(talk: Conversation) -> None:
    if talk.alone:
        note(f"only the model itself answers: {talk.alone}")
    elif talk.before is None:
        note("only the model itself answers; --base names the one that it was made from")
    if talk.meter is not None and talk.auc is not None:
        note(f"verdicts: a probe of the original model; AUC {talk.auc:.2f} on names it was not fitted on, so it errs now and then")
    if talk.silent:
        note(f"no verdict on known and unknown: {talk.silent}")


class Session:
    """A conversation in the terminal."""

    def __init__(self, talk: Conversation, name: str) -> None:
        self.talk, self.name = talk, name
        self.out = console()
        self.round = 0
        self.offered: list[Question] = []

    def run(self) -> None:
        """Greet, then answer until the input ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (history and editing for input())
        self._greet()
        while True:
            try:
                typed = input("\n› " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                self.out.print()
                return
            if typed.lower() in ("quit", "exit", ":q"):
                return
            if typed:
                self._take(typed)

    def _greet(self) -> None:
        what = f" after {self.talk.method}" if self.talk.method else ""
        beside = "before and" if self.talk.before is not None else "model"
        self.out.print(Text.assemble((self.name, "bold"), f": {beside}{what or ' after'}" if self.talk.before is not None else ""))
        _caveats(self.talk)
        if self.talk.data is not None:
            self._examples()
        self.out.print(Text("Ask something; a number takes an example, [brackets] mark a name of your own, ? helps, Ctrl-D leaves.", "dim"))

    def _examples(self) -> None:
        from unlearn.data.asking import examples

        if self.talk.data is None:
            note("there are no examples: nothing is known of the data")
            return
        self.offered = examples(self.talk.data, self.round)
        self.round += 1
        self.out.print()
        for number, question in enumerate(self.offered, 1):
            line = Text.assemble(("  " + str(number) + "  ", "cyan"), _marked(question), (f"  {question.group}", "dim"))
            self.out.print(line, soft_wrap=True)
        self.out.print()

    def _take(self, typed: str) -> None:
        """Do what was typed."""
        if typed in ("?", "help", "/help"):
            for word, meaning in HELP:
                self.out.print(Text.assemble((f"  {word:<14}", "cyan"), meaning))
        elif typed.lower() in ("more", "examples"):
            self._examples()
        elif typed.isdigit() and self.offered:
            number = int(typed)
            if 1 <= number <= len(self.offered):
                self._answer(self.offered[number - 1])
            else:
                note(f"there are examples 1 to {len(self.offered)}")
        else:
            self._answer(self.talk.read(typed))

    def _answer(self, question: Question) -> None:
        try:
            with self.out.status("..."):
                reply = self.talk.ask([question])[0]
        except UnlearnError as error:
            note(Text(str(error), "yellow"))
            return
        self.out.print(self._heading(question))
        self.out.print(panels(reply))
        if strange := self.talk.strange_words(question):
            note(f"the model has no word for: {', '.join(strange)}")
        if self.talk.meter is not None and not question.name:
            note("no name of the data is in it, so no verdict; mark one with [brackets]")

    def _heading(self, question: Question) -> Text:
        told = [question.group and f"{question.name}: {question.group}", question.reference and f"in the data: {question.reference}"]
        return Text.assemble(_marked(question), (f"   {'; '.join(filter(None, told))}" if any(told) else "", "dim"))


def panels(reply: Reply) -> RenderableType:
    """What both models say, side by side."""
    from rich.table import Table

    sides = [("before", reply.before), ("after", reply.after)] if reply.before is not None else [("answer", reply.after)]
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for _ in sides:
        grid.add_column(ratio=1)
    grid.add_row(*(_panel(title, side, reply.question.name) for title, side in sides if side is not None))
    return grid


def _panel(title: str, side: Side, name: str) -> RenderableType:
    from rich.panel import Panel

    lines = [Text(side.answer, "bold") if side.answer else Text("(nothing)", "dim")]
    if side.p_unknown is not None:
        verdict = Text.assemble((f"{name}: ", "dim"), (side.verdict, STYLES[side.verdict]), (f"   P(unknown) {side.p_unknown:.2f}", "dim"))
        lines += [Text(""), verdict]
    return Panel(Text("\n").join(lines), title=title, title_align="left", border_style=STYLES.get(side.verdict, "dim"))
