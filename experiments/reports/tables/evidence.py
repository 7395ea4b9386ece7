"""Tables of how sure the differences are: every row of the family, the spread of the arms, the networks at hand."""

import math
import re
from collections.abc import Iterable, Mapping

from experiments.evidence.experiment import Experiment
from experiments.evidence.factorial import Levels
from experiments.evidence.failed import failed, without_failed
from experiments.evidence.family import Row
from experiments.reports.tables.text import Table, excluded, interval, number, p_value, signed, starred
from lightning_modules.components.scores.table import PERCENT

EXCLUDED = "Excluded, where there is no star: differences of this size or more."
TIMES = "\N{MULTIPLICATION SIGN}"
SPREAD_P = 0.05  # of the test of equal spreads, below which a note says what it means


def answer_table(experiment: Experiment) -> Table:
    """The table that a reader sees first: score, difference with the interval of its star, cost."""
    rows, baseline = [], experiment.plan["baseline"]
    for name, variant in experiment.plan["variants"].items():
        done, planned = len(experiment.cells[name]), len(experiment.plan["seeds"])
        few = "" if done == planned else f" ({done} of {planned})"
        level = experiment.estimate(name, "miou").times(PERCENT[1])
        row = experiment.comparisons.get(name)
        change = "baseline" if name == baseline else "-" if row is None else starred(row.times(PERCENT[1]))
        shown = f"{number(level.mean, 2)} ± {number(level.std, 2)}{few}" if level.n else "-"
        rows.append([name, shown, change, number(variant["gmac"], 3)])
    columns = ["variant", "mIoU (%)", f"difference to {baseline} (points)", "GMAC"]
    title = f"Test mIoU on {experiment.plan['data']}: mean ± standard deviation over seeds"
    notes = [star_note(experiment), *no_interval_notes(experiment, experiment.comparisons.items())]
    caption = f"{experiment.plan['question']} {title}, last epoch; GMAC of one test image."
    return Table("answer", title, columns, rows, notes=notes, short="Answer", caption=caption)


def star_note(experiment: Experiment) -> str:
    """What a star, and an interval beside it, means; what it is not about."""
    family = experiment.family
    if not family.judged:
        return f"No star and no interval: {reasons(family.rows.values())}."
    mark = (
        "* 0 lies outside the interval" if any(row.star for row in family.rows.values()) else "No interval leaves out 0"
    )
    together = f"; all {family.judged} intervals of this report hold together" if family.judged > 1 else ", which holds"
    return f"{mark}{together} with 95 %, for {scope(experiment)}."


def scope(experiment: Experiment) -> str:
    """What the intervals allow for."""
    family = experiment.family
    if family.images_only:
        return f"other seeds, on these images only ({family.reason})"
    return f"other seeds and other images ({family.groups} groups)"


