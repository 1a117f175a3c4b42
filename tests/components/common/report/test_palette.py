"""The palettes, seen by every kind of colour vision: Machado et al. (2009), severity 1, and CIEDE2000."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

import components.common.report
from components.common.report.palette import CLASSES, LINES, MARKERS, RIGHT, WRONG, YELLOW, heat_colours

VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""Matrices on linear RGB, as published."""
APART = 10.0
"""CIEDE2000; colours side by side differ for anybody from about 2 on."""
TABLEAU = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"]


def rgb(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def lab(colours: np.ndarray, vision: str) -> np.ndarray:
    """(N, 3) CIELAB of sRGB ``colours`` (N, 3, 0 .. 255) as somebody with that vision sees them."""
    signal = np.asarray(colours, np.float64) / 255
    linear = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    return rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]


def least_distance(colours: np.ndarray, vision: str) -> float:
    seen = lab(colours, vision)
    first, second = np.triu_indices(len(seen), 1)
    return float(deltaE_ciede2000(seen[first], seen[second]).min())


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart(vision: str) -> None:
    lines = np.array([rgb(colour) for colour in LINES])
    assert least_distance(lines, vision) > APART
    assert least_distance(np.array([*CLASSES, (255, 255, 255)]), vision) > APART, "white is 'not scored'"
    assert least_distance(np.array([RIGHT, WRONG]), vision) > 30


def test_the_simulation_finds_a_palette_that_is_not_safe() -> None:
    """Grey is grey to all; what Tableau's ten are to people with normal vision, they are not to others."""
    grey = np.array([[119, 119, 119]])
    for vision in VISION:
        np.testing.assert_allclose(lab(grey, vision), lab(grey, "normal"), atol=0.05)
    tableau = np.array([rgb(colour) for colour in TABLEAU])
    assert least_distance(tableau, "normal") > APART
    assert least_distance(tableau, "deuteranopia") < 5 and least_distance(tableau, "protanopia") < 5


def test_lines_differ_by_more_than_colour() -> None:
    assert len(set(MARKERS)) == len(MARKERS)
    pairs = [(LINES[index % len(LINES)], MARKERS[index % len(MARKERS)]) for index in range(40)]
    assert len(set(pairs)) == 40


@pytest.mark.parametrize("vision", VISION)
def test_heat_grows_lighter_evenly(vision: str) -> None:
    lightness = lab(heat_colours(32), vision)[:, 0]
    assert (np.diff(lightness) > 0).all() and lightness[-1] - lightness[0] > 60


def test_the_page_has_the_same_colours() -> None:
    css = (Path(components.common.report.__file__).parent / "page.css").read_text()
    light = css[: css.index("@media")]
    named = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    found = [named["after"], *re.findall(r"\.c[1-57] \{ background: (#[0-9a-f]{6})", css), named["grey"]]
    assert [colour.upper() for colour in found[:-1]] == [*(each.upper() for each in LINES[:6]), YELLOW]
    colours = np.array([rgb(colour) for colour in found])
    for vision in VISION:
        assert least_distance(colours, vision) > APART
        assert least_distance(np.array([rgb(named["before"]), rgb(named["after"])]), vision) > 20
