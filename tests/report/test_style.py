import itertools
import re

import pytest

from unlearn.report.style import DARK, DASHES, N_COLOURS, PALETTE, house_style, run_style, save, spread
from unlearn.report.svg import inline_svg


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [PALETTE, DARK], ids=["light", "dark"])
def test_colours_can_be_read_on_their_paper(palette):
    """WCAG 2: 4.5 for text, 3 for large or bold text and marks."""
    paper = palette["paper"]
    for role in ("ink", "muted"):
        assert contrast(palette[role], paper) >= 4.5, role
    for role in palette:
        if role.startswith("run-") or role in ("known", "unknown", "before", "after"):
            assert contrast(palette[role], paper) >= 3.0, role


def test_both_palettes_have_the_same_roles_and_no_colour_stands_for_two():
    assert list(PALETTE) == list(DARK)
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_runs_can_be_told_apart_without_colour():
    styles = [run_style(i) for i in range(N_COLOURS * len(DASHES))]
    assert len({(s["marker"], s["linestyle"]) for s in styles}) == len(styles)


def test_an_inline_figure_follows_the_page():
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(3, 2))
        ax = figure.add_subplot()
        ax.plot([0, 1], [0, 1], color=PALETTE["run-0"])
        ax.set_title("<b>$x$ & </b>")
    svg = inline_svg(figure, "a")
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert "var(--run-0)" in svg
    assert "var(--ink)" in svg
    assert not [colour for colour in PALETTE.values() if colour in svg.lower()]
    assert "&lt;b&gt;$x$ &amp; &lt;/b&gt;" in svg
    assert "<b>" not in svg
    assert "<style" not in svg
    assert not re.search(r"<svg[^>]*\bwidth=", svg)
    assert svg == inline_svg(figure, "a")
    ids = [set(re.findall(r'\bid="([^"]+)"', inline_svg(figure, salt))) for salt in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
        assert target in ids[0]


def test_saved_figures(tmp_path):
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(3, 2))
    png, svg = save(figure, tmp_path / "figures", "x")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def test_spread_keeps_order_distance_and_bounds():
    wished = [0.0, 0.01, 0.02, 0.5, 0.99, 1.0]
    moved = spread(wished, 0.1, 0.0, 1.0)
    assert moved == sorted(moved)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(moved))
    assert moved[0] >= 0.0
    assert moved[-1] <= 1.0
    assert moved[3] == pytest.approx(0.5)
    assert spread([], 1, 0, 1) == []
    crowded = spread([0.5] * 5, 0.5, 0.0, 1.0)
    assert [b - a for a, b in itertools.pairwise(crowded)] == pytest.approx([0.5] * 4)