def no_interval_notes(experiment: Experiment, rows: Iterable[tuple[str, Row]]) -> list[str]:
    """Why a place holds a dash, one note a reason; where no row of the report has an interval, `star_note` says it."""
    by_reason: dict[str, list[str]] = {}
    for name, row in rows if experiment.family.judged else ():
        if row.reason:
            by_reason.setdefault(row.reason, []).append(name)
    return [f"[-] {', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def reasons(rows: Iterable[Row]) -> str:
    return "; ".join(dict.fromkeys(row.reason for row in rows if row.reason)) or "there is nothing to compare"


def factorial_table(experiment: Experiment) -> Table:
    """Empty where the factors are not fully crossed, or there is only one."""
    rows = []
    for effect in experiment.effects:
        row = effect.row.times(PERCENT[1])
        rows.append([title_of(experiment, tuple(effect.levels.items())), starred(row), excluded(row)])
    meaning = (
        "One change: its difference in mIoU, averaged over the levels of the other factors. Two changes: how much more "
        "both together raise the mIoU than the sum of what each does alone; 0 where they simply add."
    )
    notes = [
        meaning,
        star_note(experiment),
        *no_interval_notes(
            experiment, ((title_of(experiment, tuple(e.levels.items())), e.row) for e in experiment.effects)
        ),
    ]
    levels: Mapping[str, str] = experiment.levels()[experiment.plan["baseline"]]
    heads = [_brief(experiment, effect.levels) for effect in experiment.effects]
    meaning = (
        f"Each level against the baseline's ({', '.join(levels.values())}), averaged over the other factors; {TIMES}: "
        "what two changes add to the sum of both."
    )
    foot = [meaning, *notes[1:], EXCLUDED]
    title = "Effects of the crossed factors on the mIoU, in points"
    columns = ["effect", "mIoU (points)", "excluded (points)"]
    judged = any(not effect.row.reason for effect in experiment.effects)
    short, caption = "Effects of factors", f"{title}{', with simultaneous 95 % intervals' * judged}."
    return Table("factorial", title, columns, rows, notes=notes, short=short, caption=caption, foot=foot, heads=heads)


def _brief(experiment: Experiment, changed: Mapping[str, str]) -> str:
    """An effect by its levels, with its factor where it is one alone, or where two factors have such a level."""
    every = [level for levels in experiment.plan["factors"].values() for level in {*map(str, levels)}]
    pair = len(changed) > 1
    return f" {TIMES} ".join(
        level if pair and every.count(level) == 1 else f"{factor}: {level}" for factor, level in changed.items()
    )


def evidence_table(experiment: Experiment) -> Table:
    """Every row of the family; empty where there is nothing to compare."""
    rows, family, margin = [], experiment.family, experiment.margin
    for key, in_unit in family.rows.items():
        row = in_unit.times(PERCENT[1])
        cells = [title_of(experiment, key), str(row.seeds), signed(row.estimate, 2) + row.mark]
        cells += [interval(row.low, row.high, 2), p_value(row.adjusted)]
        cells += [interval(row.own_low, row.own_high, 2), p_value(row.p), number(row.df, 1), excluded(row)]
        cells.append("-" if row.reason else chance(row.chance))
        if margin is not None:
            cells.append("-" if row.reason else "yes" if row.within(margin) else "not shown")
        rows.append(cells)
    columns = ["contrast", "seeds", "mIoU (points)", "95 %, all together", "p, all together", "95 %, by itself"]
    columns += ["p, by itself", "df", "excluded (points)", "P(above 0), new seed (%)"]
    columns += [f"within ± {margin:g}"] if margin is not None else []
    meaning = f"{EXCLUDED} P: the chance that a new seed's difference is above 0 on these images."
    notes = [
        star_note(experiment),
        meaning,
        *no_interval_notes(experiment, ((title_of(experiment, key), row) for key, row in family.rows.items())),
    ]
    notes += [margin_note(experiment)] if margin is not None else []
    foot = [notes[0], EXCLUDED, "P: the chance that a new seed's difference is above 0 on these images.", *notes[2:]]
    title, short = "Evidence: every comparison and effect that is judged", "Evidence"
    caption = "Differences in mIoU in points, with 95 % intervals that hold all together, and by themselves."
    return Table("evidence", title, columns, rows, notes=notes, short=short, caption=caption, foot=foot)


def chance(share: float) -> str:
    """In percent, never certain."""
    return "< 1" if share < 0.01 else "> 99" if share > 0.99 else f"{100 * share:.0f}"


def margin_note(experiment: Experiment) -> str:
    """What the margin means, and when it was chosen."""
    after = " It was chosen after the training." if experiment.plan.get("statistics", {}).get("margin_after") else ""
    return (
        f"Within ± {experiment.margin:g}: the interval that holds together with all others lies inside ± "
        f"{experiment.margin:g} points.{after}"
    )


def spread_table(experiment: Experiment) -> Table:
    """How far seeds lie apart in each arm, once what they have in common is taken out."""
    spread = experiment.spread
    arms = spread.arms if spread else {}
    rows = [
        [name, number(PERCENT[1] * experiment.estimate(name, "miou").std, 2), number(PERCENT[1] * sd, 2)]
        for name, sd in arms.items()
    ]
    notes = []
    if spread:
        shared = f"{number(PERCENT[1] * spread.sd, 2)} points ({spread.df} degrees of freedom)"
        separate = "The intervals use each comparison's own, as the plan says"
        pooled = f"The intervals use one for all variants, {shared}"
        notes.append(f"{separate if experiment.family.separate else pooled}.")
        notes += [] if math.isnan(spread.p) or experiment.family.separate else [spread_note(spread.p)]
        notes += [without_failed(experiment)] if spread.p < SPREAD_P and failed(experiment) else []
    columns = ["variant", "as it is (points)", "without what each seed does to all variants alike (points)"]
    title, short = "Standard deviation over seeds in each variant", "Spread"
    caption = "Residual standard deviation over seeds of each arm, in points of mIoU."
    foot = [re.split(r"(?<=\.) (?=[A-Z])", note)[0] for note in notes]
    return Table("spread", title, columns, rows, notes=notes, short=short, caption=caption, foot=foot)


def spread_note(p: float) -> str:
    """What the test of equal spreads says."""
    if p < SPREAD_P:
        return (
            f"The variants' spreads differ more than by chance (p {p_value(p)}). If one variant, or half of them, "
            "spreads twice as much as the others, all intervals together hold with about 93 %; if the baseline does, "
            "with 89 % at 8 variants and 80 % at 24 (docs/statistics.md). --separate-variances, planned before the "
            "training, needs no equal spreads."
        )
    return f"No unequal spread shows (p {p_value(p)} by simulation), which with few seeds excludes only large ones."


def networks_table(experiment: Experiment) -> Table:
    """Of the trained networks alone: what other images would change. Another claim, so another mark."""
    family, rows = experiment.networks, []
    for key, in_unit in family.rows.items() if family else ():
        row = in_unit.times(PERCENT[1])
        mark = "†" if row.star else ""
        rows.append(
            [title_of(experiment, key), str(row.seeds), signed(row.estimate, 2) + mark, interval(row.low, row.high, 2)]
        )
    columns = ["contrast", "networks each", "mIoU (points)", "95 %, all together"]
    note = (
        "† 0 lies outside the interval for other images, of these very networks. Trained from other seeds they would "
        "be others: it is no star, and says nothing of the design."
    )
    title, short = "The trained networks alone, on other images", "Trained networks"
    caption = "Differences between the trained networks in mIoU, in points, with 95 % intervals for other images only."
    foot = ["† 0 lies outside the interval: it is no star, and says nothing of networks trained from other seeds."]
    return Table("networks", title, columns, rows, notes=[note], short=short, caption=caption, foot=foot)


def title_of(experiment: Experiment, key: str | Levels) -> str:
    """A row of the family in words."""
    if isinstance(key, str):
        return f"{key} - {experiment.plan['baseline']}"
    levels: Mapping[str, str] = experiment.levels()[experiment.plan["baseline"]]
    return " x ".join(f"{factor}: {level} - {levels[factor]}" for factor, level in key)
