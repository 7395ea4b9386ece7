"""The forms of a figure: wide for the page, and two widths for print, with letters that are read there."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Form:
    """How wide a figure is drawn, in inches, and with what letters.

    A figure lays itself out for it and is never scaled: in a `narrow` one panels lie below one another.
    """

    name: str
    width: float
    row: float = 1.0  # height of a row of a variant, as a share of that of the wide form
    mark: float = 1.0  # size of marks and widths of lines, as a share of those of the wide form
    printed: bool = True
    dpi: int = 300  # of pictures inside a figure for print

    @property
    def narrow(self) -> bool:
        return self.width < 5

    def letters(self, points: float) -> float:
        """The size of letters that have so many points in the wide form: in print all of them are read."""
        return SMALL if self.printed else points

    def area(self, points: float) -> float:
        """The area of a mark, as `Axes.scatter` takes it."""
        return points * self.mark**2

    def length(self, letters: int, points: float | None = None) -> float:
        """Inches that so many letters take, about."""
        size = (SMALL if self.printed else 9.0) if points is None else points
        return letters * 0.567 * size / 72


TEXT, SMALL = 8.0, 7.0  # points, in print: of titles, and of all else
WIDE = Form("wide", 11.0, printed=False, dpi=160)  # of report.html and a record
PAGE = Form("page", 6.9, row=0.68, mark=0.75)  # both columns of a paper; NeurIPS and a thesis have less by a fifth
COLUMN = Form("column", 3.35, row=0.6, mark=0.65)  # one of two columns: CVPR 3.27, IEEE 3.49, Elsevier 3.54
PRINTED = (COLUMN, PAGE)

PRINT_STYLE: dict[str, Any] = {
    "font.size": TEXT,
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.06,
    "axes.labelpad": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "grid.linewidth": 0.4,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.labelspacing": 0.3,
    "legend.borderpad": 0.2,
}
