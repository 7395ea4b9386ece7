"""The figures of a report. Each function draws one and returns it with the caption that says what to see in it."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.evidence.experiment import Experiment
from experiments.evidence.scored import as_scored
from experiments.reports.figures import cost, curves, errors, pictures, scores
from experiments.reports.figures.forms import COLUMN, PRINTED, WIDE, Form
from experiments.reports.figures.looks import (
    COLOURS,
    Drawn,
    colormap,
    drawing,
    label_colours,
    lay_out,
    plain_fonts,
    save_figure,
)
from experiments.reports.figures.pgf import save_pgf
from experiments.shell.places import below

__all__ = [
    "COLOURS",
    "FIGURES",
    "FORMATS",
    "colormap",
    "drawing",
    "label_colours",
    "missing_figures",
    "save_figure",
    "too_tall",
    "write_figures",
]


def _always(experiment: Experiment) -> str:
    return ""


# What draws each, and what says why it cannot be drawn: "" where it can.
FIGURES: dict[str, tuple[Callable[[Experiment, Form], Drawn], Callable[[Experiment], str]]] = {
    "scores": (scores.scores, _always),
    "seeds": (scores.seeds, _always),
    "pareto": (cost.pareto, cost.refuse_pareto),
    "classes": (scores.classes, scores.refuse_differences),
    "curves": (curves.curves, _always),
    "trimap": (curves.trimap, curves.refuse_trimap),
    "confusion": (errors.confusion, errors.refuse_confusion),
    "errors": (errors.errors, _always),
    "calibration": (errors.calibration, errors.refuse_calibration),
    "coverage": (curves.coverage, curves.refuse_coverage),
    "extremes": (pictures.extremes, pictures.refuse_extremes),
    "samples": (pictures.samples, _always),
    "logits": (pictures.logits, pictures.refuse_logits),
}
MOST_INCHES = 9.0  # of the height of a page
FIRST, NARROW = "seeds", "seeds-narrow"  # the figure that stands with the answer, and its form for a phone
# In print, and what is written into each so that it holds no date.
FORMATS: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "pgf": {}}


def missing_figures(experiment: Experiment) -> dict[str, str]:
    """The figures that cannot be drawn of this experiment, by name, and why."""
    reasons = {name: refuse(experiment) for name, (_, refuse) in FIGURES.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def write_figures(
    experiment: Experiment, folder: Path, *, chosen: Collection[str] | None = None, formats: Sequence[str] = ("pdf",)
) -> dict[str, tuple[bytes, str]]:
    """Writes figures/<name>.png and, for print, figures/print/<name>-column and -page in each of the formats.

    A form for print that would be taller than a page is left out: `too_tall` tells which. Returns the PNG and the
    caption of each that can be drawn, of `chosen` ones alone where these are named, and of that
    which stands with the answer, in its two forms. What an earlier report wrote and this one does not is deleted: it
    may be of other cells. Raises CannotWriteError where `figures` is a link.
    """
    written, missing = dict[str, tuple[bytes, str]](), missing_figures(experiment)
    for name, (draw, _) in FIGURES.items():
        stale = {below(folder, "figures", f"{name}.{kind}") for kind in ("png", "pdf")}  # .pdf: of an earlier version
        stale |= {_printed(folder, name, form, kind) for form in PRINTED for kind in FORMATS}
        stale |= {below(folder, "figures", f"{NARROW}.{kind}") for kind in ("png", "pdf") if name == FIRST}
        asked = chosen is None or name in chosen
        if name not in missing and (asked or name == FIRST):
            for form in (WIDE, *PRINTED) if asked else (WIDE, COLUMN):
                with drawing(form):
                    figure, caption = draw(experiment, form)
                    lay_out(figure, form)
                    pictures = {WIDE: name} | ({COLUMN: NARROW} if name == FIRST else {})
                    if form in pictures:
                        path = below(folder, "figures", f"{pictures[form]}.png")
                        png = save_figure(figure, path, {"Software": None})
                        written[pictures[form]] = (png, as_scored(caption, experiment.plan))
                        stale.discard(path)
                    fits = figure.get_figheight() <= MOST_INCHES
                    for kind in formats if form.printed and asked and fits else ():
                        path = _printed(folder, name, form, kind)
                        _save_printed(figure, path, form)
                        stale.discard(path)
        for path in sorted(stale):
            path.unlink(missing_ok=True)
    return written


def too_tall(folder: Path, names: Collection[str], kind: str) -> list[str]:
    """A sentence for each width in which some of the figures, all of them written, have no file of this kind."""
    sentences = []
    for form in PRINTED:
        if lost := [name for name in FIGURES if name in names and not _printed(folder, name, form, kind).is_file()]:
            wide = f"as wide as a {form.name} ({form.width:g} inches)"
            sentences.append(f"Not drawn {wide}, as it would be taller than {MOST_INCHES:g}: {', '.join(lost)}.")
    return sentences


def _printed(folder: Path, name: str, form: Form, kind: str) -> Path:
    return below(folder, "figures", "print", f"{name}-{form.name}.{kind}")


def _save_printed(figure: Figure, path: Path, form: Form) -> None:
    if path.suffix == ".pgf":
        save_pgf(figure, path, form.dpi)
        return
    with drawing(form), plain_fonts():
        save_figure(figure, path, FORMATS[path.suffix[1:]], dpi=form.dpi)
