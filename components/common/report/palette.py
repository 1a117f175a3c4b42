"""Colours that people with any kind of colour vision tell apart, for lines, classes and heat.

Lines: the palette of Okabe and Ito (2008, "Color Universal Design"), without its yellow, which is too light on white.
Classes: the same seven chromatic colours, then colours by the rule of Glasbey et al. (2007, "Colour displays for
categorical images"): each the one farthest from white and from all before it. The distance of two colours is the
smallest CIEDE2000 over normal vision and the simulations of protanopia, deuteranopia and tritanopia by Machado et al.
(2009); the candidates are the 16 x 16 x 16 grid of sRGB with L* between 15 and 93. So any first few are the best apart.
A line is told by its marker or its dashes and a name as well, never by its colour alone.
"""

from __future__ import annotations

import numpy as np

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, YELLOW = "#CC79A7", "#56B4E9", "#000000", "#F0E442"

LINES = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
"""Colours of lines on white, as CSS writes them."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Matplotlib's names of the markers of the same lines: one more than colours, so that a pair comes back after 56."""
GREYS = ("#374151", "#6b7280", "#9ca3af")
"""Of what stands for comparison: axes, baselines, bars of untrained networks."""

CLASSES = np.array(
    [
        (0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66),
        (51, 34, 34), (0, 34, 102), (119, 51, 0), (102, 85, 102), (187, 221, 170), (0, 0, 221), (68, 102, 68),
        (34, 238, 255), (136, 119, 255), (187, 187, 187), (51, 51, 68), (51, 68, 136), (136, 187, 119),
    ],
    np.uint8,
)  # fmt: skip
"""(20, 3) colours of classes; with more classes they repeat, and their names have to tell."""

RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
"""Of what is right and what is wrong (frames of neighbours): the blue and the vermillion, beside a sign or a word."""


def heat_colours(count: int = 256) -> np.ndarray:
    """(``count``, 3) uint8 of a map from dark violet over green to yellow, even for every kind of colour vision.

    Viridis (van der Walt and Smith 2015), as matplotlib holds it; its lightness rises all the way.
    """
    from matplotlib import colormaps

    return np.rint(255 * colormaps["viridis"](np.linspace(0, 1, count))[:, :3]).astype(np.uint8)
