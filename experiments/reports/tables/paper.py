"""The table of a paper: a row a variant, of columns that the author chooses, and a sentence on the test."""

from collections.abc import Callable, Sequence

from experiments.evidence.energy import Energies
from experiments.evidence.energy import digits as of_energy
from experiments.evidence.estimate import Estimate
from experiments.evidence.experiment import Experiment
from experiments.evidence.scored import as_scored
from experiments.reports.tables.evidence import reasons
from experiments.reports.tables.scores import decimals
from experiments.reports.tables.text import GMAC, Table, as_sentence, millions, number, p_value, seeds_done, starred
from lightning_modules.components.scores.table import PERCENT, numbers

Cell = Callable[[Experiment, str, int], str]  # of a variant, with decimals of what is in percent


def _score(score: str) -> Cell:
    def cell(experiment: Experiment, name: str, digits: int) -> str:
        unit = numbers()[score].unit
        shown = digits if unit == PERCENT else decimals(experiment)[score]
        return _mean_std(experiment.estimate(name, score).times(unit.factor), shown)

    return cell


def _mean_std(estimate: Estimate, digits: int) -> str:
    if not estimate.n:
        return "-"
    return number(estimate.mean, digits) + (f" ± {number(estimate.std, digits)}" if estimate.n > 1 else "")


def _difference(experiment: Experiment, name: str, digits: int) -> str:
    row = experiment.comparisons.get(name)
    if name == experiment.plan["baseline"]:
        return "baseline"
    return "-" if row is None else starred(row.times(PERCENT[1]), digits).removesuffix(" [-]")


def _adjusted(experiment: Experiment, name: str, digits: int) -> str:
    row = experiment.comparisons.get(name)
    return "-" if row is None or row.reason else p_value(row.adjusted)


def _milliseconds(key: str) -> Cell:
    def cell(experiment: Experiment, name: str, digits: int) -> str:
        seconds = experiment.plan["variants"][name].get(key)
        total = sum(seconds.values()) if isinstance(seconds, dict) else seconds
        return number(None if total is None else 1000 * total, 1)

    return cell


def _of_plan(key: str, digits: int) -> Cell:
    return lambda experiment, name, _: number(experiment.plan["variants"][name][key], digits)


def _energy(experiment: Experiment, name: str, digits: int) -> str:
    energies = Energies(experiment)
    return number(energies.mean(name), of_energy([*energies.watt_hours.values()]))


COLUMNS: dict[str, tuple[str, Cell]] = {
    "variant": ("variant", lambda experiment, name, digits: name),
    "seeds": ("seeds", lambda experiment, name, digits: seeds_done(experiment, name)),
    **{score: (f"{printed.title} ({printed.unit.sign})", _score(score)) for score, printed in numbers().items()},
    "difference": ("difference (points)", _difference),
    "p": ("p, all together", _adjusted),
    "parameters": ("parameters (M)", lambda e, name, digits: number(millions(e.plan["variants"][name]), 2)),
    "gmac": ("GMAC", _of_plan("gmac", 2)),
    "step": ("step (ms)", _milliseconds("step_seconds")),
    "image": ("image (ms)", _milliseconds("image_seconds")),
    "memory": ("peak memory (MB)", _of_plan("peak_memory_mb", 0)),
    "energy": ("energy (Wh)", _energy),
}
# What the title of a column leaves open, a clause each.
MEANINGS = {score: printed.brief for score, printed in numbers().items() if score != "miou" and printed.brief}
MEANINGS |= {
    "gmac": GMAC,
    "parameters": "M: millions",
    "p": "p: of the difference, by the same test",
    "step": "step: median time of a training step",
    "image": "image: median time to predict one test image",
    "memory": "peak memory: of training",
}
UNMEASURED = "Energy: not measured; an ablation with --energy measures it."
USUAL = ("variant", "miou", "difference", "gmac")


def paper_table(
    experiment: Experiment, columns: Sequence[str] = (), *, transpose: bool = False, digits: int = 2
) -> Table:
    """The columns, by their keys in COLUMNS, of every variant; `transpose` gives each variant a column.

    By default four: where no multiply-adds were counted, parameters stand in their place.
    """
    plan = experiment.plan
    counted = any(variant["gmac"] is not None for variant in plan["variants"].values())
    keys = list(dict.fromkeys(columns or (USUAL if counted else (*USUAL[:-1], "parameters"))))
    keys = ["variant", *(key for key in keys if key != "variant")]
    rows = [[COLUMNS[key][1](experiment, name, digits) for key in keys] for name in plan["variants"]]
    titles = [COLUMNS[key][0] for key in keys]
    if transpose:
        grid = [list(line) for line in zip(titles, *rows, strict=True)]
        titles, rows = grid[0], grid[1:]
    told = [f"mean{' ± standard deviation' if _spread(experiment) else ''} over {count_seeds(experiment)}"]
    if "difference" in keys:
        told.append(f"and difference of mIoU to {plan['baseline']}")
    caption = as_scored(f"Test scores on {plan['data']}: {' '.join(told)}.", plan)
    notes = [test_note(experiment)] if {"difference", "p"} & {*keys} else []
    explained = [key for key in keys if key in MEANINGS and (key != "p" or experiment.family.judged)]
    if meanings := [MEANINGS[key] for key in explained]:
        on = f", on {plan['device']}" if {"step", "image", "memory"} & {*keys} else ""
        notes.append(as_scored(as_sentence(meanings).removesuffix(".") + f"{on}.", plan))
    notes += (Energies(experiment).notes() or [UNMEASURED]) if "energy" in keys else []
    return Table("answer", caption.removesuffix("."), titles, rows, notes=notes, short="Answer", caption=caption)


def test_note(experiment: Experiment) -> str:
    """One sentence that names the test and the family of what is judged together."""
    family = experiment.family
    if not family.judged:
        return f"No interval and no star: {reasons(family.rows.values())}."
    several = family.judged > 1
    test = "two-sided max-|t| test (Hothorn et al. 2008)" if several else "two-sided t test"
    if family.separate:
        test = "two-sided paired t test" + (" with Bonferroni's correction" if several else "")
    of = f"the family of all {family.judged} comparisons and effects" if several else "one comparison"
    images = "on these images only" if family.images_only else f"and other images ({family.groups} groups)"
    together = "simultaneous 95 % interval" if several else "95 % interval"
    scope = f"of the {test} of {of}, for other seeds {images}."
    if any(row.star for row in family.rows.values()):
        return f"In brackets the {together} {scope[:-1]}; *: 0 lies outside."
    return f"In brackets the {together} {scope[:-1]}; none leaves out 0."


def _spread(experiment: Experiment) -> bool:
    return any(len(cells) > 1 for cells in experiment.cells.values())


def count_seeds(experiment: Experiment) -> str:
    """How many there are of how many, in words."""
    done = sorted({len(cells) for cells in experiment.cells.values()})
    planned = len(experiment.plan["seeds"])
    if done == [planned]:
        return f"{planned} seed{'s' if planned > 1 else ''}"
    return f"{done[0]}{f' to {done[-1]}' if len(done) > 1 else ''} of {planned} seeds"
