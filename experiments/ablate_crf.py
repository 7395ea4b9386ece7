"""What does a CRF buy: none, a dense or a convolutional one, behind a trained network or trained end to end with it?

    python -m experiments.ablate_crf
    python -m experiments.ablate_crf --data camvid --root DIR --weights package
    python -m experiments.ablate_crf --data camvid --root DIR --weights imagenet --full-size

A network is trained for `--epochs`; every variant goes on from it for `--finetune` more, so that all have the same
budget. `none` goes on without a CRF. `dense` and `conv` are `none` with a CRF behind it, whose parameters are searched
on validation images for each seed; where no setting beats none, they are `none`.
`dense-trained` and `conv-trained` go on through the mean field of that CRF, whose weights and compatibility start from
what was found and learn with the network (CRF-as-RNN, Zheng et al. 2015; ConvCRF, Teichmann & Cipolla 2018). Beside the
usual scores: the trimap, mIoU within 1 to 20 pixels of a true boundary, and the seconds of an image. SegNet
(Badrinarayanan et al. 2017) reports DeepLab-LargeFOV with and without its dense CRF: 54.74 and 53.88 % mIoU on CamVid,
24.13 and 32.08 % on SUN RGB-D. So a CRF can hurt.
Answer: experiments/results/ablate_crf.md
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from jsonargparse.typing import PositiveInt

from experiments.crfs.behind import measure_crfs
from experiments.grids.study import Flag, Study, cpu_scale, full_size
from experiments.runs.run import Run, defaults
from experiments.runs.step import Step
from experiments.shell.found import found
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import NETWORKS
from lightning_modules.crf_as_rnn import CRFasRNNModule, check_options

CRFS = ("dense", "conv")
LR_FACTOR = 0.1  # of the first network's rate: the variants fine-tune it
IMAGES = 50  # validation images of a search, which is repeated for each seed; DeepLab took 100, once
# AdamW steps by its rate: of the kernels' weights, 3 to 10, by at most 0.01 (CamVid) or 0.02 (brain).
SHARED: dict[str, Any] = {"crf": "none", "crf_lr_factor": 100.0}


def stages(base: Run, finetune: int | None = None) -> tuple[Mapping[str, Run], Run]:
    """The network on its own, by its own module, and what every variant goes on with.

    That is a third as many epochs unless `finetune` says how many, 20 at most, at `LR_FACTOR` of the rate.
    """
    recipe = {name: value for name, value in base.hparams.items() if name in defaults(SegmentationModule)}
    options = dict(base.hparams.get("network_options") or {})
    architecture = NETWORKS[base.resolved()["hparams.network"]]
    check_options("network_options", options, architecture.network)
    network = replace(base, module=architecture.module, hparams={**recipe, **options})
    options.pop("weights", None)  # those of the encoder are in the network's checkpoint
    epochs = finetune or min(20, max(1, base.resolved()["trainer.max_epochs"] // 3))
    after = base.but(
        lr=LR_FACTOR * network.resolved()["hparams.lr"],
        network_options=options,
        trainer={"max_epochs": epochs, "check_val_every_n_epoch": epochs},
    )
    return {"network": network}, after


def variants(images: int = IMAGES) -> dict[str, dict[str, Any]]:
    return {
        "none": {},
        **{crf: {"step": Step("crf", {"crf": crf, "images": images})} for crf in CRFS},
        **{f"{crf}-trained": {"crf": crf, "crf_options": found(crf, "crf_options")} for crf in CRFS},
    }


STUDY = Study(
    name="ablate_crf",
    question="What does a CRF buy: none, dense or convolutional, behind a network or trained end to end with it?",
    baseline="none",
    variants=variants(),
    parents={"none": "network", **dict.fromkeys(CRFS, "none"), **{f"{crf}-trained": "network" for crf in CRFS}},
    stages=stages,
    levels={
        "none": {"crf": "none", "trained": "network alone"},
        **{crf: {"crf": crf, "trained": "network alone"} for crf in CRFS},
        **{f"{crf}-trained": {"crf": crf, "trained": "end to end"} for crf in CRFS},
    },
    finish=measure_crfs,
    base=cpu_scale(
        CRFasRNNModule,
        network="unet",
        network_options={"width": 8, "depth": 3},
        channels_last=True,
        exceptions={
            "brain": {"trainer.check_val_every_n_epoch": 12},
            # FCN-8s is the network that CRF-as-RNN stands on.
            "camvid": {
                "network": "fcn",
                "network_options": {"stride": 8, "at_once": False, "encoder": "tu-tf_efficientnet_lite0"},
                "channels_last": False,  # slower for this network
                "loss": "ce",
                "lr": 1e-3,
                "data.scale": 0.5,
                "data.crop": (160, 224),
                "trainer.max_epochs": 8,
                "trainer.check_val_every_n_epoch": 8,
            },
            "shapes": {
                "network_options": {"width": 4, "depth": 2},
                "data.size": 32,
                "data.length": 8,
                "trainer.check_val_every_n_epoch": 2,
            },
        },
        **SHARED,
    ),
    full_size=full_size(
        CRFasRNNModule,
        network="unet",
        exceptions={
            # On VGG16 and whole images, as in CRF-as-RNN (--weights imagenet); the published rates are for a sum over
            # pixels.
            "camvid": {
                "network": "fcn",
                "loss": "ce",
                "optimizer": "adamw",
                "momentum": 0.9,
                "lr": 1e-4,
                "schedule": "poly",
                "data.crop": (360, 480),
                "data.batch_size": 4,
            },
        },
        **SHARED,
    ),
    flags=(
        Flag(
            name="--finetune",
            help="epochs of every variant after the network's (default: a third of those, 20 at most)",
            read=PositiveInt,
            change=lambda study, epochs: replace(study, stages=partial(stages, finetune=epochs)),
        ),
        Flag(
            name="--images",
            help=f"validation images of a search (default: {IMAGES})",
            read=PositiveInt,
            change=lambda study, images: replace(study, variants=variants(images)),
        ),
    ),
)
RUNS = STUDY.runs()

if __name__ == "__main__":
    STUDY.command_line(__doc__)
