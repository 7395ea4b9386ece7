"""What a plan can see, said before it is run: by the spread over seeds of cells that are there already."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evidence.experiment import load_experiment
from experiments.evidence.family import MIN_SEEDS
from experiments.evidence.power import Contrasts, Pilot, about, chance_of_star, pilots, seeds_for, smallest_seen
from experiments.evidence.scored import as_scored

RECORDS = Path(__file__).parents[1] / "results"
SHOWN = (0.7, 0.2)  # chances near which a difference is shown


def foresight(plan: Mapping[str, Any], seeds: Sequence[int], out: Path, pilot: Path | None) -> list[str]:
    """Sentences: which differences `seeds` can show, and of --until how many seeds it will come to.

    `plan` is what plan.json holds or will hold. Raises ValueError for a pilot that tells nothing.
    """
    contrasts, count = Contrasts.of(plan), len(seeds)
    until, stage = (plan.get("statistics", {}).get(key) for key in ("until", "stage"))
    named = _seeds(count)
    if not contrasts.weights:
        return []
    if count < MIN_SEEDS:
        return [f"{named}: no star is possible; {MIN_SEEDS} are needed."]
    spread, source = _known(plan, out, pilot)
    if spread is None or not spread.sd:
        unknown = f"{named}: which differences can get a star is not known, as no spread over seeds is"
        return [f"{unknown}: --pilot DIR takes that of another experiment."]
    by = f"sd {spread.sd:.2f} points ({spread.df} degrees of freedom), {source}"
    df, said = contrasts.df(count), list[str]()
    if until is not None:
        df = contrasts.df(len(stage))
        needed = seeds_for(until, spread.sd, df, contrasts.level(len(stage), df))
        cells = max(needed - len(stage), 0) * len(contrasts.variants)
        said.append(
            f"--until {until} will take {about(needed)} seeds, {cells:,} cells after the {_seeds(len(stage))} of stage "
            "one, if the spread is this one."
        )
        count = max(count, needed)
    return [as_scored(_chances(count, spread.sd, df, contrasts.level(count, df), by), plan), *said]


def _chances(seeds: int, sd: float, df: int, level: float, by: str) -> str:
    rounded = dict.fromkeys(_rounded(smallest_seen(chance, sd, df, seeds, level)) for chance in SHOWN)
    shown = [(value, f"{100 * chance_of_star(value, sd, df, seeds, level):.0f} %") for value in rounded]
    (most, chance), *less = shown
    said = f"{_seeds(seeds)}: {_points(most)} {'has' if most == 1 else 'have'} a {chance} chance of a star"
    said += "".join(f", {_points(value)} {chance}" for value, chance in less)
    return f"{said}, on the same test images (by {by})."


def read_pilot(folder: Path) -> Pilot:
    """Raises ValueError for a folder that tells no spread."""
    try:
        spread = Pilot.of(load_experiment(folder))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"--pilot: {error}") from error
    if spread is None:
        raise ValueError(f"--pilot {folder} tells no spread: expected 2 variants with 2 finished seeds or more")
    return spread


def _known(plan: Mapping[str, Any], out: Path, pilot: Path | None) -> tuple[Pilot | None, str]:
    """A spread, and where it is from: the pilot, the folder's own finished cells, or a record."""
    if pilot is not None:
        return read_pilot(pilot), f"of the pilot {pilot}"
    if (out / "plan.json").exists():
        try:
            if spread := Pilot.of(load_experiment(out)):
                return spread, f"of the finished cells of {out}"
        except ValueError:  # a damaged cell, which is trained again
            pass
    for record in sorted(RECORDS.glob("*.md")):
        try:
            for spread in pilots(record.read_text(encoding="utf-8")):
                if (spread.experiment, spread.data) == (plan["experiment"], plan["data"]):
                    return spread, f"of the record {RECORDS.parent.name}/{RECORDS.name}/{record.name}"
        except ValueError as error:
            raise ValueError(f"{record}: {error}. Write it anew, or delete the line") from error
    return None, ""


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _points(value: float) -> str:
    return f"{value:g} point{'s' * (value != 1)}"


def _rounded(value: float) -> float:
    """To a half of its first digit below 3, and to a whole one above: 1.5, 2, 2.5, 3, 4 ... 10, 15."""
    unit = 10.0 ** math.floor(math.log10(value))
    step = unit / 2 if value < 3 * unit else unit
    return float(f"{step * round(value / step):.2g}")
