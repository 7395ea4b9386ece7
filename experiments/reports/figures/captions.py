"""What stands below a figure in a paper: a sentence or two on what its marks, bars and numbers are."""

from collections.abc import Callable

from experiments.evidence.experiment import Experiment
from experiments.evidence.scored import as_scored
from experiments.reports.figures.errors import most_different
from experiments.reports.figures.forms import Form
from experiments.reports.figures.pictures import CROP, best_other, one_seed
from experiments.reports.figures.scores import MOST_CLASSES
from experiments.reports.tables.paper import count_seeds
from experiments.reports.tables.text import GMAC, as_sentence
from lightning_modules.components.scores.table import BOUNDARY, SCORES, errors


def caption(name: str, experiment: Experiment, form: Form) -> str:
    """Of a figure of FIGURES in one of the two forms for print."""
    return as_scored(CAPTIONS[name](experiment, form), experiment.plan)


def _scores(experiment: Experiment, form: Form) -> str:
    briefs = as_sentence([SCORES[score].brief for score in ("boundary_f1", "checkerboard")])
    return (
        f"Scores of {count_seeds(experiment)}: dots are seeds, a large mark is their mean, its line goes from the "
        f"lowest to the highest, which is no interval; dashed: the mean of the baseline. {briefs}"
    )


def _seeds(experiment: Experiment, form: Form) -> str:
    family = experiment.family
    where, beside = ("Above", "Below") if form.narrow else ("Right", "Left")
    bars = "no interval can be given"
    if family.judged:
        together = f" that holds for all {family.judged} comparisons and effects together" * (family.judged > 1)
        allowed = "on these images only" if family.images_only else "and other images of the kind"
        starred = any(row.star for row in experiment.comparisons.values())
        star = "with a star where it leaves out 0" if starred else "none of which leaves out 0"
        bars = f"the bar is the 95 % interval{together}, for other seeds {allowed}, {star}"
    return (
        f"{where}: each variant minus the baseline, {experiment.plan['baseline']}; marks are "
        f"{count_seeds(experiment)}, the upright line is their mean, {bars}. {beside}: mIoU of every seed, joined by a "
        "line to the same seed of the other variants, and the mean (upright line)."
    )


def _pareto(experiment: Experiment, form: Form) -> str:
    return (
        f"Test mIoU against cost: mean of {count_seeds(experiment)}, bar from the lowest to the highest, which is no "
        "interval. Filled marks on the grey steps are the Pareto front: no other variant is as good and as cheap, and "
        f"better in one of the two. {GMAC}; times are medians on {experiment.plan['device']}."
    )


def _classes(experiment: Experiment, form: Form) -> str:
    names = experiment.plan["class_names"]
    shown = f" of the {MOST_CLASSES} of {len(names)} classes that move most" * (len(names) > MOST_CLASSES)
    share = "" if form.narrow else "; in brackets the class's share of the labelled pixels"
    framed = "Framed: its own 95 % interval for other seeds leaves out 0, not corrected for the number of classes."
    if all(row.reason for row in experiment.comparisons.values()):
        framed = "No interval is known."
    return (
        f"IoU{shown} minus that of the baseline, {experiment.plan['baseline']}, in points, mean of "
        f"{count_seeds(experiment)} (blue: higher; orange: lower){share}. {framed}"
    )


def _curves(experiment: Experiment, form: Form) -> str:
    return (
        f"Validation mIoU and training loss by epoch: mean of {count_seeds(experiment)} (line) and from the lowest to "
        "the highest (band), which is no interval."
    )


def _trimap(experiment: Experiment, form: Form) -> str:
    above, below = ("Above", "below") if form.narrow else ("Left", "right")
    return (
        f"{above}: mIoU of the pixels within a distance of a true boundary; {below}: its difference to the baseline, "
        f"{experiment.plan['baseline']}, paired by seed. Mean of {count_seeds(experiment)} (line) ± one standard "
        "deviation (band)."
    )


def _confusion(experiment: Experiment, form: Form) -> str:
    above, below = ("Above", "Below") if form.narrow else ("Left", "Right")
    other = most_different(experiment)
    changed = (
        f" {below}: what {other}, the variant of most different mIoU, changes in it, in points (blue: more pixels; "
        "orange: fewer)."
    )
    return (
        f"{above if other else 'Confusion'}: of the pixels of a true class (row) the share that the baseline, "
        f"{experiment.plan['baseline']}, gives each class (column), mean of {count_seeds(experiment)}; a class in no "
        f"test image is grey.{changed if other else ''}"
    )


def _errors(experiment: Experiment, form: Form) -> str:
    known = {name for name in errors() if any(experiment.estimate(v, name).n for v in experiment.plan["variants"])}
    parts = ["wrong pixels in percent of the labelled ones"]
    parts[0] += f" (full colour: within {BOUNDARY} pixels of a true boundary)" * ("boundary_errors" in known)
    if "missed" in known:
        parts.append(
            "segments, connected pixels of one class, that are missed (filled marks) or hallucinated (hollow) without "
            "a right pixel, in percent of the true and of the predicted ones"
        )
    parts.append("the most frequent confusions (true → predicted class) in percent of a variant's wrong pixels")
    return f"{as_sentence(parts)} Marks and bars are means of {count_seeds(experiment)}, strokes the seeds."


def _calibration(experiment: Experiment, form: Form) -> str:
    above, below = ("above", "below") if form.narrow else ("left", "right")
    return (
        "Accuracy of the test pixels against their confidence, the largest probability, all seeds together, and the "
        f"share of pixels of each confidence ({above}); expected calibration error, the mean distance of the two "
        f"({below}): dots are {count_seeds(experiment)}, the mark is their mean."
    )


def _coverage(experiment: Experiment, form: Form) -> str:
    above, below = ("Above", "below") if form.narrow else ("Left", "right")
    return (
        f"{above}: of the pixels whose label has the largest probability, the share that is wrong, at 100 % that of "
        f"all; {below}: its difference to the baseline, {experiment.plan['baseline']}, paired by seed. Mean of "
        f"{count_seeds(experiment)} (line) ± one standard deviation (band)."
    )


def _extremes(experiment: Experiment, form: Form) -> str:
    other = best_other(experiment)
    also = f" and {other}, the best other variant" if other else ""
    return (
        f"The test images of lowest and of highest mIoU, as the baseline, {experiment.plan['baseline']}{also} predict "
        f"them; numbers are the mIoU of the one image in percent. {one_seed(experiment)}"
    )


def _samples(experiment: Experiment, form: Form) -> str:
    return (
        "Of test images, named above, which no score chose: the truth and the prediction of every variant; "
        f"numbers are the mIoU of the one image in percent. {one_seed(experiment)}"
    )


def _logits(experiment: Experiment, form: Form) -> str:
    return (
        f"Logits of one class on the first test image ({CROP} x {CROP} pixels of its middle, grey) and their power "
        "spectrum, of the variants with the most and the least checkerboard energy at initialisation. Circles: the "
        "frequencies of the last upsampling grid; energy: the share of the power in them above their neighbourhood, in "
        f"millionths (ppm). {one_seed(experiment)}"
    )


CAPTIONS: dict[str, Callable[[Experiment, Form], str]] = {
    "scores": _scores,
    "seeds": _seeds,
    "pareto": _pareto,
    "classes": _classes,
    "curves": _curves,
    "trimap": _trimap,
    "confusion": _confusion,
    "errors": _errors,
    "calibration": _calibration,
    "coverage": _coverage,
    "extremes": _extremes,
    "samples": _samples,
    "logits": _logits,
}
