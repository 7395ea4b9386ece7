"""The notes below a report's tables: what each number is."""

from experiments.evidence.deviations import processor_of
from experiments.evidence.experiment import Experiment
from experiments.evidence.power import about, seeds_for
from experiments.evidence.scored import as_scored, without_test
from experiments.reports.tables.evidence import reasons
from lightning_modules.components.scores.table import PERCENT, SCORES

ELSEWHERE = (
    "On another kind of processor they are other ones, as those of another seed are: between two machines, 24 cells "
    "differed by 0.9 points of mIoU (root mean square)."
)

LEFT_OUT = (
    "No interval allows for other training images, another split or another learning rate, which can matter as much "
    "(Bouthillier et al. 2021)."
)


def make_notes(experiment: Experiment) -> list[str]:
    """What each number is, a sentence or two each."""
    plan = experiment.plan
    counts = sorted({len(cell.image_names) for cell in experiment.finished()})
    images = f"the {counts[0]}" if experiment.same_images else f"{counts[0]} to {counts[-1]}, not always the same,"
    seeds = ", ".join(str(seed) for seed in plan["seeds"])
    scores = (
        "Scores are in percent (x 100; checkerboard energy in millionths, ppm), on "
        f"{images} images of the test split of {plan['data']}{without_test(plan)}, with the weights of the last "
        f"epoch, not of the best one; mean ± sample standard deviation over seeds ({seeds})."
    )
    difference = (
        f"Difference: variant minus baseline ({plan['baseline']}), in percentage points. What a seed does to all "
        "variants alike cancels; where seeds are missing, by least squares."
    )
    cost = (
        "GMAC: 10^9 multiply-accumulates of the forward pass of one test image (half of what is called FLOPs). Step "
        f"time (median over training steps) and peak memory were measured on {plan['device']}, all variants in one go: "
        "compare them inside this table only. Ratio: to the baseline."
    )
    processors = sorted({processor_of(cell.environment) for cell in experiment.finished()} - {""})
    here = f" ({'; '.join(processors)})" if processors else ""
    again = f"The same command gives the same numbers on the same kind of processor{here}. {ELSEWHERE}"
    notes = [scores, difference, _judged(experiment), LEFT_OUT, *_seeds_for(experiment)]
    notes += [f"No effects of the factors: {experiment.no_effects}."] if experiment.no_effects else []
    notes += [SCORES["miou"].meaning, *_absent_classes(experiment)]
    stored = {score for score in SCORES if any(experiment.estimate(name, score).n for name in plan["variants"])}
    notes += [number.meaning for score, number in SCORES.items() if score in stored - {"miou"} and number.meaning]
    notes += [cost]
    notes += [again, *plan.get("notes", [])]
    return [as_scored(note, plan) for note in notes] + [plan[key] for key in ("scale_note", "data_note") if plan[key]]


def _judged(experiment: Experiment) -> str:
    """How intervals and stars come about."""
    family = experiment.family
    if not family.judged:
        return f"No intervals and no stars: {reasons(family.rows.values())}."
    if family.separate:
        return (
            "Intervals and stars: each comparison by its own paired t over the seeds, with Bonferroni's correction for "
            f"{family.judged}; no variance is shared, as the plan says."
        )
    return (
        "Intervals and stars: score = variant + seed + residual, the residuals' variance shared by all variants "
        f"({family.df:g} degrees of freedom); all comparisons, main effects and interactions are judged together by "
        "their largest |t| (Hothorn, Bretz & Westfall 2008). docs/statistics.md explains and tests it."
    )


def _seeds_for(experiment: Experiment) -> list[str]:
    """What narrower intervals would take."""
    family = experiment.family
    if family.separate or not family.judged or not family.sd > 0:
        return []
    count = about(seeds_for(1.0, PERCENT[1] * family.sd, family.df, family.level))
    images = "" if family.images_only else "; what other images leave unknown, no seed narrows"
    return [f"To compare two variants to ± 1 point takes {count} seeds{images}."]


def _absent_classes(experiment: Experiment) -> list[str]:
    true = sum(cell.confusion.sum(axis=1) for cell in experiment.finished())
    absent = [name for name, pixels in zip(experiment.plan["class_names"], true, strict=True) if not pixels]
    if not absent:
        return []
    counted = "Such a class counts in the mIoU of a variant, as 0, only where the variant predicts it."
    return [f"In no test image: {', '.join(absent)}. {counted}"]
