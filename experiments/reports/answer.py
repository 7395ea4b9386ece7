"""The sentences that answer an experiment's question: what was found, what is excluded, and whom it holds for."""

import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.evidence.experiment import Experiment
from experiments.evidence.factorial import Effect
from experiments.evidence.family import MIN_SEEDS, Row
from experiments.reports.tables.evidence import reasons
from lightning_modules.components.scores.table import PERCENT

MOST = 3  # findings that a sentence lists


def answer(experiment: Experiment) -> list[str]:
    """The first sentence is the answer; the others say more of effects, of the margin, and what it holds for."""
    plan, where = experiment.plan, f"On {experiment.plan['data']}" if experiment.plan["data"] else "Here"
    rows = {name: row for name, row in experiment.comparisons.items() if not math.isnan(row.estimate)}
    if not experiment.comparisons:
        return [f"{where}, nothing can be compared: there is one variant."]
    if not rows:
        return [f"{where}, nothing can be compared yet: no other variant has a seed that {plan['baseline']} has."]
    judged = {name: row.times(PERCENT[1]) for name, row in rows.items() if not row.reason}
    if not judged and (most := max(row.seeds for row in rows.values())) < MIN_SEEDS:
        few = f"{most} seed{'s' * (most > 1)}"
        return [f"{where}, {few} cannot tell what other seeds would give: from {MIN_SEEDS} on there are intervals."]
    if not judged:
        return [f"{where}, no difference can be judged: {reasons(rows.values())}."]
    crossed = _crossed(experiment, where)
    compared = _compared(where, plan["baseline"], rows)
    if not crossed:
        sentences = [compared]
    elif any(effect.row.star for effect in experiment.effects):
        sentences = crossed
    else:  # stars of single variants come first; without any, the factors say the same in fewer words
        sentences = [compared, *crossed] if any(row.star for row in judged.values()) else crossed
    return [*sentences, *_within(experiment, judged), _holds_for(experiment)]


def _compared(where: str, baseline: str, in_unit: Mapping[str, Row]) -> str:
    """Of variants beside the baseline."""
    rows = {name: row.times(PERCENT[1]) for name, row in in_unit.items()}
    found, rest = _starred(rows), {name: row for name, row in rows.items() if not row.star and not row.reason}
    parts = [_listed([f"{name} {_moved(row)} than {baseline}" for name, row in found])] if found else []
    if rest and found:
        named = _and(list(rest)) if len(rest) <= MOST else f"the other {len(rest)}"
        parts.append(f"no difference is seen for {named}: {_excluded(rest.values())}")
    elif rest:
        who = f"{next(iter(rest))} is not" if len(rest) == 1 else f"{_none_of(rest, rows)} is"
        parts.append(f"{who} seen to differ from {baseline} in mIoU: {_excluded(rest.values())}")
    return f"{where}, {'; '.join([*parts, *_not_judged(rows)])}."


def _crossed(experiment: Experiment, where: str) -> list[str]:
    """Of crossed factors, main effects and interactions; none where no effect is judged."""
    effects = [(effect, effect.row.times(PERCENT[1])) for effect in experiment.effects]
    if not any(not row.reason for _, row in effects):
        return []
    averaged = "averaged over the other factor" + "s" * (len(experiment.plan["factors"]) > 2)
    found, nothing, lost = list[str](), list[str](), dict[str, Row]()
    for factor in experiment.plan["factors"]:
        main = [(effect, row) for effect, row in effects if [*effect.levels] == [factor]]
        if not main:
            continue
        rows, reference = {effect.levels[factor]: row for effect, row in main}, main[0][0].references[factor]
        found += [f"{factor} {level} {_moved(row)} than {reference}" for level, row in _starred(rows)]
        rest = {level: row for level, row in rows.items() if not row.star and not row.reason}
        lost |= {f"{factor} {level}": row for level, row in rows.items() if row.reason}
        if rest:
            nothing.append(f"for {factor} ({_and(list(rest))} against {reference}): {_excluded(rest.values())}")
    parts = [f"{_listed(found)}, {averaged}"] if found else []
    if nothing:
        seen = "no difference is seen" if found else f"no factor is seen to change the mIoU, {averaged}, neither"
        parts.append(f"{seen} {'; nor '.join(nothing)}")
    simple = f"{where}, {'; '.join([*parts, *_not_judged(lost)])}."
    together = [(effect, row) for effect, row in effects if len(effect.levels) == 2 and not row.reason]
    beyond = [_beyond(effect, row) for effect, row in together if row.star]
    if beyond:
        return [f"{where}, what one factor does depends on the other: {_listed(beyond)}.", simple]
    if not together:
        return [simple]
    low, high = min(row.low for _, row in together), max(row.high for _, row in together)
    span = f"from {-low:.1f} points less to {high:.1f} points more"
    return [simple, f"Whether the effects simply add up stays open: two together may give {span} than their sum."]


