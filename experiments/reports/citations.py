"""Whom a paper has to cite: the references in CITATION.cff behind the settings of a plan."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning_modules.papers import PAPERS

V2 = "https://arxiv.org/abs/1606.00915"
ADAMW = "https://arxiv.org/abs/1711.05101"
FREQUENCIES = "https://arxiv.org/abs/1411.4734"
PIXELSHUFFLE = "https://arxiv.org/abs/1609.05158"
CHECKERBOARD = "10.23915/distill.00003"
DENSE_CRF, CONV_CRF = "https://arxiv.org/abs/1210.5644", "https://arxiv.org/abs/1805.04777"
SMP, TORCH = "https://github.com/qubvel-org/segmentation_models.pytorch", "https://arxiv.org/abs/1912.01703"
CODECARBON = "10.5281/zenodo.4658424"
LIGHTNING = "https://github.com/Lightning-AI/pytorch-lightning"

DATA = {
    "brain": ("10.1016/j.neuroimage.2010.07.033",),
    "camvid": ("10.1016/j.patrec.2008.04.005", "10.1109/TPAMI.2016.2644615"),
    "folder": (),  # somebody's own
    "shapes": (),  # made by code
}
LOSSES = {
    "focal": "https://arxiv.org/abs/1708.02002",
    "dice": "https://arxiv.org/abs/1606.04797",
    "jaccard": "10.1007/978-3-319-50835-1_22",
    "lovasz": "https://arxiv.org/abs/1705.08790",
    "ce_border": PAPERS["unet"].cited,
}
ENCODERS = {
    "vgg": "https://arxiv.org/abs/1409.1556",
    "resnet": "https://arxiv.org/abs/1512.03385",
    "xception": "https://arxiv.org/abs/1610.02357",
    "mobilenet_v1": "https://arxiv.org/abs/1704.04861",
    "smp-": SMP,
    "tu-": "https://github.com/huggingface/pytorch-image-models",
    "tu-tf_efficientnet": "https://arxiv.org/abs/1905.11946",
}
LAYERS = {"subpixel": PIXELSHUFFLE, **dict.fromkeys(("transposed-3", "nearest", "bilinear"), CHECKERBOARD)}
CRFS = {"dense": DENSE_CRF, "conv": CONV_CRF}


def citations_of(plan: Mapping[str, Any], part: str) -> list[str]:
    """DOIs and addresses for a part of the plan: "data", "networks", "optimizer", "schedule", "loss", "class_weights"
    or "software"."""
    return list(dict.fromkeys(_found(plan, part)))


def _found(plan: Mapping[str, Any], part: str) -> Iterator[str]:
    if part == "data":
        yield from DATA.get(plan["data"], ())
    elif part == "networks":
        for module in _values(plan, "module"):
            file = str(module).split(".")[-2]
            yield from [PAPERS[file].cited] if file in PAPERS else []
        for name in _values(plan, "hparams.network"):
            yield from [PAPERS[name].cited] if name in PAPERS else []
        yield from (cited for name in _values(plan, "hparams.encoder") for cited in _of_encoder(str(name)))
        yield from (LAYERS[kind] for kind in _values(plan, "hparams.upsample") if kind in LAYERS)
        yield from (CRFS[kind] for kind in _values(plan, "hparams.crf") if kind in CRFS)
        yield from (CRFS[kind] for kind in _refined(plan) if kind in CRFS)
    elif part == "optimizer" and "adamw" in _values(plan, "hparams.optimizer"):
        yield ADAMW
    elif part == "schedule" and "poly" in _values(plan, "hparams.schedule"):
        yield V2
    elif part == "loss":
        yield from (LOSSES[loss] for loss in _values(plan, "hparams.loss") if loss in LOSSES)
    elif part == "class_weights" and "median-frequency" in _values(plan, "hparams.class_weights"):
        yield FREQUENCIES
    elif part == "software":
        yield from (TORCH, LIGHTNING)


def _of_encoder(name: str) -> list[str]:
    fitting = [start for start in ENCODERS if name.startswith(start)]
    return [ENCODERS[start] for start in fitting]


def _values(plan: Mapping[str, Any], key: str) -> list[Any]:
    """What a setting is in the variants, each value once."""
    values = [plan["common"][key]] if key in plan["common"] else []
    for differing in plan.get("differences", {}).values():
        values += differing.get(key, [])
    return [value for place, value in enumerate(values) if value not in values[:place] and value is not None]


def _refined(plan: Mapping[str, Any]) -> list[str]:
    """The CRFs behind the networks, in a study of them."""
    return list(dict.fromkeys(str(variant["levels"].get("crf", "")) for variant in plan["variants"].values()))
