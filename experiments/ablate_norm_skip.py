"""Does a U-Net need normalisation, and do skip connections stand in for it?

    python -m experiments.ablate_norm_skip
    python -m experiments.ablate_norm_skip --data camvid --root DIR

A U-Net with two factors crossed: the normalisation after each convolution (the paper of 2015 has none), and the skips.
Without skips the decoder is widened until the network has as many parameters as with them.
Answer: experiments/results/ablate_norm_skip.md
"""

from experiments.grids.ablation import Match, crossed
from experiments.grids.study import Study, cpu_scale, full_size
from lightning_modules.unet import UNetModule

NORMS = ("none", "batch", "group")
STUDY = Study(
    name="ablate_norm_skip",
    question="Does a U-Net need normalisation, and do skip connections stand in for it?",
    baseline="batch+concat",
    variants=crossed(norm=NORMS, skips=("concat", "none")),
    matched={f"{norm}+none": Match(of="parameters", like=f"{norm}+concat") for norm in NORMS},
    base=cpu_scale(UNetModule, width=8, depth=3, match_parameters=True, channels_last=True),
    full_size=full_size(UNetModule, match_parameters=True, optimizer="adamw", momentum=0.9, schedule="poly", lr=1e-3),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
