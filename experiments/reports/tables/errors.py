"""Tables of how the predictions err: where, by which segments, how surely, and which classes are mistaken for which."""

from experiments.evidence.confusions import confusion_shares, frequent_confusions
from experiments.evidence.experiment import Experiment
from experiments.reports.tables.text import (
    Table,
    as_sentence,
    mean_std,
    number,
    of_fewer,
    seeds_done,
    seeds_listed,
    signed,
)
from lightning_modules.components.scores.table import BOUNDARY, PERCENT, errors


def error_table(experiment: Experiment) -> Table:
    """What cells of earlier versions did not store is a dash, and a note says so."""
    plan, rows, shown = experiment.plan, [], errors()
    for name in plan["variants"]:
        row = [name, seeds_done(experiment, name)]
        for score, printed in shown.items():
            estimate = experiment.estimate(name, score).times(printed.unit.factor)
            change = experiment.difference(name, plan["baseline"], score).times(printed.unit.factor)
            alone = name == plan["baseline"] or not change.n
            row.append(mean_std(estimate, 2) + ("" if alone else f" ({signed(change.mean, 2)})"))
        rows.append(row)
    titles = {score: f"{printed.title} ({printed.unit.sign})" for score, printed in shown.items()}
    stored = {score for score in shown if any(experiment.estimate(name, score).n for name in plan["variants"])}
    untested = "None of these differences is tested: no interval and no star stands for them."
    notes = [untested, *(printed.meaning for score, printed in shown.items() if score in stored)]
    if "boundary_errors" in stored:
        place = notes.index(shown["boundary_errors"].meaning)
        notes[place] += f"; {number(PERCENT[1] * _share_near(experiment), 1)} % of all labelled pixels lie there."
    if len(stored) < len(shown):
        absent = ", ".join(f'"{title}"' for score, title in titles.items() if score not in stored)
        reason = "the cells were trained by a version that did not, or there are too many classes for trimaps"
        notes.append(f"Not stored: what {absent} would need; {reason}. Cells that are trained again have it.")
    title = (
        f"Error anatomy on {plan['data']}: mean ± standard deviation over seeds (difference to {plan['baseline']} in "
        "percentage points, paired by seed)"
    )
    caption = (
        f"Where and how the predictions on {plan['data']} err, mean ± standard deviation over the seeds "
        f"{seeds_listed(experiment)}; in brackets the difference to the baseline, paired by seed."
    )
    columns = ["variant", "seeds", *titles.values()]
    fewer = of_fewer(experiment, shown)
    notes += fewer
    briefs = [shown[score].brief for score in shown if score in stored]
    foot = [as_sentence(briefs[first : first + 3]) for first in range(0, len(briefs), 3)]
    foot = [untested, *foot, *fewer]
    foot += ["-: not stored in these cells."] * (len(stored) < len(shown))
    foot += ["A segment is a connected component of one class."] * bool({"missed", "hallucinated"} & stored)
    short = "Errors and calibration"
    return Table("errors", title, columns, rows, notes=notes, short=short, caption=caption, foot=foot)


def confusion_table(experiment: Experiment) -> Table:
    """The most frequent of all pairs of true and predicted class; empty where no pixel is wrong."""
    names, shares = experiment.plan["class_names"], confusion_shares(experiment)
    rows = []
    for (true, predicted), mean in frequent_confusions(shares).items():
        of_variants = [number(PERCENT[1] * float(share[true, predicted]), 1) for share in shares.values()]
        rows.append([names[true], names[predicted], number(PERCENT[1] * mean, 1), *of_variants])
    note = (
        "Each number: of all wrong pixels of the variant, the share in percent that are of the first class and were "
        "taken for the second, mean over seeds. Chosen and ordered by the mean over the variants."
    )
    columns = ["true", "taken for", "mean of the variants (%)", *(f"{name} (%)" for name in shares)]
    caption = (
        "The most frequent confusions: of all wrong pixels of a variant the share in percent that are of the first "
        f"class and were taken for the second, mean over the seeds {seeds_listed(experiment)}."
    )
    title, short = "Most frequent confusions", "Confusions"
    foot = ["Chosen and ordered by the mean over the variants."]
    return Table("confusions", title, columns, rows, texts=2, notes=[note], short=short, caption=caption, foot=foot)


def _share_near(experiment: Experiment) -> float:
    """The share of the labelled pixels within BOUNDARY of a true boundary: that of errors made anywhere alike."""
    cell = next(cell for cell in experiment.finished() if cell.trimap is not None)
    assert cell.trimap is not None
    return float(cell.trimap[:BOUNDARY].sum() / cell.confusion.sum())
