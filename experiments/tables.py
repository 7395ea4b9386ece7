"""The tables of a report, as text, and the notes that say what each number is."""

import math
from dataclasses import dataclass

from experiments.statistics import Estimate
from experiments.stored import PERCENT, SCORES, Comparison, Experiment, comparisons

CLASSES_WITH_STD = 6  # with more, a page has room for the means only
TRIMAPS = (1, 3, 5, 10, 20)  # pixels


@dataclass(frozen=True)
class Table:
    """Text in rows; the first `texts` columns are words, the others numbers."""

    key: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    texts: int = 1


def make_tables(experiment: Experiment) -> list[Table]:
    """Scores, cost, one factor at a time, trimaps, time of an image, IoU by class, every seed: the tables of every form
    of the report; those without rows are not shown."""
    tables = [_score_table(experiment), _cost_table(experiment), _comparison_table(experiment)]
    tables += [_trimap_table(experiment), _speed_table(experiment)]
    return [*tables, _class_table(experiment), _seed_table(experiment)]


def make_notes(experiment: Experiment) -> list[str]:
    """What each number is, a sentence or two each."""
    plan = experiment.plan
    images = len(experiment.finished()[0].image_names)
    seeds = ", ".join(str(seed) for seed in plan["seeds"])
    scores = (
        "Scores are in percent (x 100; checkerboard energy in millionths, ppm), on the "
        f"{images} images of the test split of {plan['data']}, with the weights of the last epoch, not of the best "
        f"one; mean ± sample standard deviation over seeds ({seeds})."
    )
    interval = (
        "The 95 % interval is Student's t over seeds (n - 1 degrees of freedom): how far the mean would move with "
        "other seeds on the same images. It says nothing of other images. It is no test of significance, and nothing "
        "is corrected for the number of comparisons."
    )
    difference = (
        f"Difference: variant minus baseline ({plan['baseline']}), paired by seed, in percentage points (ppm for "
        "checkerboard energy)."
    )
    miou = (
        "mIoU: the confusion matrices of all images are summed, then the IoU of the classes averaged. A class absent "
        "from both truth and prediction is left out of the mean and shown as -. Ignored pixels count nowhere."
    )
    boundary = (
        "Boundary F1: agreement of the class outlines within 0.75 % of the image diagonal (the tolerance of SegNet); "
        "mean over the classes of an image, then over images."
    )
    checkerboard = (
        "Checkerboard energy: share of the spectral power of the logits at the frequencies of the last upsampling grid "
        "(period 2), above that of a smooth neighbourhood; mean over images. Lower is smoother; sharp edges alone "
        "reach up to about 200 ppm."
    )
    cost = (
        "GMAC: 10^9 multiply-accumulates of the forward pass of one test image (half of what is called FLOPs). Step "
        f"time (median over training steps) and peak memory were measured on {plan['device']}, all variants in one go: "
        "compare them inside this table only. Ratio: to the baseline."
    )
    notes = [scores, interval, difference, miou, boundary, checkerboard, cost]
    if any(0 < len(cells) < 2 for cells in experiment.cells.values()):
        notes.append("One seed: no interval. A standard deviation and an interval need two seeds at least (-).")
    notes += plan.get("notes", [])
    return notes + [plan[key] for key in ("scale_note", "data_note") if plan[key]]


def _score_table(experiment: Experiment) -> Table:
    plan, rows, digits = experiment.plan, [], _digits(experiment)
    for name in plan["variants"]:
        found = {score: experiment.estimate(name, score).times(factor) for score, (_, (_, factor)) in SCORES.items()}
        change = experiment.difference(name, plan["baseline"], "miou").times(PERCENT[1])
        row = [name, _seeds(experiment, name), _mean_std(found["miou"], 2), _interval(found["miou"], 2)]
        row += ["baseline", "-"] if name == plan["baseline"] else [_signed(change.mean, 2), _interval(change, 2)]
        rows.append([*row, *(_mean_std(found[score], digits[score]) for score in SCORES if score != "miou")])
    columns = ["variant", "seeds", "mIoU (%)", "95 % interval", "difference", "its 95 % interval", *_titles()[1:]]
    title = f"Test scores on {plan['data']}, last epoch: mean ± standard deviation over seeds"
    return Table("scores", title, columns, rows)


def _cost_table(experiment: Experiment) -> Table:
    rows = []
    for name, variant in experiment.plan["variants"].items():
        seconds = variant["step_seconds"]
        row = [name, _number(variant["parameters"] / 1e6, 3), _number(variant["gmac"], 3)]
        row += [_number(None if seconds is None else 1000 * seconds, 1), _number(variant["step_ratio"], 2)]
        rows.append([*row, _number(variant["peak_memory_mb"], 0)])
    columns = ["variant", "parameters (M)", "GMAC", "step (ms)", "ratio", "peak memory (MB)"]
    return Table("cost", f"Cost, measured on {experiment.plan['device']}", columns, rows)


