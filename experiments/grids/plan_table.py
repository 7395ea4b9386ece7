"""What a plan of an ablation shows before anything is trained: its variants, what they cost, the budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.evidence.deviations import planned, statements
from experiments.grids.ablation import Ablation
from experiments.grids.cells import clock
from experiments.grids.fairness import differences
from experiments.runs.run import setting
from experiments.shell.files import read_json

START_SECONDS = 12.0  # of a cell, for imports, data and the test; only the estimate uses it
EVALUATION_STEPS = 0.4  # a validation image costs about this share of a training step of one image: forward only


def cell_seconds(budget: Mapping[str, Any], step_seconds: float, validation_images: int) -> float:
    """An estimate of a cell's time, from that of a step."""
    steps = budget["steps"] + EVALUATION_STEPS * validation_images * budget["epochs"] / budget["batch"]
    return START_SECONDS + float(steps * step_seconds)


def show_content(content: Mapping[str, Any], seeds: Sequence[int], console: Console) -> None:
    """The table of a plan as plan.json holds it, and the sentences on its budget."""
    baseline, variants = content["baseline"], content["variants"]
    table = Table("variant", title=f"{content['experiment']}: {len(variants)} variants x {len(seeds)} seeds")
    factors = [setting(factor) for factor in content["factors"]]
    changed = dict.fromkeys(key for of_one in content["differences"].values() for key in of_one)
    differing = [key for key in factors if key in changed] + [key for key in changed if key not in factors]
    for key in differing:
        name = key.removeprefix("hparams.")
        table.add_column(escape(name if key in factors else f"({name})"))
    for column in ("parameters", "ratio", "GMAC", "ratio", "ms/step", "peak MB", "est. time"):
        table.add_column(column, justify="right")
    base = variants[baseline]
    for name, variant in variants.items():
        settings = planned(content, name)
        seconds = cell_seconds(content["budget"][name], variant["step_seconds"], content.get("validation_images", 0))
        table.add_row(
            escape(name + (" (baseline)" if name == baseline else "")),
            *(escape(str(settings.get(key, "-"))) for key in differing),
            f"{variant['parameters']:,}",
            f"{variant['parameters'] / base['parameters']:.2f}",
            f"{variant['gmac']:.3g}",
            f"{variant['gmac'] / base['gmac']:.2f}",
            f"{1000 * variant['step_seconds']:.0f}",
            f"{variant['peak_memory_mb']:.0f}",
            clock(len(seeds) * seconds),
        )
    console.print(table)
    for line in statements(content):
        console.print(line, soft_wrap=True, markup=False)
    followed = ", in brackets what follows from them" if len(differing) > len(factors) else ""
    console.print(
        f"The table has the factors{followed}; the other {len(content['common'])} settings are equal in all variants.",
        soft_wrap=True,
        markup=False,
    )


def show_stored(out: Path, seeds: Sequence[int], reason: str, console: Console) -> bool:
    """Where the data are not, a dry run can show the plan that was stored with them; False where there is none."""
    if not (out / "plan.json").exists():
        console.print(f"Not known without the data: {reason}", soft_wrap=True, markup=False)
        return False
    show_content(read_json(out / "plan.json"), seeds, console)
    console.print(
        f"This is the plan stored in {out}; whether the data are still those is not known: {reason}",
        soft_wrap=True,
        markup=False,
    )
    return True


def show_without_data(ablation: Ablation, out: Path, seeds: Sequence[int], reason: str, console: Console) -> None:
    """What a dry run can tell where the data are not: the plan that was stored with them, or what the flags say."""
    if (out / "plan.json").exists():
        show_stored(out, seeds, reason, console)
        return
    differing = dict.fromkeys(key for changed in differences(ablation).values() for key in changed)
    table = Table(
        "variant",
        *(escape(key.removeprefix("hparams.")) for key in differing),
        title=f"{ablation.name}: {len(ablation.runs)} variants x {len(seeds)} seeds",
    )
    for name, run in ablation.runs.items():
        table.add_row(escape(name), *(escape(str(run.resolved().get(key, "-"))) for key in differing))
    console.print(table)
    console.print(
        "Not known without the data: steps, parameters, multiply-adds, time and memory, and whether the variants are "
        f"trained alike. {reason}",
        soft_wrap=True,
        markup=False,
    )
