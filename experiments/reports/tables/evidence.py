"""Tables of how sure the differences are: intervals, tests, effects of crossed factors, and what more would take."""

from collections.abc import Mapping, Sequence

from experiments.evidence.experiment import Experiment
from experiments.evidence.intervals import KINDS, NEEDED_SEEDS, RESAMPLES, TESTS, Difference, Test, WeightedScore
from experiments.evidence.power import LIMIT, Needed, needed_for_width, needed_to_detect
from experiments.evidence.resampling import MIN_IMAGES
from experiments.reports.tables.text import Table, interval_of, number, p_value, signed
from lightning_modules.components.scores.table import PERCENT

METHODS = {
    "seeds": "Student's t",
    "images": f"paired bootstrap of the images, {RESAMPLES:,} resamples, the same for all variants",
    "both": "the variances over seeds and over images added, Student's t; as its degrees of freedom count the images "
    "too, it can be a little narrower than that over seeds alone where the seeds matter most",
}
RANK = "p of a rank test over seeds (Holm)"


def evidence_table(experiment: Experiment) -> Table:
    """Empty where there is nothing to compare, or not on the same images."""
    name, baseline = marked_test(experiment), experiment.plan["baseline"]
    columns = ["variant", "seeds", "difference (points)", *_interval_titles(), "p (Holm)", RANK, "effect size d_z"]
    rows, refused = [], dict[tuple[str, str], list[str]]()
    differences: Mapping[str, Difference] = experiment.compared.differences if experiment.compared else {}
    for variant, difference in differences.items():
        row = [variant, *_effect_cells(difference.contrast, difference.tests[name], refused, columns[3:], variant)]
        rank, effect = difference.tests["signed-rank"], difference.effect
        row.append(p_value(rank))
        sized = f"{number(effect.d, 2)} [{number(effect.low, 2)}, {number(effect.high, 2)}]"
        row.append("-" if effect.reason else sized)
        for column, reason in ((RANK, rank.reason), (columns[-1], effect.reason)):
            _refuse(refused, column, reason, variant)
        rows.append(row)
    title = f"Evidence: mIoU of each variant minus that of {baseline}, in percentage points"
    notes = [footnote(experiment), f"p (Holm): of the test that gives the star. {RANK}: {TESTS['signed-rank']}."]
    caption = (
        f"Difference in mIoU to {baseline}, in percentage points, paired by seed and image, with 95 % intervals for "
        "other seeds (Student's t), for other images (paired bootstrap) and for both; they are not corrected for the "
        "number of comparisons."
    )
    notes = [*notes, *_reasons(refused, len(rows))] if rows else []
    return Table("evidence", title, columns, rows, notes=notes, short="Differences", caption=caption, before_plots=True)


def factorial_table(experiment: Experiment) -> Table:
    """Empty where the factors are not fully crossed, or there is only one."""
    columns = ["effect", "seeds", "mIoU (points)", *_interval_titles(), "p (Holm)"]
    rows, refused = [], dict[tuple[str, str], list[str]]()
    for effect in experiment.effects:
        changes = [f"{factor}: {effect.references[factor]} to {level}" for factor, level in effect.levels.items()]
        title = " x ".join(changes)
        rows.append([title, *_effect_cells(effect.contrast, effect.test, refused, columns[3:], title)])
    sizes = [
        sum(len(effect.levels) == order and not effect.test.reason for effect in experiment.effects) for order in (1, 2)
    ]
    meaning = (
        "One change: its main effect, the difference in mIoU averaged over all levels of the other factors. Two "
        "changes with x between: their interaction, how much more the first raises the mIoU after the second than "
        "before it, averaged likewise; zero where the two simply add. Where it is not, a main effect may hold at no "
        "single level."
    )
    star = (
        f"* p below 5 % after Holm's correction over all main effects ({sizes[0]}), or over all interactions "
        f"({sizes[1]}): {TESTS['both']}. No star: no such evidence, not the absence of an effect."
    )
    notes = [meaning, *([star] if any(sizes) else [])]
    title = "Effects of the crossed factors on the mIoU, in percentage points"
    caption = (
        "Effects of the crossed factors on the mIoU, in percentage points, paired by seed and image, with 95 % "
        "intervals, which are not corrected for the number of effects."
    )
    return Table(
        "factorial",
        title,
        columns,
        rows,
        notes=[*notes, *_reasons(refused, len(rows))] if rows else [],
        short="Effects of factors",
        caption=caption,
        before_plots=True,
        on_terminal=True,
    )


