"""How far apart colours are for the eye, and colours that mean nothing else yet."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Linear light of sRGB to XYZ, and the white that both share (IEC 61966-2-1:1999, D65).
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)
APART = 25.0  # of CIE Lab, from where two colours of a legend are not mistaken for one another

RGB = tuple[int, int, int]


def linear(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB (..., 3) from 0 to 1 as linear light."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def lab_of_light(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE 1976 L*a*b* of linear light (..., 3)."""
    scaled = np.maximum(light @ TO_XYZ.T / WHITE, 0)
    root = np.where(scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab(colours: Iterable[Sequence[int]]) -> NDArray[np.float64]:
    """CIE 1976 L*a*b* (n, 3) of colours of 0 to 255."""
    return lab_of_light(linear(np.array([*colours], dtype=np.float64).reshape(-1, 3) / 255))


def unlike(wanted: Mapping[str, Sequence[RGB]], taken: Iterable[Sequence[int]]) -> dict[str, RGB]:
    """Of each name the first of its colours that is unlike all that are taken, and unlike those before it.

    Where none is, the one that is furthest from them.
    """
    chosen, known = dict[str, RGB](), [*map(tuple, taken)]
    for name, colours in wanted.items():
        far = [float(np.linalg.norm(lab(known) - lab([one]), axis=1).min(initial=1e9)) for one in colours]
        index = next((index for index, distance in enumerate(far) if distance >= APART), int(np.argmax(far)))
        chosen[name] = colours[index]
        known.append(colours[index])
    return chosen