def _comparison_table(experiment: Experiment) -> Table:
    """The effect of a factor at every level of the others; empty where no two variants differ in one factor alone."""
    shown, digits = ("miou", "boundary_f1", "checkerboard"), _digits(experiment)

    def row(one: Comparison) -> list[str]:
        at = ", ".join(f"{factor}: {level}" for factor, level in one.at.items()) or "-"
        levels = [experiment.plan["variants"][name]["levels"][one.factor] for name in (one.reference, one.variant)]
        cells = [f"{one.factor}: {levels[0]} to {levels[1]}", at]
        cells.append(str(experiment.difference(one.variant, one.reference, "miou").n))
        for score in shown:
            change = experiment.difference(one.variant, one.reference, score).times(SCORES[score][1][1])
            interval = "(one seed)" if change.n == 1 else _interval(change, digits[score])
            cells.append(f"{_signed(change.mean, digits[score])} {interval}" if change.n else "-")
        return cells

    rows = [row(one) for one in comparisons(experiment.plan)]
    title = "One factor at a time: difference paired by seed, with its 95 % interval over seeds"
    return Table("factors", title, ["change", "at", "seeds", *_titles()[:3]], rows, texts=2)


def _trimap_table(experiment: Experiment) -> Table:
    """Empty where a cell has no trimaps."""
    plan, rows = experiment.plan, []
    for name in plan["variants"] if all(cell.trimap is not None for cell in experiment.finished()) else ():
        row = [name]
        for width in TRIMAPS:
            found = experiment.estimate(name, f"trimap/{width}").times(PERCENT[1])
            change = experiment.difference(name, plan["baseline"], f"trimap/{width}").times(PERCENT[1])
            own = name == plan["baseline"] or not change.n
            row.append(_mean_std(found, 2) + ("" if own else f" ({_signed(change.mean, 2)})"))
        rows.append(row)
    title = (
        "mIoU in percent of the pixels near a true boundary, by the width of the band to either side: mean ± standard "
        f"deviation over seeds (difference to {plan['baseline']}, paired by seed)"
    )
    return Table("trimap", title, ["variant", *(f"{width} px" for width in TRIMAPS)], rows)


def _speed_table(experiment: Experiment) -> Table:
    """Empty where the time of an image was not measured."""
    rows = []
    for name, variant in experiment.plan["variants"].items():
        if seconds := variant.get("image_seconds"):
            network, crf = seconds["network"], seconds["crf"]
            rows.append([name, *(_number(1000 * value, 1) for value in (network, crf, network + crf))])
            rows[-1].append(_number((network + crf) / network, 2))
    title = "Milliseconds to predict one test image, medians on one thread"
    return Table("speed", title, ["variant", "network", "CRF", "together", "ratio to the network"], rows)


def _class_table(experiment: Experiment) -> Table:
    names = experiment.plan["class_names"]
    with_std = len(names) <= CLASSES_WITH_STD
    rows = []
    for variant in experiment.plan["variants"]:
        found = [experiment.estimate(variant, f"iou/{name}").times(PERCENT[1]) for name in names]
        rows.append([variant, *(_mean_std(one, 2) if with_std else _number(one.mean, 2) for one in found)])
    title = f"IoU by class in percent, mean {'± standard deviation ' if with_std else ''}over seeds"
    return Table("classes", title, ["variant", *names], rows)


def _seed_table(experiment: Experiment) -> Table:
    digits, rows = _digits(experiment), []
    for name, cells in experiment.cells.items():
        for seed in experiment.plan["seeds"]:
            row = [name, str(seed), *["-"] * (len(SCORES) + 2)]
            if seed in cells:
                result, scores = cells[seed].result, cells[seed].scores
                row[2:-2] = [_number(factor * scores[s], digits[s]) for s, (_, (_, factor)) in SCORES.items()]
                row[-2:] = [str(result["epochs"]), _number(result["seconds"], 0)]
            rows.append(row)
    return Table("seeds", "Every seed", ["variant", "seed", *_titles(), "epochs", "seconds"], rows)


def _titles() -> list[str]:
    return [f"{title} ({unit})" for title, (unit, _) in SCORES.values()]


def _seeds(experiment: Experiment, variant: str) -> str:
    done, planned = len(experiment.cells[variant]), len(experiment.plan["seeds"])
    return str(done) if done == planned else f"{done} of {planned}"


def _digits(experiment: Experiment) -> dict[str, int]:
    """Decimals of each score: two for percent, otherwise what leaves three digits to the largest value."""
    found = {}
    for score, (_, (unit, factor)) in SCORES.items():
        largest = max(factor * abs(cell.scores[score]) for cell in experiment.finished())
        known = unit != PERCENT[0] and largest > 0  # NaN is not
        found[score] = min(2, max(0, 2 - math.floor(math.log10(largest)))) if known else 2
    return found


def _mean_std(found: Estimate, digits: int) -> str:
    return f"{_number(found.mean, digits)} ± {_number(found.std, digits)}" if found.n else "-"


def _interval(found: Estimate, digits: int) -> str:
    return "-" if found.n < 2 else f"[{_number(found.low, digits)}, {_number(found.high, digits)}]"


def _signed(value: float, digits: int) -> str:
    text = _number(value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def _number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:z.{digits}f}"  # z: what rounds to zero has no sign
