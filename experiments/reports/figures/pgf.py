"""Figures as drawing commands of TeX (pgf), which a paper typesets in its own letters."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from experiments.reports.tex import escape
from experiments.shell.files import write_atomic

ENGINES = ("pdflatex", "xelatex", "lualatex")


def save_pgf(figure: Figure, path: Path, dpi: int) -> None:
    """Writes the figure; its pictures lie beside it as <name>-img0.png.

    Raises FileNotFoundError where no TeX is installed: it measures the letters.
    """
    settings: Any = {"pgf.texsystem": find_tex(), "pgf.rcfonts": False}
    with tempfile.TemporaryDirectory() as folder, _escaped(), matplotlib.rc_context(settings):
        figure.savefig(Path(folder) / path.name, format="pgf", dpi=dpi)
        for file in sorted(Path(folder).iterdir()):
            write_atomic(path.parent / file.name, file.read_bytes())


def find_tex() -> str:
    """The first TeX that is installed; raises FileNotFoundError where none is."""
    if found := next((name for name in ENGINES if shutil.which(name)), None):
        return found
    raise FileNotFoundError(
        "--format pgf needs pdflatex, xelatex or lualatex, which measure its letters, and found none on PATH: install "
        "TeX Live, or choose --format pdf or svg"
    )


@contextmanager
def _escaped() -> Iterator[None]:
    """Where names reach TeX as text: for matplotlib's pgf every text is code."""
    from matplotlib.backends.backend_pgf import RendererPgf

    renderer: Any = RendererPgf
    write, measure = renderer.draw_text, renderer.get_text_width_height_descent

    def drawn(self: Any, gc: Any, x: float, y: float, s: str, *rest: Any, **named: Any) -> None:
        write(self, gc, x, y, escape(s), *rest, **named)

    def measured(self: Any, s: str, *rest: Any, **named: Any) -> Any:
        return measure(self, escape(s), *rest, **named)

    renderer.draw_text, renderer.get_text_width_height_descent = drawn, measured
    try:
        yield
    finally:
        renderer.draw_text, renderer.get_text_width_height_descent = write, measure
