"""The tables of a report, as text, and the notes that say what each number is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.power import LIMIT, Needed, needed_for_width, needed_to_detect
from experiments.statistics import KINDS, NEEDED_SEEDS, RESAMPLES, TESTS, Contrast, Difference, Estimate, Test
from experiments.stored import PERCENT, SCORES, Comparison, Experiment, comparisons

CLASSES_WITH_STD = 6  # with more, a page has room for the means only
TRIMAPS = (1, 3, 5, 10, 20)  # pixels
LOWER_IS_BETTER = ("checkerboard",)
METHODS = {
    "seeds": "Student's t",
    "images": f"paired bootstrap of the images, {RESAMPLES:,} resamples, the same for all variants",
    "both": "the variances over seeds and over images added, Student's t; as its degrees of freedom count the images too, "
    "it can be a little narrower than that over seeds alone where the seeds matter most",
}
RANK = "p of a rank test over seeds (Holm)"


@dataclass(frozen=True)
class Table:
    """Text in rows; the first `texts` columns are words, the others numbers, a significant one with a star behind it.

    `best` holds the places, row and column, of the best value of a column; `notes` are printed below.
    """

    key: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    texts: int = 1
    best: Sequence[tuple[int, int]] = ()
    notes: Sequence[str] = ()


def make_tables(experiment: Experiment) -> list[Table]:
    """Scores, evidence for the differences, effects of crossed factors, what it would take to know them better, cost,
    one factor at a time, trimaps, time of an image, IoU by class, every seed: the tables of every form of the report;
    those without rows are not shown."""
    tables = [_score_table(experiment), _evidence_table(experiment), _factorial_table(experiment)]
    tables += [_needed_table(experiment), _cost_table(experiment), _comparison_table(experiment)]
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
        "Intervals hold 95 % each. What one allows for is what may change when the experiment is made again: other seeds "
        "(how far the mean would move with other seeds on the same images), other images (of the same kind, the trained "
        "networks kept), or both. A claim on the design itself needs both. Where a table says only seeds, or nothing, "
        "and in table.csv where a column names no kind, it is Student's t over seeds (n - 1 degrees of freedom). "
        "No interval is corrected for the number of comparisons; every p that is printed is."
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
    notes = [scores, interval, difference, *_evidence_notes(experiment), miou, *_absent_classes(experiment)]
    notes += [boundary, checkerboard, cost]
    if any(0 < len(cells) < 2 for cells in experiment.cells.values()):
        notes.append(
            "One seed: no interval over seeds. A standard deviation and an interval over seeds need two seeds at least, "
            "one over seeds and images three (-)."
        )
    notes += plan.get("notes", [])
    return notes + [plan[key] for key in ("scale_note", "data_note") if plan[key]]


def marked_test(experiment: Experiment) -> str:
    """Name of the test whose stars the tables show: over seeds and images where the seeds suffice for it.

    One for all variants, because Holm's correction is of one family of tests.
    """
    compared = experiment.compared
    most = max((len(one.contrast.values) for one in compared.differences.values()), default=0) if compared else 0
    return "both" if most >= NEEDED_SEEDS["both"] else "swap"


def _evidence_notes(experiment: Experiment) -> list[str]:
    if experiment.compared is None:
        return ["No tests and no intervals over images: the cells were not scored on the same test images."]
    if not experiment.compared.differences:
        return []
    contrasts = [one.contrast for one in experiment.compared.differences.values()]
    notes = []
    for kind in KINDS:
        found = [one.estimate(kind) for one in contrasts]
        meanings = list(dict.fromkeys(one.meaning for one in found if not one.reason))
        if meanings:
            notes.append(f"Of a difference in mIoU: {' or '.join(meanings)} ({METHODS[kind]}).")
    effect = (
        "Effect size d_z: the mean difference over the sample standard deviation of the differences between seeds, with "
        "Hedges' correction for few seeds, and its 95 % interval for other seeds. It tells how steady a difference is "
        "over seeds, not how large."
    )
    return [*notes, _footnote(experiment), effect]


def _footnote(experiment: Experiment) -> str:
    """What a star means."""
    name, differences = marked_test(experiment), experiment.compared.differences if experiment.compared else {}
    tests = [one.tests[name] for one in differences.values()]
    family = sum(not test.reason for test in tests)
    if not family:
        return f"No difference gets a star: {', '.join(dict.fromkeys(test.reason for test in tests))}."
    comparisons = f"{family} comparison{'s' if family > 1 else ''} with {experiment.plan['baseline']}"
    limit = "" if name == "both" else "; it says nothing of other seeds, for which there are too few"
    return (
        f"* p below 5 % after Holm's correction over {comparisons}: {TESTS[name]}, of the mIoU{limit}. "
        "No star: no such evidence, not equality. An interval can leave out 0 without a star, because it is of its "
        "comparison alone."
    )


def _absent_classes(experiment: Experiment) -> list[str]:
    true = sum(cell.confusion.sum(axis=(0, 2)) for cell in experiment.finished())
    absent = [name for name, pixels in zip(experiment.plan["class_names"], true, strict=True) if not pixels]
    if not absent:
        return []
    counted = "Such a class counts in the mIoU of a variant, as 0, only where the variant predicts it."
    return [f"In no test image: {', '.join(absent)}. {counted}"]


def _score_table(experiment: Experiment) -> Table:
    plan, rows, digits = experiment.plan, [], _digits(experiment)
    differences = experiment.compared.differences if experiment.compared else {}
    columns = [
        "variant",
        "seeds",
        "mIoU (%)",
        "95 % interval (seeds)",
        "difference (points)",
        "its 95 % interval (seeds)",
    ]
    columns += _titles()[1:]
    places = {score: columns.index(title) for score, title in zip(SCORES, _titles(), strict=True)}
    means: dict[str, list[float]] = {score: [] for score in SCORES}
    for name in plan["variants"]:
        found = {score: experiment.estimate(name, score).times(factor) for score, (_, (_, factor)) in SCORES.items()}
        change = experiment.difference(name, plan["baseline"], "miou").times(PERCENT[1])
        row = [name, _seeds(experiment, name), _mean_std(found["miou"], 2), _interval(found["miou"], 2)]
        if name == plan["baseline"]:
            row += ["baseline", "-"]
        else:
            mark = differences[name].tests[marked_test(experiment)].mark if name in differences else ""
            row += [_signed(change.mean, 2) + mark, _interval(change, 2)]
        rows.append([*row, *(_mean_std(found[score], digits[score]) for score in SCORES if score != "miou")])
        for score, one in found.items():
            means[score].append(round(one.mean, digits[score]))
    best = []
    for score, of_score in means.items():
        known = [value for value in of_score if not math.isnan(value)]
        top = (min if score in LOWER_IS_BETTER else max)(known, default=math.nan)
        best += [(row, places[score]) for row, value in enumerate(of_score) if value == top]
    notes = [
        "Bold: the highest mean of a column, for checkerboard energy the lowest, whether or not it is significant."
    ]
    title = f"Test scores on {plan['data']}, last epoch: mean ± standard deviation over seeds"
    return Table(
        "scores", title, columns, rows, best=best, notes=[*([_footnote(experiment)] if differences else []), *notes]
    )


def _evidence_table(experiment: Experiment) -> Table:
    """Empty where there is nothing to compare, or not on the same images."""
    name, baseline = marked_test(experiment), experiment.plan["baseline"]
    columns = ["variant", "seeds", "difference (points)", *_interval_titles(), "p (Holm)", RANK, "effect size d_z"]
    rows, refused = [], dict[tuple[str, str], list[str]]()
    differences: Mapping[str, Difference] = experiment.compared.differences if experiment.compared else {}
    for variant, one in differences.items():
        row = [variant, *_effect_cells(one.contrast, one.tests[name], refused, columns[3:], variant)]
        rank, effect = one.tests["signed-rank"], one.effect
        row.append(_p(rank))
        sized = f"{_number(effect.d, 2)} [{_number(effect.low, 2)}, {_number(effect.high, 2)}]"
        row.append("-" if effect.reason else sized)
        for column, reason in ((RANK, rank.reason), (columns[-1], effect.reason)):
            _refuse(refused, column, reason, variant)
        rows.append(row)
    title = f"Evidence: mIoU of each variant minus that of {baseline}, in percentage points"
    notes = [_footnote(experiment), f"p (Holm): of the test that gives the star. {RANK}: {TESTS['signed-rank']}."]
    return Table("evidence", title, columns, rows, notes=[*notes, *_reasons(refused, len(rows))] if rows else [])


def _factorial_table(experiment: Experiment) -> Table:
    """Empty where the factors are not fully crossed, or there is only one."""
    columns = ["effect", "seeds", "mIoU (points)", *_interval_titles(), "p (Holm)"]
    rows, refused = [], dict[tuple[str, str], list[str]]()
    for effect in experiment.effects:
        changes = [f"{factor}: {effect.references[factor]} to {level}" for factor, level in effect.levels.items()]
        title = " x ".join(changes)
        rows.append([title, *_effect_cells(effect.contrast, effect.test, refused, columns[3:], title)])
    sizes = [sum(len(one.levels) == order and not one.test.reason for one in experiment.effects) for order in (1, 2)]
    meaning = (
        "One change: its main effect, the difference in mIoU averaged over all levels of the other factors. Two changes "
        "with x between: their interaction, how much more the first raises the mIoU after the second than before it, "
        "averaged likewise; zero where the two simply add. Where it is not, a main effect may hold at no single level."
    )
    star = (
        f"* p below 5 % after Holm's correction over all main effects ({sizes[0]}), or over all interactions "
        f"({sizes[1]}): {TESTS['both']}. No star: no such evidence, not the absence of an effect."
    )
    notes = [meaning, *([star] if any(sizes) else [])]
    title = "Effects of the crossed factors on the mIoU, in percentage points"
    return Table("factorial", title, columns, rows, notes=[*notes, *_reasons(refused, len(rows))] if rows else [])


def _needed_table(experiment: Experiment) -> Table:
    differences: Mapping[str, Difference] = experiment.compared.differences if experiment.compared else {}
    columns = ["variant", "seeds for ± 1 point", "images for ± 1 point", "seeds to find 1 point"]
    rows, refused = [], dict[tuple[str, str], list[str]]()
    for variant, one in differences.items():
        point = 1 / PERCENT[1]
        found = [needed_for_width(one.contrast, point, kind=kind) for kind in ("seeds", "images")]
        found.append(needed_to_detect(one.contrast, point, kind="both", of="seeds", comparisons=len(differences)))
        for column, needed in zip(columns[1:], found, strict=True):
            _refuse(refused, column, needed.reason, variant)
        rows.append([variant, *map(_needed, found)])
    images = len(experiment.finished()[0].image_names)
    meaning = (
        "± 1 point: until the 95 % interval of the difference for other seeds, or for other images, ends 1 percentage "
        "point from it or nearer, in all. To find 1 point: until a true difference of 1 point gets its star with a chance of "
        f"80 %, by the {TESTS['both']}, with {images} images and this many comparisons. In brackets what it could as "
        "well be: the deviation is itself known only from the seeds or images at hand (95 %)."
    )
    title = "How many seeds or images a difference in mIoU would need"
    return Table("needed", title, columns, rows, notes=[meaning, *_reasons(refused, len(rows))] if rows else [])


def _interval_titles() -> list[str]:
    return [f"95 % interval: {meaning}" for meaning in KINDS.values()]


def _effect_cells(
    contrast: Contrast, test: Test, refused: dict[tuple[str, str], list[str]], columns: Sequence[str], row: str
) -> list[str]:
    """Seeds, difference with its star, three intervals and p; what is refused is noted by column and reason."""
    factor = PERCENT[1]
    found = [contrast.estimate(kind).times(factor) for kind in KINDS]
    cells = [str(len(contrast.values)), _signed(factor * contrast.mean, 2) + test.mark]
    cells += ["-" if one.reason else _interval_of(one, 2) for one in found]
    for column, reason in zip(columns, [*(one.reason for one in found), test.reason], strict=False):
        _refuse(refused, column, reason, row)
    return [*cells, _p(test)]


def _refuse(refused: dict[tuple[str, str], list[str]], column: str, reason: str, row: str) -> None:
    if reason:
        refused.setdefault((column, reason), []).append(row)


def _reasons(refused: Mapping[tuple[str, str], list[str]], rows: int) -> list[str]:
    """Why a place holds a dash, one note a reason."""
    columns = dict[tuple[str, tuple[str, ...]], list[str]]()
    for (column, reason), names in refused.items():
        columns.setdefault((reason, tuple(names)), []).append(f'"{column}"')
    notes = []
    for (reason, of_rows), titles in columns.items():
        where = f" for {', '.join(of_rows)}" if len(of_rows) < rows else ""
        notes.append(f"Under {' and '.join(titles)} there is no number (-){where}; {reason}.")
    return notes


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
    return "-" if found.n < 2 else _interval_of(found, digits)


def _interval_of(found: Estimate, digits: int) -> str:
    return f"[{_number(found.low, digits)}, {_number(found.high, digits)}]"


def _p(test: Test) -> str:
    if math.isnan(test.adjusted):
        return "-"
    return "< 0.001" if test.adjusted < 0.001 else f"{test.adjusted:.3f}"


def _needed(found: Needed) -> str:
    if found.reason:
        return "-"
    n, low, high = (f"> {LIMIT:,}" if value is None else f"{value:,}" for value in (found.n, found.low, found.high))
    return f"{n} ({low} to {high})"


def _signed(value: float, digits: int) -> str:
    text = _number(value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def _number(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:z.{digits}f}"  # z: what rounds to zero has no sign
