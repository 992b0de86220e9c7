"""A figure as SVG inside a page: its colours are the page's, and it is as small as its picture allows."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from unlearn.report.style import PALETTE, house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
DROPPED = (f"{SVG}metadata", f"{SVG}style", f"{SVG}title")
_NUMBER = re.compile(r"-?\d*\.?\d+")


def inline_svg(figure: Figure, salt: str) -> str:
    """The figure as an ``<svg>`` element whose colours and font are CSS variables (``--ink``, ``--run-0``, ``--sans``, ...).

    ``salt`` must differ between figures of one page: it keeps their ids apart.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with house_style(), mpl.rc_context({"svg.hashsalt": salt, "svg.id": None}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    root = ET.fromstring(text[text.index("<svg") :])  # noqa: S314  (just written by matplotlib)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    _shorten(root, re.sub(r"\W", "", salt))
    _gather(root)
    text = ET.tostring(root, encoding="unicode").replace("ns0:", "").replace("xmlns:ns0", "xmlns")
    for role, colour in PALETTE.items():
        text = re.sub(colour, f"var(--{role})", text, flags=re.IGNORECASE)
    return text


def _shorten(root: ET.Element, prefix: str) -> None:
    """Ids only where something refers to them, and nothing that a page does not need."""
    used = set(re.findall(r"#([\w.:-]+)", " ".join(_references(root))))
    names = {old: f"{prefix}-{number}" for number, old in enumerate(sorted(used))}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in DROPPED]:
            parent.remove(child)
    for element in root.iter():
        identity, link = element.attrib.pop("id", None), element.attrib.pop(LINK, None)
        if identity in names:
            element.set("id", names[identity])
        if link is not None:
            element.set("href", "#" + names[link[1:]])
        element.attrib.update({key: _short(key, value, names) for key, value in element.attrib.items()})
        if element.get("transform", "").startswith("rotate(0 "):
            del element.attrib["transform"]
        element.text = element.text if element.tag == f"{SVG}text" or (element.text or "").strip() else None
        element.tail = element.tail if (element.tail or "").strip() else None


def _short(key: str, value: str, names: dict[str, str]) -> str:
    """The value of an attribute: two decimals, new ids, the page's font."""
    if key in ("d", "x", "y", "transform", "viewBox", "points"):
        return _rounded(value)
    if key == "clip-path":
        return re.sub(r"#([\w.:-]+)", lambda found: "#" + names[found[1]], value)
    return _style(value) if key == "style" else value


def _references(root: ET.Element) -> Iterator[str]:
    for element in root.iter():
        yield from (value for key, value in element.attrib.items() if key in (LINK, "clip-path"))


def _rounded(value: str) -> str:
    """Two decimals, without zeros at the end and with one space at most between two parts."""

    def short(found: re.Match[str]) -> str:
        text = f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text

    return re.sub(r"\s+", " ", _NUMBER.sub(short, value)).strip()


def _style(value: str) -> str:
    value = re.sub(r"font-family: [^;]*", "font-family: var(--sans)", value)
    value = re.sub(r"font: ([^;]*?px) [^;]*", r"font: \1 var(--sans)", value)
    return re.sub(r"([:;]) ", r"\1", value)


def _gather(element: ET.Element) -> None:
    """Move what all children of a group have in common (style, clipping) to the group; take groups away that say nothing."""
    for child in list(element):
        _gather(child)
    for place, child in reversed(list(enumerate(element))):
        if child.tag == f"{SVG}g" and not child.attrib:
            element.remove(child)
            for inner in reversed(list(child)):
                element.insert(place, inner)
    marks = list(element)
    if element.tag != f"{SVG}g" or len(marks) < 2:
        return
    for key in ("style", "clip-path"):
        values = {child.get(key) for child in marks if child.tag in (f"{SVG}use", f"{SVG}path")} if key not in element.attrib else set()
        alike = len(values) == 1 and None not in values and all(child.tag in (f"{SVG}use", f"{SVG}path", f"{SVG}defs") for child in marks)
        if alike:
            element.set(key, str(values.pop()))
            for child in marks:
                child.attrib.pop(key, None)
