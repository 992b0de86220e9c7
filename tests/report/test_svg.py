"""A figure inside a page: as small as its picture allows, and the same picture."""

import re
from xml.etree import ElementTree as ET

import numpy as np
from matplotlib.figure import Figure

from unlearn.report.style import PALETTE, house_style
from unlearn.report.svg import SVG, inline_svg


def cloud(n, salt="a"):
    rng = np.random.default_rng(0)
    with house_style():
        figure = Figure(figsize=(3, 2))
        ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        ax.scatter(rng.normal(size=n), rng.normal(size=n), 16, color=PALETTE["known"])
        ax.plot([-1, 0.123456, 1], [-0.000123, 0, 1], color=PALETTE["run-0"])
        ax.text(0, 0, "0.123456 & -0.000123 <x>")
    return inline_svg(figure, salt)


def test_a_point_costs_few_characters():
    cost = (len(cloud(300)) - len(cloud(100))) / 200
    assert cost < 60
    assert len(re.findall(r"<use [^>]*\bx=", cloud(300))) >= 300


def test_places_are_rounded_and_words_are_not():
    text = cloud(5)
    assert "0.123456 &amp; -0.000123 &lt;x&gt;" in text
    places = re.sub(r"<text.*?</text>", "", text)
    assert not re.search(r"\d\.\d{3,}", re.sub(r'style="[^"]*"', "", places))


def test_signs_survive_the_rounding():
    with house_style():
        figure = Figure(figsize=(2, 2))
        figure.add_axes((0, 0, 1, 1)).plot([0], [0], "o")
    drawn = inline_svg(figure, "a")
    marker = re.search(r'<path d="(M 0 [^"]*C[^"]*)"', drawn)
    numbers = [float(number) for number in re.findall(r"-?\d*\.?\d+", marker[1])]
    assert min(numbers) == -max(numbers)  # a circle around the origin


def test_everything_that_is_referred_to_is_there_once():
    text = cloud(20, "my salt/1")
    root = ET.fromstring(text)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used == set(ids)
    assert all(identity.startswith("mysalt1-") for identity in ids)
    assert not {id for id in ids if id in cloud(20, "other")}
    assert root.tag == f"{SVG}svg"
    assert "font-family:var(--sans)" in text
