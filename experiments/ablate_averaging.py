"""What does it buy to average the weights, or to measure batch-norm statistics anew, before a network is scored?

    python -m experiments.ablate_averaging --seeds 0 1 2 3 4 5 6 7 8 9
    python -m experiments.ablate_averaging --data camvid --root DIR

Three networks with batch norm, two U-Nets and an FCN-8s, are trained once a seed, by the recipe of the study that has
them. The same training is scored four times. `none` has its last weights, `recalibrate` also batch-norm statistics of
240 training crops, the same for all seeds. `ema` has an exponential moving average of the weights, `ema+recalibrate`
both. Beside the means, the report says what an average changes within a training, how much closer the seeds lie
together than with `none`, and how much a seed does to all networks alike.
Izmailov et al. 2018 measure the statistics anew behind averaged weights; Polyak and Juditsky 1992 average them.
Answer: experiments/results/ablate_averaging.md
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from experiments.evidence.spread import common, mean_with_interval, ratio_of_deviations
from experiments.grids.ablation import Measured
from experiments.grids.cells import PlannedCell
from experiments.grids.study import Study, cpu_scale, full_size
from experiments.runs.run import Run, defaults
from experiments.runs.step import Step
from lightning_modules.components.averaging import AVERAGES
from lightning_modules.fcn import FCNModule
from lightning_modules.unet import UNetModule

NETWORKS = ("U-Net", "U-Net without skips", "FCN on ResNet-50")
CROSSED = [(network, average) for network in NETWORKS for average in AVERAGES]


def stages(base: Run) -> tuple[Mapping[str, Run], Run]:
    """The three networks, whose checkpoints keep the last weights and their average."""
    shared = {name: value for name, value in base.hparams.items() if name in defaults(FCNModule)}
    narrow = {"encoder_width": 0.25, "lr": 2e-3} if "width" in base.hparams else {}
    residual = shared | {"encoder": "resnet50", "loss": "ce", "weight_decay": 1e-4, **narrow}
    networks = (base, base.but(skips="none"), replace(base, module=FCNModule, hparams=residual))
    return dict(zip(NETWORKS, networks, strict=True)), base


def describe(cells: Sequence[PlannedCell], say: Callable[[str], None]) -> Measured:
    """Notes on how far the seeds lie apart that have all scores, with each average."""
    scores = {(c.variant, c.planned.seed): 100 * c.result["test"]["miou"] for c in cells if not c.stage and c.result}
    seeds = [s for s in dict.fromkeys(seed for _, seed in scores) if all((v, s) in scores for v in STUDY.variants)]
    if len(seeds) < 3:
        return Measured(notes=["How far seeds lie apart is compared from three seeds on that have all scores."])
    by = {a: np.array([[scores[f"{n}, {a}", s] for s in seeds] for n in NETWORKS]) for a in AVERAGES}
    notes = []
    parts = [(network, [i]) for i, network in enumerate(NETWORKS)] + [("all together", [*range(len(NETWORKS))])]
    for average in AVERAGES[1:]:
        changes = [(name, mean_with_interval((by[average] - by["none"])[arms].mean(axis=0))) for name, arms in parts]
        said = ", ".join(f"{name} {mean:+.2f} [{low:.2f}, {high:.2f}]" for name, (mean, low, high) in changes)
        notes.append(
            f"What {average} changes in the same training, in points of mIoU, mean of {len(seeds)} seeds and its 95 % "
            f"interval (Student's t, each by itself): {said}."
        )
    for average in AVERAGES[1:]:
        ratios = [(name, ratio_of_deviations(by[average][arms], by["none"][arms])) for name, arms in parts]
        said = ", ".join(
            f"{name} unknown" if math.isnan(ratio) else f"{name} {ratio:.2f} [{low:.2f} to {high:.2f}]"
            for name, (ratio, low, high) in ratios
        )
        notes.append(
            f"Standard deviation over {len(seeds)} seeds with {average}, as a multiple of that with none, and its "
            f"95 % interval (Pitman-Morgan, each by itself): {said}."
        )
    blocks = [f"{a} {c.f:.1f} (p {c.p:.2g}, share {c.share:.2f})" for a in AVERAGES if (c := common(by[a]))]
    notes.append(
        f"What a seed does to the three networks alike: F of the seeds' block, 1 by chance, and its share of the "
        f"variance over seeds: {', '.join(blocks)}."
    )
    notes.append(
        "The four scores of a training go together, and the tables count them as four. So their intervals between two "
        "averages are wider than need be (the changes above are within a training), and those between two networks are "
        "too narrow: the networks are no question of this study."
    )
    return Measured(notes=notes)


STUDY = Study(
    name="ablate_averaging",
    question="What does it buy to average the weights, or to measure batch-norm statistics anew, before the test?",
    baseline="U-Net, none",
    variants={f"{network}, {average}": {"step": Step("average", {"average": average})} for network, average in CROSSED},
    levels={f"{network}, {average}": {"network": network, "average": average} for network, average in CROSSED},
    parents={f"{network}, {average}": network for network, average in CROSSED},
    stages=stages,
    finish=describe,
    base=cpu_scale(
        UNetModule,
        norm="batch",
        width=8,
        depth=3,
        match_parameters=True,
        lr=5e-3,
        weight_decay=defaults(UNetModule)["weight_decay"],
        channels_last=True,
        average="ema",
    ),
    full_size=full_size(
        UNetModule,
        norm="batch",
        match_parameters=True,
        optimizer="adamw",
        momentum=0.9,
        schedule="poly",
        lr=1e-3,
        average="ema",
    ),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
