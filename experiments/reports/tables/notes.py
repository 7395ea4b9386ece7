"""The notes below a report's tables: what each number is."""

from experiments.evidence.deviations import processor_of
from experiments.evidence.experiment import Experiment
from experiments.reports.tables.evidence import evidence_notes
from lightning_modules.components.scores.table import SCORES

ELSEWHERE = (
    "On another kind of processor they are other ones, as those of another seed are: between two machines, 24 cells "
    "differed by 0.9 points of mIoU (root mean square)."
)


def make_notes(experiment: Experiment) -> list[str]:
    """What each number is, a sentence or two each."""
    plan = experiment.plan
    counts = sorted({len(cell.image_names) for cell in experiment.finished()})
    images = f"the {counts[0]}" if experiment.same_images else f"{counts[0]} to {counts[-1]}, not always the same,"
    seeds = ", ".join(str(seed) for seed in plan["seeds"])
    scores = (
        "Scores are in percent (x 100; checkerboard energy in millionths, ppm), on "
        f"{images} images of the test split of {plan['data']}, with the weights of the last epoch, not of the best "
        f"one; mean ± sample standard deviation over seeds ({seeds})."
    )
    interval = (
        "Intervals hold 95 % each. What one allows for is what may change when the experiment is made again: other "
        "seeds (how far the mean would move with other seeds on the same images), other images (of the same kind, "
        "the trained networks kept), or both. A claim on the design itself needs both. Where a table says only "
        "seeds, or nothing, and in table.csv where a column names no kind, it is Student's t over seeds (n - 1 "
        "degrees of freedom). No interval is corrected for the number of comparisons; every p that is printed is."
    )
    difference = (
        f"Difference: variant minus baseline ({plan['baseline']}), paired by seed, in percentage points (ppm for "
        "checkerboard energy)."
    )
    cost = (
        "GMAC: 10^9 multiply-accumulates of the forward pass of one test image (half of what is called FLOPs). Step "
        f"time (median over training steps) and peak memory were measured on {plan['device']}, all variants in one go: "
        "compare them inside this table only. Ratio: to the baseline."
    )
    processors = sorted({processor_of(cell.environment) for cell in experiment.finished()} - {""})
    here = f" ({'; '.join(processors)})" if processors else ""
    again = f"The same command gives the same numbers on the same kind of processor{here}. {ELSEWHERE}"
    notes = [scores, interval, difference, *evidence_notes(experiment)]
    notes += [f"No effects of the factors: {experiment.no_effects}."] if experiment.no_effects else []
    notes += [SCORES["miou"].meaning, *_absent_classes(experiment)]
    notes += [SCORES["boundary_f1"].meaning, SCORES["checkerboard"].meaning, cost]
    if any(0 < len(cells) < 2 for cells in experiment.cells.values()):
        notes.append(
            "One seed: no interval over seeds. A standard deviation and an interval over seeds need two seeds at "
            "least, one over seeds and images three (-)."
        )
    notes += [again, *plan.get("notes", [])]
    return notes + [plan[key] for key in ("scale_note", "data_note") if plan[key]]


def _absent_classes(experiment: Experiment) -> list[str]:
    true = sum(cell.confusion.sum(axis=1) for cell in experiment.finished())
    absent = [name for name, pixels in zip(experiment.plan["class_names"], true, strict=True) if not pixels]
    if not absent:
        return []
    counted = "Such a class counts in the mIoU of a variant, as 0, only where the variant predicts it."
    return [f"In no test image: {', '.join(absent)}. {counted}"]
