"""Which cells learnt nothing: their class accuracy is no better than that of guessing."""

from experiments.evidence.experiment import Experiment

MOST = 3  # variants that the sentence names
WAYS_OUT = (
    "No better than chance: the accuracy of the C true classes is at most 1/C + 2 points on average. Train longer, "
    "raise the rate or weight the classes."
)


def failed(experiment: Experiment) -> dict[str, int]:
    """By variant, how many of its cells are no better than chance; without those that have none."""
    counts = {name: sum(cell.at_chance for cell in cells.values()) for name, cells in experiment.cells.items()}
    return {name: count for name, count in counts.items() if count}


def failed_line(experiment: Experiment) -> str:
    """What stands above the answer; empty where every cell has learnt something."""
    counts = failed(experiment)
    if not counts:
        return ""
    named = [f"{count} of {len(experiment.cells[name])} cells of {name}" for name, count in counts.items()]
    if (more := len(named) - MOST) > 0:
        named = [*named[:MOST], f"some of {more} other variant{'s' * (more > 1)}"]
    constant, one = sum(bool(cell.constant) for cell in experiment.finished()), sum(counts.values()) == 1
    everywhere = f" ({constant} predict{'s' * (constant == 1)} one class everywhere)" if constant else ""
    verb, whose = ("is", "its") if one else ("are", "their")
    listed = " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
    return (
        f"{listed} {verb} no better than chance{everywhere}: {whose} training failed, and what follows measures that."
    )


def without_failed(experiment: Experiment) -> str:
    """Of unequal spreads: which variants' failed cells widen the others' intervals, and the way out."""
    names, baseline = list(failed(experiment)), experiment.plan["baseline"]
    if not names:
        return ""
    who = f"Failed cells of {', '.join(names)} widen the intervals of all variants"
    rest = [name for name in experiment.cells if name not in (*names, baseline)]
    if baseline in names or not rest:
        return f"{who}."
    compared = " ".join(rest) if len(rest) <= MOST else "and the names of the others"
    return f"{who}: python -m experiments.report DIR --only {compared} leaves them out."
