"""Colours of classes that no mask and no layout gives one."""

import math

# Okabe and Ito, Color Universal Design, 2008: colours that colour-blind people tell apart.
OKABE_ITO = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]


def generated_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """Black, then seven colours that colour-blind people tell apart, then darker rounds of the seven."""
    rounds = math.ceil((num_classes - 1) / len(OKABE_ITO))
    shades = [1 - 0.75 * i / rounds for i in range(rounds)]
    colours = [(round(s * r), round(s * g), round(s * b)) for s in shades for r, g, b in OKABE_ITO]
    return [(0, 0, 0), *colours[: num_classes - 1]]