def needed_table(experiment: Experiment) -> Table:
    differences: Mapping[str, Difference] = experiment.compared.differences if experiment.compared else {}
    columns = ["variant", "seeds for ± 1 point", "images for ± 1 point", "seeds to find 1 point"]
    rows, refused = [], dict[tuple[str, str], list[str]]()
    family = sum(
        bool(len(difference.contrast.values)) for difference in differences.values()
    )  # a variant without a cell is not in it
    for variant, difference in differences.items():
        point = 1 / PERCENT[1]
        needs = [needed_for_width(difference.contrast, point, kind=kind) for kind in ("seeds", "images")]
        needs.append(needed_to_detect(difference.contrast, point, kind="both", of="seeds", comparisons=max(family, 1)))
        for column, needed in zip(columns[1:], needs, strict=True):
            _refuse(refused, column, needed.reason, variant)
        rows.append([variant, *map(_needed, needs)])
    images = len(experiment.finished()[0].image_names)
    meaning = (
        "± 1 point: until the 95 % interval of the difference for other seeds, or for other images, ends 1 percentage "
        "point from it or nearer, in all. To find 1 point: until a true difference of 1 point gets its star with a "
        f"chance of 80 %, by the {TESTS['both']}, with {images} images and this many comparisons. In brackets what it "
        "could as well be: the deviation is itself known only from the seeds or images at hand (95 %). The least that "
        f"is printed is what an interval takes at all: {NEEDED_SEEDS['seeds']} seeds, {MIN_IMAGES} images, and "
        f"{NEEDED_SEEDS['both']} seeds for the test."
    )
    title = "How many seeds or images a difference in mIoU would need"
    return Table(
        "needed",
        title,
        columns,
        rows,
        notes=[meaning, *_reasons(refused, len(rows))] if rows else [],
        short="Seeds and images needed",
        caption="Seeds or images that a difference in mIoU would need.",
        before_plots=True,
        on_terminal=True,
    )


def marked_test(experiment: Experiment) -> str:
    """Name of the test whose stars the tables show: over seeds and images where the seeds suffice for it.

    One for all variants, because Holm's correction is of one family of tests.
    """
    compared = experiment.compared
    most = (
        max((len(difference.contrast.values) for difference in compared.differences.values()), default=0)
        if compared
        else 0
    )
    return "both" if most >= NEEDED_SEEDS["both"] else "swap"


def evidence_notes(experiment: Experiment) -> list[str]:
    if experiment.compared is None:
        return ["No tests and no intervals over images: the cells were not scored on the same test images."]
    if not experiment.compared.differences:
        return []
    contrasts = [contrast.contrast for contrast in experiment.compared.differences.values()]
    notes = []
    for kind in KINDS:
        estimates = [contrast.estimate(kind) for contrast in contrasts]
        meanings = list(dict.fromkeys(contrast.meaning for contrast in estimates if not contrast.reason))
        if meanings:
            notes.append(f"Of a difference in mIoU: {' or '.join(meanings)} ({METHODS[kind]}).")
    effect = (
        "Effect size d_z: the mean difference over the sample standard deviation of the differences between seeds, "
        "with Hedges' correction for few seeds, and its 95 % interval for other seeds. It tells how steady a "
        "difference is over seeds, not how large."
    )
    return [*notes, footnote(experiment), effect]


def footnote(experiment: Experiment) -> str:
    """What a star means."""
    name, differences = marked_test(experiment), experiment.compared.differences if experiment.compared else {}
    tests = [difference.tests[name] for difference in differences.values()]
    family = sum(not test.reason for test in tests)
    if not family:
        return f"No difference gets a star: {', '.join(dict.fromkeys(test.reason for test in tests))}."
    comparisons = f"{family} comparison{'s' if family > 1 else ''} with {experiment.plan['baseline']}"
    limit = "" if name == "both" else "; it says nothing of other seeds, for which there are too few"
    reasons = ["is of its comparison alone"] if family > 1 else []
    reasons += ["allows for something else than the test", *(["is of another method"] if name == "swap" else [])]
    return (
        f"* p below 5 % after Holm's correction over {comparisons}: {TESTS[name]}, of the mIoU{limit}. No star: no "
        "such evidence, not equality. An interval can leave out 0 without a star, or hold it with one, where it "
        f"{' or '.join(reasons)}."
    )


def _interval_titles() -> list[str]:
    return [f"95 % interval: {meaning}" for meaning in KINDS.values()]


def _effect_cells(
    contrast: WeightedScore, test: Test, refused: dict[tuple[str, str], list[str]], columns: Sequence[str], row: str
) -> list[str]:
    """Seeds, difference with its star, three intervals and p; what is refused is noted by column and reason."""
    factor = PERCENT[1]
    intervals = [contrast.estimate(kind).times(factor) for kind in KINDS]
    cells = [str(len(contrast.values)), signed(factor * contrast.mean, 2) + test.mark]
    cells += ["-" if interval.reason else interval_of(interval, 2) for interval in intervals]
    for column, reason in zip(columns, [*(interval.reason for interval in intervals), test.reason], strict=False):
        _refuse(refused, column, reason, row)
    return [*cells, p_value(test)]


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


def _needed(need: Needed) -> str:
    if need.reason:
        return "-"
    n, low, high = (f"> {LIMIT:,}" if value is None else f"{value:,}" for value in (need.n, need.low, need.high))
    return f"{n} ({low} to {high})"
