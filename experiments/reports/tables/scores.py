"""Tables of what was measured: scores, cost, one factor at a time, near boundaries, time, classes, seeds."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from experiments.evidence.energy import Energies, digits
from experiments.evidence.experiment import Experiment, OneFactorStep, one_factor_steps
from experiments.evidence.family import Row, judge_scores
from experiments.evidence.scored import without_test
from experiments.reports.tables.text import (
    GMAC,
    Table,
    as_sentence,
    interval,
    mean_std,
    millions,
    number,
    of_fewer,
    seeds_done,
    seeds_listed,
    signed,
)
from lightning_modules.components.scores.reductions import size_ranges
from lightning_modules.components.scores.table import ASKED, PERCENT, PPM, SCORES, SIZES, Number

CLASSES_WITH_STD = 6  # with more, a page has room for the means only
TRIMAPS = (1, 3, 5, 10, 20)  # pixels
LOWER_IS_BETTER = ("checkerboard",)
_NO_LOGARITHM = "a score of 0 has no logarithm"


def score_table(experiment: Experiment, asked: Sequence[str] = ()) -> Table:
    """`asked` are further scores, by their names in `ASKED`."""
    plan, rows, digits = experiment.plan, [], decimals(experiment)
    columns, shown_scores = ["variant", "seeds", *titles(asked)], _with(asked)
    means: dict[str, list[float]] = {score: [] for score in shown_scores}
    for name in plan["variants"]:
        estimates = {
            score: experiment.estimate(name, score).times(printed.unit.factor)
            for score, printed in shown_scores.items()
        }
        shown = [mean_std(estimate, digits[score]) for score, estimate in estimates.items()]
        rows.append([name, seeds_done(experiment, name), *shown])
        for score, estimate in estimates.items():
            means[score].append(round(estimate.mean, digits[score]))
    best = []
    for column, (score, of_score) in enumerate(means.items(), start=2):
        numbers = [value for value in of_score if not math.isnan(value)]
        top = (min if score in LOWER_IS_BETTER else max)(numbers, default=math.nan)
        if len(set(numbers)) > 1:
            best += [(row, column) for row, value in enumerate(of_score) if value == top]
    notes = ["Bold: the best mean of a column, whether or not it differs from the others."]
    told, absent = _stored(experiment, shown_scores)
    notes += [*absent, *of_fewer(experiment, told)]
    title = f"All test scores on {plan['data']}, last epoch: mean ± standard deviation over seeds"
    caption = (
        f"Mean ± standard deviation over the seeds {seeds_listed(experiment)}, last epoch, test split of "
        f"{plan['data']}{without_test(plan)}; mIoU from the confusion matrices summed over images, a class absent from "
        "truth and prediction left out. Boundary F1 within 0.75 %, boundary IoU within 2 % of the image diagonal; NSD: "
        "normalised surface distance. Checkerboard energy: share of the "
        "spectral power of the logits on the upsampling grid, in millionths; lower is smoother."
    )
    briefs = [printed.brief for score, printed in told.items() if printed.brief and score != "miou"]
    foot = [*notes, *map(as_sentence, filter(None, (briefs[:2], briefs[2:4], briefs[4:])))]
    notes = [notes[0], *(ASKED[score].meaning for score in asked), *notes[1:]]
    return Table("scores", title, columns, rows, best=best, notes=notes, short="All scores", caption=caption, foot=foot)


def cost_table(experiment: Experiment) -> Table:
    """With a column of energy where some training has measured it."""
    rows, energies = [], Energies(experiment)
    shown = digits([*energies.watt_hours.values()])
    for name, variant in experiment.plan["variants"].items():
        seconds = variant["step_seconds"]
        row = [name, number(millions(variant), 3), number(variant["gmac"], 3)]
        row += [number(None if seconds is None else 1000 * seconds, 1), number(variant["step_ratio"], 2)]
        row.append(number(variant["peak_memory_mb"], 0))
        rows.append([*row, number(energies.mean(name), shown)] if energies.watt_hours else row)
    columns = ["variant", "parameters (M)", "GMAC", "step (ms)", "ratio", "peak memory (MB)"]
    columns += ["energy (Wh)"] if energies.watt_hours else []
    device = experiment.plan["device"]
    caption = (
        f"Cost of the variants. GMAC: of the forward pass of one test image. Step time and peak memory on {device}; "
        "ratio to the baseline."
    )
    title = f"Cost, measured on {device}"
    meaning = (
        f"M: millions; {GMAC}; step: median time of a training step, ratio: to the baseline's, and peak memory: of "
        f"training, on {device}."
    )
    notes = energies.notes()
    return Table("cost", title, columns, rows, notes=notes, short="Cost", caption=caption, foot=[meaning, *notes])


def comparison_table(experiment: Experiment) -> Table:
    """The effect of a factor at every level of the others; empty where no two variants differ in one factor alone."""
    shown, digits = ("miou", "boundary_f1", "checkerboard"), decimals(experiment)
    twins = Counter(str(variant["levels"]) for variant in experiment.plan["variants"].values())
    steps = one_factor_steps(experiment.plan)
    judged = {score: _judge_steps(experiment, steps, score) for score in shown} if steps else {}
    rows, dashes = [], dict[str, None]()
    for step in steps:
        at = ", ".join(f"{factor}: {level}" for factor, level in step.at.items()) or "-"
        levels = [experiment.plan["variants"][name]["levels"][step.factor] for name in (step.reference, step.variant)]
        # Two variants of the same levels differ in what was chosen for them, say a width that makes sizes equal.
        name = f" ({step.variant})" if twins[str(experiment.plan["variants"][step.variant]["levels"])] > 1 else ""
        cells = [f"{step.factor}: {levels[0]} to {levels[1]}{name}", at]
        for score in shown:
            row = judged[score][step.variant, step.reference]
            if row.reason:
                dashes[_NO_LOGARITHM if _has_zero(experiment, score) else row.reason] = None
            cells.append(_own(row, score, digits[score]))
        rows.append(cells)
    meaning = (
        "Each row changes one factor. Its 95 % interval is its own, for other seeds on these images, and no star goes "
        "by it: of twenty such intervals about one misses. A factor of 1 is no change."
    )
    notes = [
        meaning,
        *([f"[-]: {'; '.join(dashes)}."] if dashes else []),
    ]
    title, short = "One factor at a time, with the interval of the row alone", "One factor at a time"
    caption = (
        "One factor at a time: difference in points, of checkerboard energy its factor, with the 95 % interval over "
        "seeds of the row alone."
    )
    columns = ["change", "at", f"{SCORES['miou'].title} (points)", f"{SCORES['boundary_f1'].title} (points)"]
    columns.append(f"{SCORES['checkerboard'].title} (factor)")
    foot = [
        (
            "Intervals are for other seeds on these images, not corrected for the number of rows; a factor of 1 is no "
            "change."
        ),
        as_sentence([SCORES[score].brief for score in shown if score != "miou"]),
        *notes[1:],
    ]
    return Table("factors", title, columns, rows, texts=2, notes=notes, short=short, caption=caption, foot=foot)


def _judge_steps(experiment: Experiment, steps: Sequence[OneFactorStep], score: str) -> dict[tuple[str, str], Row]:
    """By the blocks of this score; a ratio by its logarithm, as equal factors are equal effects on it."""
    scores, settings = experiment.scores(score), experiment.plan.get("statistics", {})
    if is_ratio(score):
        scores = {cell: math.log(value) if value > 0 else math.nan for cell, value in scores.items()}
    weights = {(s.variant, s.reference): {s.variant: 1.0, s.reference: -1.0} for s in steps}
    separate, stage = settings.get("variances") == "separate", settings.get("stage")
    bound = math.inf if is_ratio(score) else 1.0
    return judge_scores(scores, weights, separate=separate, stage=stage, bound=bound).rows


def _own(row: Row, score: str, digits: int) -> str:
    if math.isnan(row.estimate):
        return "-"
    if is_ratio(score):
        ends = "[-]" if row.reason else f"[{math.exp(row.own_low):.2g}, {math.exp(row.own_high):.2g}]"
        return f"{math.exp(row.estimate):.2g} {ends}"
    shown = row.times(SCORES[score].unit.factor)
    ends = "[-]" if row.reason else interval(shown.own_low, shown.own_high, digits)
    return f"{signed(shown.estimate, digits)} {ends}"


def _has_zero(experiment: Experiment, score: str) -> bool:
    return is_ratio(score) and any(value <= 0 for value in experiment.scores(score).values())


def is_ratio(score: str) -> bool:
    """Whether only factors mean something: a share that can be near 0, in millionths."""
    return SCORES[score].unit == PPM


def trimap_table(experiment: Experiment) -> Table:
    """Empty where a cell has no trimaps."""
    plan, rows = experiment.plan, []
    for name in plan["variants"] if all(cell.trimap is not None for cell in experiment.finished()) else ():
        row = [name]
        for width in TRIMAPS:
            estimate = experiment.estimate(name, f"trimap/{width}").times(PERCENT[1])
            change = experiment.difference(name, plan["baseline"], f"trimap/{width}").times(PERCENT[1])
            alone = name == plan["baseline"] or not change.n
            row.append(mean_std(estimate, 2) + ("" if alone else f" ({signed(change.mean, 2)})"))
        rows.append(row)
    title = (
        "mIoU in percent of the pixels near a true boundary, by the width of the band to either side: mean ± standard "
        f"deviation over seeds (difference to {plan['baseline']} in percentage points, paired by seed)"
    )
    caption = (
        "mIoU in percent of the pixels within the given distance of a true boundary, mean ± standard deviation over "
        f"the seeds {seeds_listed(experiment)}; in brackets the difference to the baseline, paired by seed."
    )
    columns = ["variant", *(f"{width} px" for width in TRIMAPS)]
    return Table("trimap", title, columns, rows, short="Near boundaries", caption=caption)


def speed_table(experiment: Experiment) -> Table:
    """Empty where the time of an image was not measured."""
    rows = []
    for name, variant in experiment.plan["variants"].items():
        if seconds := variant.get("image_seconds"):
            network, crf = seconds["network"], seconds["crf"]
            rows.append([name, *(number(1000 * value, 1) for value in (network, crf, network + crf))])
            rows[-1].append(number((network + crf) / network, 2))
    title = "Milliseconds to predict one test image, medians on one thread"
    caption = "Milliseconds to predict one test image, medians on one thread, all variants on the same images in turn."
    columns = ["variant", "network", "CRF", "together", "ratio to the network"]
    return Table("speed", title, columns, rows, short="Speed", caption=caption)


def class_table(experiment: Experiment) -> Table:
    names = experiment.plan["class_names"]
    with_std = len(names) <= CLASSES_WITH_STD
    rows = []
    for variant in experiment.plan["variants"]:
        estimates = [experiment.estimate(variant, f"iou/{name}").times(PERCENT[1]) for name in names]
        rows.append(
            [variant, *(mean_std(estimate, 2) if with_std else number(estimate.mean, 2) for estimate in estimates)]
        )
    title = f"IoU by class in percent, mean {'± standard deviation ' if with_std else ''}over seeds"
    over = f"over the seeds {seeds_listed(experiment)}"
    caption = f"IoU by class in percent, mean {'± standard deviation ' if with_std else ''}{over}."
    return Table("classes", title, ["variant", *names], rows, short="Classes", caption=caption)


def seed_table(experiment: Experiment, asked: Sequence[str] = ()) -> Table:
    """`asked` as for `score_table`."""
    digits, rows, shown = decimals(experiment), [], _with(asked)
    for name, cells in experiment.cells.items():
        for seed in experiment.plan["seeds"]:
            row = [name, str(seed), *["-"] * (len(shown) + 2)]
            if seed in cells:
                result, scores = cells[seed].result, cells[seed].scores
                row[2:-2] = [number(printed.unit.factor * scores[s], digits[s]) for s, printed in shown.items()]
                row[-2:] = [str(result["epochs"]), number(result["seconds"], 0)]
            rows.append(row)
    columns = ["variant", "seed", *titles(asked), "epochs", "seconds"]
    return Table("seeds", "Every seed", columns, rows, short="Every seed")


def size_table(experiment: Experiment) -> Table:
    """Empty where no cell stored it."""
    stored = [cell for cell in experiment.finished() if "sizes" in cell.arrays]
    rows = []
    for name in experiment.plan["variants"] if stored else ():
        estimates = [experiment.estimate(name, score).times(PERCENT[1]) for score in SIZES]
        rows.append([name, seeds_done(experiment, name), *(mean_std(estimate, 2) for estimate in estimates)])
    counts = [f"{count:,}" for count in stored[0].arrays["sizes"].sum(axis=0)[:, 0].astype(int)] if stored else []
    below, *others = size_ranges()
    bounds = [f"{below} of the image", *others]
    columns = [f"{size.title}, {bound} (%)" for size, bound in zip(SIZES.values(), bounds, strict=True)]
    many = " and ".join([", ".join(counts[:-1]), *counts[-1:]])
    note = (
        "A segment is a connected component of one class in the truth. Its IoU, the adjusted one of Chan et al. "
        "(2021), is with the predicted segments that touch it, less what of them lies in other true segments of the "
        f"class. Small, medium and large: {many} true segments in the test images, and each counts the same. Sizes are "
        "those of COCO, 32 and 96 pixels squared at 640 x 480, as shares of the image."
    )
    of_segment = "IoU of a segment, a connected component of one class: with the predicted segments that touch it"
    foot = [
        f"{of_segment} (Chan et al. 2021).",
        f"There are {many} of these sizes in the test images, and each counts the same.",
    ]
    title = "IoU by size of segments: mean over the segments of all classes, ± standard deviation over seeds"
    caption = (
        "IoU of the true segments by their share of the image, in percent, mean over segments ± standard deviation "
        f"over the seeds {seeds_listed(experiment)}."
    )
    columns, short = ["variant", "seeds", *columns], "IoU by size"
    fewer = of_fewer(experiment, SIZES)
    notes, foot = [note, *fewer], [*foot, *fewer]
    return Table("sizes", title, columns, rows, notes=notes, short=short, caption=caption, foot=foot)


def titles(asked: Sequence[str] = ()) -> list[str]:
    return [f"{printed.title} ({printed.unit.sign})" for printed in _with(asked).values()]


def _with(asked: Sequence[str]) -> dict[str, Number]:
    return SCORES | {score: ASKED[score] for score in asked}


def _stored(experiment: Experiment, shown: Mapping[str, Number]) -> tuple[dict[str, Number], list[str]]:
    """Those that some cell has, and a note on the others."""
    names = experiment.plan["variants"]
    stored = {score: of for score, of in shown.items() if any(experiment.estimate(name, score).n for name in names)}
    absent = ", ".join(of.title for score, of in shown.items() if score not in stored)
    return stored, [f"Not stored by these cells, which an earlier version trained: {absent}."] * bool(absent)


def decimals(experiment: Experiment) -> dict[str, int]:
    """Decimals of each score: two for percent, otherwise what leaves three digits to the largest value."""
    by_score = {}
    for score, printed in (SCORES | ASKED).items():
        largest = max(printed.unit.factor * abs(cell.scores[score]) for cell in experiment.finished())
        scaled = printed.unit != PERCENT and largest > 0  # NaN is not
        by_score[score] = min(2, max(0, 2 - math.floor(math.log10(largest)))) if scaled else 2
    return by_score
