"""What do the finer streams of FCN buy: 32s, 16s or 8s?

    python -m experiments.ablate_fcn_strides
    python -m experiments.ablate_fcn_strides --data camvid --root DIR
    python -m experiments.ablate_fcn_strides --staged

One encoder, and logits from stride 32 alone, or joined by scores at stride 16 and 8 before they are upsampled. All are
trained at once for the same steps. With `--staged` FCN-16s begins with the trained FCN-32s, and FCN-8s with that, as in
the paper (Sec. 4.2): each stage has the same steps, so the finer networks have more behind them, which plan and report
say. The paper's rate falls a hundredfold at each stage, for Caffe's weights, whose pool4 and pool3 are large; here all
stages have one rate.
Long, Shelhamer, Darrell 2015, Table 2: 59.4, 62.4 and 62.7 % mean IoU on a subset of PASCAL VOC 2011.
Answer: experiments/results/ablate_fcn_strides.md
"""

from dataclasses import replace

from experiments.grids.study import Base, Flag, Study, cpu_scale, full_size
from experiments.runs.run import defaults
from lightning_modules.fcn import LEARNING_RATES, PIXELS, FCNModule

# As published: VGG16, all at once, one image a step. The published rate is for a loss summed over PIXELS, of which a
# crop here has a seventh to two thirds, so a sum would take as much smaller steps. The mean takes the same steps on a
# crop of any size, with PIXELS times the rate and a PIXELS-th of the decay, which is multiplied by the rate.
PUBLISHED = {
    "loss": "ce",
    "lr": LEARNING_RATES[32] * PIXELS,
    "weight_decay": defaults(FCNModule)["weight_decay"] / PIXELS,
}


def staged(study: Study, _: bool = True) -> Study:
    """Each network from the trained one of twice its stride."""

    def in_stages(base: Base) -> Base:
        return replace(base, hparams={**base.hparams, "at_once": False})

    return replace(
        study,
        name=f"{study.name}_staged",
        base=in_stages(study.base),
        full_size=in_stages(study.full_size) if study.full_size else None,
        parents={"fcn-16s": "fcn-32s", "fcn-8s": "fcn-16s"},
    )


STUDY = Study(
    name="ablate_fcn_strides",
    question="What do the finer streams of FCN buy: 32s, 16s or 8s?",
    baseline="fcn-8s",
    variants={f"fcn-{stride}s": {"stride": stride} for stride in (32, 16, 8)},
    # At CPU scale a narrow residual encoder with batch norm, which learns from scratch in minutes; VGG16 does not.
    base=cpu_scale(FCNModule, encoder="resnet50", encoder_width=0.25, loss="ce", channels_last=True),
    # Pass the weights of VGG16 with --weights.
    full_size=full_size(FCNModule, data={"batch_size": 1}, **PUBLISHED),
    flags=(Flag(name="--staged", help="train FCN-16s from the trained FCN-32s, and FCN-8s from that", change=staged),),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
