"""What a plan of an ablation shows before anything is trained: its variants, what they cost, the budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.evidence.deviations import PARENTS, planned, statements
from experiments.evidence.scored import WARNING, as_scored, scored
from experiments.grids.ablation import Ablation
from experiments.grids.cells import clock
from experiments.grids.fairness import differences
from experiments.grids.foresight import foresight
from experiments.runs.run import setting
from experiments.shell.found import wanted

# Of a cell, for data and the test, and for imports where it is not forked; only the estimate uses them.
FORKED_SECONDS, START_SECONDS = 3.0, 12.0
EVALUATION_STEPS = 0.4  # a validation image costs about this share of a training step of one image: forward only


def cell_seconds(
    budget: Mapping[str, Any], step_seconds: float, validation_images: int, *, device: str, threads: int
) -> float:
    """An estimate of a cell's time, from that of a step."""
    steps = budget["steps"] + EVALUATION_STEPS * validation_images * budget["epochs"] / budget["batch"]
    start = FORKED_SECONDS if device == "CPU" and threads == 1 else START_SECONDS
    return start + float(steps * step_seconds)


def show_content(content: Mapping[str, Any], seeds: Sequence[int], console: Console) -> None:
    """The table of a plan as plan.json holds it, and the sentences on its budget."""
    baseline, variants, stages = content["baseline"], content["variants"], content.get("stages", {})
    parents, levels = content.get("parents", {}), list(content["factors"])
    table = Table("variant", title=f"{content['experiment']}: {len(variants)} variants x {len(seeds)} seeds")
    # What a step has follows from what it works on.
    trained = [name for name in content["differences"] if not planned(content, name).get("step")]
    followed = dict.fromkeys(key for name in trained for key in content["differences"][name])
    for key in [*map(setting, levels), *PARENTS, *(key for key in followed if key.split(".")[0] == "step")]:
        followed.pop(key, None)
    levels = [name for name in levels if len({str(of_one["levels"][name]) for of_one in variants.values()}) > 1]
    for name in (*levels, *(f"({key.removeprefix('hparams.')})" for key in followed)):
        table.add_column(escape(name))
    for column in ["starts from"] * bool(parents):
        table.add_column(column)
    for column in ("parameters", "ratio", "GMAC", "ratio", "ms/step", "peak MB", "est. time,\nall seeds"):
        table.add_column(column, justify="right")
    base = variants[baseline]
    for name, row in {**stages, **variants}.items():
        settings = {} if name in stages else planned(content, name)
        seconds = cell_seconds(
            content["budget"].get(name) or row["budget"],
            row["step_seconds"],
            content.get("validation_images", 0),
            device=content.get("device", "CPU"),
            threads=content.get("threads", 1),
        )
        kind = " (baseline)" if name == baseline else " (stage)" if name in stages else ""
        table.add_row(
            escape(name + kind),
            *(escape(str(row["levels"][level])) if "levels" in row else "" for level in levels),
            *(escape(_shown(settings.get(key, "-"))) if settings else "" for key in followed),
            *[escape(_origin(parents.get(name, ()), settings.get("step")))] * bool(parents),
            f"{row['parameters']:,}",
            f"{row['parameters'] / base['parameters']:.2f}",
            f"{row['gmac']:.3g}",
            f"{row['gmac'] / base['gmac']:.2f}",
            f"{1000 * row['step_seconds']:.0f}",
            f"{row['peak_memory_mb']:.0f}",
            clock(len(seeds) * seconds) if not settings.get("step") else "-",
        )
    console.print(table)
    for line in ([] if scored(content) == "test" else [WARNING]) + statements(content):
        console.print(as_scored(line, content), soft_wrap=True, markup=False)
    brackets = ", in brackets what follows from them" if followed else ""
    console.print(
        f"The table has the factors{brackets}; the other {len(content['common'])} settings are equal in all variants.",
        soft_wrap=True,
        markup=False,
    )


def _origin(parents: Sequence[str], step: str | None) -> str:
    return (f"{step} behind " if step else "") + (", ".join(parents) or "-")


def _shown(value: Any) -> str:
    of = wanted(value)
    return str(of) if of else str(value)


def show_without_data(
    ablation: Ablation | None,
    stored: Mapping[str, Any],
    out: Path,
    seeds: Sequence[int],
    pilot: Path | None,
    reason: str,
    console: Console,
) -> None:
    """What a dry run can tell where the data are not: the plan that was stored with them, or what the flags say.

    `ablation` is None where its settings follow from the data.
    """
    if stored:
        show_content(stored, seeds, console)
        for line in foresight(stored, seeds, out, pilot):
            console.print(line, soft_wrap=True, markup=False)
        console.print(
            f"This is the plan stored in {out}; whether the data are still those is not known: {reason}",
            soft_wrap=True,
            markup=False,
        )
        return
    if ablation is None:
        console.print(f"Not known without the data: {reason}", soft_wrap=True, markup=False)
        return
    of_all = differences(ablation).items()
    differing = dict.fromkeys(key for name, keys in of_all if not ablation.runs[name].step for key in keys)
    table = Table(
        "variant",
        *(escape(key.removeprefix("hparams.")) for key in differing),
        title=f"{ablation.name}: {len(ablation.runs)} variants x {len(seeds)} seeds",
    )
    for name, run in ablation.runs.items():
        table.add_row(escape(name), *(escape(_shown(run.resolved().get(key, "-"))) for key in differing))
    console.print(table)
    console.print(
        "Not known without the data: steps, parameters, multiply-adds, time and memory, and whether the variants are "
        f"trained alike. {reason}",
        soft_wrap=True,
        markup=False,
    )
