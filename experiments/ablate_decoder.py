"""What should a decoder get from the encoder? Table 1 of SegNet.

    python -m experiments.ablate_decoder
    python -m experiments.ablate_decoder --data camvid --root DIR

Eight small networks share four encoder stages. They differ in how the decoder upsamples (maxima's positions, bilinear,
transposed convolution) and in what it gets from the encoder (nothing, positions, all maps, or a few channels of them).
They are as large as the paper has them, so parameters differ: 0.625 to 1.625 million at full width.
Badrinarayanan, Kendall, Cipolla 2017, Table 1: on CamVid the additions of all encoder maps win and bilinear
interpolation alone loses.
Answer: experiments/results/ablate_decoder.md
"""

from experiments.grids.study import Study, cpu_scale, full_size
from lightning_modules.segnet import SegNetModule

VARIANTS = (
    "basic",
    "basic-encoder-addition",
    "basic-single-channel-decoder",
    "bilinear-interpolation",
    "fcn-basic",
    "fcn-basic-no-addition",
    "fcn-basic-no-dim-reduction",
    "fcn-basic-no-addition-no-dim-reduction",
)
STUDY = Study(
    name="ablate_decoder",
    question="What should a decoder get from the encoder? (SegNet, Table 1)",
    baseline="basic",
    variants={variant: {"variant": variant} for variant in VARIANTS},
    # As in the other studies, where a rate is for the mean weighted by class.
    base=cpu_scale(SegNetModule, width=16, loss="ce", channels_last=True),
    full_size=full_size(SegNetModule, loss="ce"),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