def _starred(rows: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """The largest first."""
    return sorted(((name, row) for name, row in rows.items() if row.star), key=lambda item: -abs(item[1].estimate))


def _not_judged(rows: Mapping[str, Row]) -> list[str]:
    """Which rows have no interval, and why."""
    reasons_of: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row.reason:
            reasons_of.setdefault(row.reason, []).append(name)
    return [f"not judged: {_and(names)} ({reason})" for reason, names in reasons_of.items()]


def _none_of(rest: Mapping[str, Row], rows: Mapping[str, Row]) -> str:
    return "no variant" if len(rest) == len(rows) else f"none of {_and(list(rest))}"


def _within(experiment: Experiment, rows: dict[str, Row]) -> list[str]:
    """Which variants are equivalent to the baseline within the margin."""
    margin = experiment.margin
    if margin is None:
        return []
    names = [name for name, row in rows.items() if row.within(margin)]
    baseline, points = experiment.plan["baseline"], f"{margin:g} point{'s' * (margin != 1)}"
    after = " (a margin chosen after the training)" if experiment.plan["statistics"].get("margin_after") else ""
    if not names:
        return [f"No variant is shown to be within ± {points} of {baseline}{after}."]
    return [f"Within ± {points} of {baseline}{after}: {', '.join(names)}."]


def _holds_for(experiment: Experiment) -> str:
    """What intervals allow for, and what not."""
    family = experiment.family
    where = f"these images only ({family.reason})" if family.images_only else "other images of the same kind"
    return f"This holds for other seeds and {where}; not for other training images, splits or learning rates."


def _moved(row: Row) -> str:
    """How far a row is from 0, with its interval, both without a sign."""
    ends = sorted(map(abs, (row.low, row.high)))
    word = "higher" if row.estimate > 0 else "lower"
    return f"scores {_digits(abs(row.estimate))} points of mIoU [{_digits(ends[0])} to {_digits(ends[1])}] {word}"


def _beyond(effect: Effect, row: Row) -> str:
    """An interaction, in points."""
    pair = " with ".join(f"{factor} {level}" for factor, level in effect.levels.items())
    ends = sorted(map(abs, (row.low, row.high)))
    size = f"{_digits(abs(row.estimate))} points of mIoU [{_digits(ends[0])} to {_digits(ends[1])}]"
    return f"{pair} scores {size} {'more' if row.estimate > 0 else 'less'} than the two effects sum up to"


def _excluded(rows: Iterable[Row]) -> str:
    """What the intervals of all rows leave out, to either side; rounded so that nothing more is excluded."""
    listed = list(rows)
    higher, lower = max(row.high for row in listed), -min(row.low for row in listed)
    return f"{_up(higher)} or more points higher are excluded, and {_up(lower)} or more lower"


def _up(value: float) -> str:
    return f"{math.ceil(value * 10 - 1e-9) / 10:.1f}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 0.95 else f"{value:.1f}"


def _listed(words: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(words) - MOST
    return _and(words if more <= 0 else [*words[:MOST], f"{more} more"])


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
