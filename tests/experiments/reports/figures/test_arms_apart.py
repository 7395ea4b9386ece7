"""Arms are told apart in grey and by colour-blind readers: by colour where it is unlike, else by the marker."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments.reports.figures.colours import APART, lab, lab_of_light, linear, unlike
from experiments.reports.figures.looks import COLOURS, LINES, MARKERS, looks
from experiments.reports.figures.pictures import AGREEMENT

# Machado, Oliveira & Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# table 1, severity 1.0, of linear light. Grey is the luminance of sRGB.
SEEN = {
    "as it is": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}
SMALLEST = {
    "as it is": 26.4,
    "protanopia": 20.7,
    "deuteranopia": 17.9,
    "tritanopia": 16.1,
    "grey": 0.8,
}  # of the palette


def distances(kind: str, colours: list[str]) -> dict[tuple[str, str], float]:
    light = linear(np.array([to_rgb(colour) for colour in colours]))
    seen = lab_of_light(np.clip(light @ SEEN[kind].T, 0, 1))
    return {
        (colours[a], colours[b]): float(np.linalg.norm(seen[a] - seen[b]))
        for a, b in combinations(range(len(colours)), 2)
    }


def test_lab_is_that_of_the_standard() -> None:
    found = lab([(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)])
    assert found == pytest.approx(
        np.array([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2], [32.3, 79.19, -107.86]]), abs=0.1
    )


@pytest.mark.parametrize("kind", SEEN)
def test_the_smallest_distance_of_two_colours(kind: str) -> None:
    assert min(distances(kind, [*COLOURS]).values()) == pytest.approx(SMALLEST[kind], abs=0.1)


def plans() -> dict[str, dict]:
    one = {f"v{number}": {"levels": {}} for number in range(13)}
    two = {f"{a}{b}": {"levels": {"a": a, "b": b}} for b in "xy" for a in range(4)}
    return {
        "one factor of 13": {"factors": {}, "variants": one},
        "4 x 2": {"factors": {"a": [*range(4)], "b": ["x", "y"]}, "variants": two},
    }


@pytest.mark.parametrize("design", plans())
def test_every_two_arms_differ_in_colour_for_all_eyes_or_in_their_marker(design: str) -> None:
    found = looks(plans()[design])
    for one, other in combinations(found.values(), 2):
        apart = one.colour != other.colour and all(
            distances(kind, [one.colour, other.colour])[one.colour, other.colour] >= APART for kind in SEEN
        )
        assert apart or one.marker != other.marker, (one, other)
    assert len(MARKERS) == 13 and len({*MARKERS}) == 13 and len(LINES) == 5


def test_who_is_right_has_colours_that_no_class_has() -> None:
    brain = [(0, 0, 0), (0, 114, 178), (230, 159, 0), (240, 228, 66), (150, 150, 150)]
    chosen = unlike(AGREEMENT, brain)
    both = lab([*brain, *chosen.values()])
    apart = [np.linalg.norm(both[a] - both[b]) for a, b in combinations(range(len(both)), 2) if b >= len(brain)]
    assert list(chosen) == list(AGREEMENT) and min(apart) >= 20
    assert chosen["only the other right"] != (0, 114, 178)
    assert unlike(AGREEMENT, [])["only the other right"] == (0, 114, 178)
