import sys

import pytest
from rich.console import Console

from unlearn.world import progress
from unlearn.world.progress import steps_bar


def test_nothing_is_drawn_where_no_terminal_is(capsys):
    with steps_bar("Building", 3, show=True) as advance:
        advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("show", "drawn"), [(True, True), (False, False)])
def test_a_terminal_shows_the_title_if_asked_to(monkeypatch, capsys, show, drawn):
    monkeypatch.setattr(progress, "Console", lambda file: Console(file=sys.stderr, force_terminal=True, width=100))
    with steps_bar("Building", 3, show=show) as advance:
        for _ in range(3):
            advance()
    assert ("Building" in capsys.readouterr().err) is drawn
