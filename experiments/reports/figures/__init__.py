"""The figures of a report. Each function draws one and returns it with the caption that says what to see in it."""

from collections.abc import Callable
from pathlib import Path

from experiments.evidence.experiment import Experiment
from experiments.evidence.scored import as_scored
from experiments.reports.figures import cost, curves, errors, pictures, scores
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
from experiments.shell.places import below

__all__ = [
    "COLOURS",
    "FIGURES",
    "colormap",
    "drawing",
    "label_colours",
    "missing_figures",
    "save_figure",
    "write_figures",
]


def _always(experiment: Experiment) -> str:
    return ""


# What draws each, and what says why it cannot be drawn: "" where it can.
FIGURES: dict[str, tuple[Callable[[Experiment], Drawn], Callable[[Experiment], str]]] = {
    "scores": (scores.scores, _always),
    "seeds": (scores.seeds, _always),
    "seeds-narrow": (scores.seeds_narrow, _always),
    "pareto": (cost.pareto, cost.refuse_pareto),
    "classes": (scores.classes, scores.refuse_differences),
    "curves": (curves.curves, _always),
    "trimap": (curves.trimap, curves.refuse_trimap),
    "confusion": (errors.confusion, errors.refuse_confusion),
    "errors": (errors.errors, _always),
    "calibration": (errors.calibration, errors.refuse_calibration),
    "extremes": (pictures.extremes, pictures.refuse_extremes),
    "samples": (pictures.samples, _always),
    "logits": (pictures.logits, pictures.refuse_logits),
}


def missing_figures(experiment: Experiment) -> dict[str, str]:
    """The figures that cannot be drawn of this experiment, by name, and why."""
    reasons = {name: refuse(experiment) for name, (_, refuse) in FIGURES.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def write_figures(experiment: Experiment, folder: Path) -> dict[str, tuple[bytes, str]]:
    """Writes figures/<name>.png and .pdf below `folder`; returns the PNG and the caption of each that can be drawn.

    Those of `missing_figures` are left out, and deleted where an earlier report wrote them. Raises CannotWriteError
    where `figures` is a link.
    """
    written, missing = {}, missing_figures(experiment)
    for name, (draw, _) in FIGURES.items():
        paths = [below(folder, "figures", f"{name}.{kind}") for kind in ("png", "pdf")]
        if name in missing:
            for path in paths:
                path.unlink(missing_ok=True)
            continue
        with drawing():
            figure, caption = draw(experiment)
            lay_out(figure)
            png = save_figure(figure, paths[0], {"Software": None})
            with plain_fonts():
                save_figure(figure, paths[1], {"CreationDate": None})
        written[name] = (png, as_scored(caption, experiment.plan))
    return written
