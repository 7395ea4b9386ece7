"""What plan.json fixes before the first cell is trained: how the report judges, and which seeds it is to judge by."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from experiments.evidence.family import MIN_SEEDS

Points = jsonargparse.typing.restricted_number_type("Points", float, [(">", 0), ("<=", 100)])


@dataclass(frozen=True)
class Asked:
    """What the flags say of it; None and False leave what the folder has."""

    separate: bool = False
    margin: float | None = None  # points
    until: float | None = None  # points
    max_cells: int | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Asked":
        return cls(args.separate_variances, args.margin, args.until, args.max_cells)


def add_statistics(parser: argparse.ArgumentParser) -> None:
    """The flags of what is fixed before training, and of what is known before it."""
    parser.add_argument(
        "--separate-variances",
        action="store_true",
        help="judge each row by the spread of its own variants, where one may spread much more than others: wider "
        "intervals; fixed before training",
    )
    parser.add_argument(
        "--margin",
        type=Points,
        metavar="POINTS",
        help="also say which differences are smaller than this, in points of mIoU",
    )
    parser.add_argument(
        "--until",
        type=Points,
        metavar="POINTS",
        help="add as many seeds as make the interval of a difference plus and minus this or narrower, by the spread "
        f"of the planned seeds, at least {MIN_SEEDS}; fixed before training",
    )
    parser.add_argument(
        "--max-cells",
        type=jsonargparse.typing.PositiveInt,
        metavar="N",
        help="with --until: add this many cells at most, in whole seeds",
    )
    parser.add_argument(
        "--pilot",
        type=Path,
        metavar="DIR",
        help="folder of an experiment, by whose spread the plan says what it can see (default: the folder itself, or a "
        "record of the same study and data)",
    )


def check_asked(asked: Asked, stored: Mapping[str, Any], seeds: Sequence[int], out: Path, *, only_seeds: bool) -> None:
    """Raises as `decide` will, as far as flags and folder tell before the data are read and anything is measured."""
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must differ from one another, got {list(seeds)}")
    kept = [] if only_seeds else stored.get("seeds", [])
    trained = any(path for name in stored.get("variants", ()) for path in (out / name).glob("seed*/result.json"))
    every = [*kept, *(seed for seed in seeds if seed not in kept)]
    decide(asked, stored, every, out, trained=trained, only_seeds=only_seeds)


def decide(
    asked: Asked,
    stored: Mapping[str, Any],
    seeds: Sequence[int],
    out: Path,
    *,
    trained: bool,
    only_seeds: bool = False,
) -> dict[str, Any]:
    """`statistics`, `seeds_planned` and `looks` of the plan of these `seeds`.

    `trained`: the folder has finished cells, so that what its plan has fixed stays. Raises ValueError where the flags
    say otherwise, or contradict one another.
    """
    kept = stored.get("statistics", {})
    separate = asked.separate or kept.get("variances") == "separate"
    until = kept.get("until") if asked.until is None else asked.until
    if trained and stored:
        if separate != (kept.get("variances") == "separate"):
            raise ValueError(_fixed(out, "without --separate-variances", "--separate-variances"))
        if until != kept.get("until"):
            was = f"with --until {kept['until']}" if kept.get("until") else "without --until"
            raise ValueError(_fixed(out, was, f"--until {until}"))
    stage = list(kept.get("stage") or seeds) if trained else list(seeds)
    if until is None and asked.max_cells is not None:
        raise ValueError("--max-cells is the most that --until adds: add --until POINTS, or leave it out")
    if until is not None:
        _check_until(separate, stage, only_seeds)
    statistics = {
        "variances": "separate" if separate else "pooled",
        "margin": kept.get("margin") if asked.margin is None else asked.margin,
        "until": until,
    }
    if until is not None:
        statistics |= {"stage": stage} | ({"needed": kept["needed"]} if trained and "needed" in kept else {})
    if trained and (kept.get("margin_after") or statistics["margin"] != kept.get("margin")):
        statistics["margin_after"] = True
    if not trained:
        return {"statistics": statistics, "seeds_planned": list(seeds), "looks": []}
    if "seeds_planned" not in stored:  # of an earlier version
        return {"statistics": statistics}
    looks = list(stored.get("looks", []))
    adds = not {*seeds} <= {*stored["seeds"]}
    if adds and (out / "report.html").exists() and stored["seeds"] not in looks:
        looks.append(stored["seeds"])
    return {"statistics": statistics, "seeds_planned": stored["seeds_planned"], "looks": looks}


def _check_until(separate: bool, stage: Sequence[int], only_seeds: bool) -> None:
    if separate:
        raise ValueError(
            "--until counts seeds by one variance of all variants, and --separate-variances has none: leave one of "
            "them out"
        )
    if only_seeds:
        raise ValueError(
            "--only-seeds would leave out seeds that --until has measured or added: leave it out, or choose another "
            "folder with --out"
        )
    if len(stage) < MIN_SEEDS:
        raise ValueError(
            f"--until measures the spread by the planned seeds, at least {MIN_SEEDS}, got --seeds "
            f"{' '.join(map(str, stage))}: add seeds"
        )


def _fixed(out: Path, was: str, flag: str) -> str:
    return (
        f"{out} has finished cells and was planned {was}: that is fixed before training, and {flag} comes behind it. "
        "Choose another folder with --out, or leave the flag out"
    )
