"""CRF as RNN, Zheng, Jayasumana, Romera-Paredes, Vineet, Su, Du, Huang, Torr 2015, https://arxiv.org/abs/1502.03240

A fully connected CRF as the last layers of a network, Fig. 3, trained together with it. The steps of mean field are
differentiable and share their parameters: a weight for each kernel and class, and the compatibility of the classes
(Sec. 4). The paper's network is FCN-8s; here it is any of this project, and the CRF may be a convolutional one.

Departs from the paper:
- the CRF's parameters do not decay: the decay of the authors' solver pulls the weights of the kernels to zero where
  rates are higher than theirs (github.com/torrvision/crfasrnn, issue 115);
- a kernel has a weight for each class, as in Sec. 4.2, where the authors' code has a matrix;
- the CRF sees whole grey levels.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import NETWORKS, NetworkName, corrections_below
from lightning_modules.components.checkpoints import load_start, read_checkpoint
from lightning_modules.components.choices import one_of
from lightning_modules.components.schedules import caffe_groups
from lightning_modules.recipe import Recipe
from lightning_modules.refinement.conv_crf import ConvCRF
from lightning_modules.refinement.dense_crf import DenseCRF
from lightning_modules.settings import keywords

CRFName = Literal["dense", "conv", "none"]
CRFS: dict[CRFName, type[nn.Module] | None] = {"dense": DenseCRF, "conv": ConvCRF, "none": None}
# Where the CRF starts: TVG_CRFRNN_new_deploy.prototxt of the authors, normalised as in their multi_stage_meanfield.cpp.
PUBLISHED: dict[str, Any] = {
    "w_appearance": 5.0,
    "theta_alpha": 160.0,
    "theta_beta": 3.0,
    "w_smoothness": 3.0,
    "theta_gamma": 3.0,
    "normalization": "after",
}
COMPATIBILITY_LR = 0.1  # of the rate of the kernels' weights: lr_mult 1,000 to 10,000 in the same file
# Arguments of networks that change no prediction: a run may start from a checkpoint with other ones.
TRAINING_ONLY = ("weights", "dropout", "batch_norm_decay", "freeze_batch_norm")


class CRFasRNN(nn.Module):
    """Images (N, in_channels, H, W), normalised for the network, and the same in 0..255 -> (N, num_classes, H, W).

    What comes out are the logarithms of the marginals, which are logits: float32, whatever the precision of the
    network.

    Args:
        network: the architecture below
        network_options: arguments of that network
        crf: fully connected as in the paper, convolutional, or "none", which leaves the network alone
        crf_options: arguments of the CRF, before those of `PUBLISHED` and its defaults
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        network: NetworkName = "fcn",
        network_options: dict[str, Any] | None = None,
        crf: CRFName = "dense",
        crf_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        one_of("network", network, NETWORKS)
        one_of("crf", crf, CRFS)
        kind = CRFS[crf]
        if kind is None and crf_options:
            raise ValueError(f"crf_options belong to a CRF, and crf='none' is none, got {dict(crf_options)}")
        if kind is not None and in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 (grey) or 3 (RGB) for a CRF, got {in_channels}: use crf='none'")
        base = NETWORKS[network]
        self.options = {**base.options, **(network_options or {})}
        if self.options.get("padding", "same") != "same":
            raise ValueError(f"network_options must keep the logits as large as the image, got {self.options}")
        check_options("network_options", self.options, base.network)
        self.network = base.network(num_classes, in_channels, **self.options)
        self.crf = None
        if kind is not None:
            check_options("crf_options", crf_options or {}, kind)
            self.crf = kind(num_classes, **{**PUBLISHED, **(crf_options or {})})

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        if self.crf is None:
            return logits
        device = "cpu" if x.is_meta else x.device.type
        with torch.autocast(device, enabled=False):  # a sum over all pixels needs more digits than bfloat16's
            marginals: Tensor = self.crf(logits.float().softmax(1), images.float())
        return marginals.clamp(min=torch.finfo(marginals.dtype).tiny).log()


def check_options(argument: str, options: Mapping[str, Any], kind: type[nn.Module]) -> None:
    """ValueError unless each option is a keyword argument of `kind`."""
    parameters = inspect.signature(kind).parameters.values()  # a CRF's are composed, too
    arguments = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = [name for name in options if name not in arguments]
    if unknown:
        raise ValueError(
            f"{argument} must be arguments of {kind.__name__}, {', '.join(arguments)}, got {', '.join(unknown)}"
        )


class CRFasRNNModule(SegmentationModule):
    """Trains `CRFasRNN` end to end as published, Sec. 6: unnormalised loss, rate 1e-13, momentum 0.99.

    The published batch is one whole image, and the network starts trained. The fully connected CRF runs 5 iterations in
    training, 10 in testing. The published rate belongs to a loss summed over images of about 500 x 500: with
    `loss="ce"`, their mean, the same steps have lr=2.5e-8. A network that is to learn still wants a higher rate and a
    lower `crf_lr_factor`, so that the CRF's rate stays near 2.5e-4, or 2.5e-3 with momentum 0.9. `crf="none"` trains
    the network alone by the same recipe, to compare with.

    Args:
        init_from: checkpoint of the network's own module, trained with the same `network_options`
        crf_lr_factor: how many times as fast as the network the weights of the CRF's kernels learn; the compatibility
            learns at a tenth of their rate
    """

    network: CRFasRNN
    recipe = Recipe(loss="ce_sum", lr=1e-13, momentum=0.99, weight_decay=5e-4, schedule="constant")

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        *,
        init_from: str | None = None,
        crf_lr_factor: float = 1e4,
        **settings: Any,
    ) -> None:
        if not 0 <= crf_lr_factor < math.inf:
            raise ValueError(f"crf_lr_factor must be at least 0 and finite, got {crf_lr_factor}")
        super().__init__(num_classes, ignore_index, **settings)
        self.crf_lr_factor = crf_lr_factor
        if init_from is not None:
            self._start_from(init_from)

    @classmethod
    def corrections(cls, hparams: Mapping[str, Any]) -> dict[str, str]:
        return corrections_below(hparams)

    def predict(self, images: Tensor) -> Tensor:
        # Whole grey levels, as image files have them; so a dark image of small levels does not look scaled to [0, 1].
        return self.network(self.normalise(images), (255 * images.detach()).round())

    def parameter_groups(self) -> list[dict[str, Any]]:
        lr = self.hparams["lr"]
        groups = caffe_groups(self.network.network, lr, self.hparams["weight_decay"])
        if self.network.crf is None:
            return groups
        parameters = dict(self.network.crf.named_parameters())
        compatibility = [parameters.pop("compatibility")] if "compatibility" in parameters else []
        for params, factor in ((list(parameters.values()), 1.0), (compatibility, COMPATIBILITY_LR)):
            if params:
                groups.append({"params": params, "lr": lr * self.crf_lr_factor * factor, "weight_decay": 0.0})
        return groups

    def _start_from(self, checkpoint: str) -> None:
        """Takes over the weights of the network, and the normalisation unless the user gave one."""
        inner = self.network.network
        wanted = f"{type(inner).__name__}Module"
        stored = read_checkpoint(checkpoint, f"init_from={checkpoint!r}", wanted=f"a checkpoint of {wanted}")
        architecture, theirs_all = stored["segmentation"]["architecture"], stored["hyper_parameters"]
        if architecture != wanted:
            raise ValueError(
                f"init_from={checkpoint!r} holds {architecture}, and network={self.hparams['network']!r} needs {wanted}"
            )
        unused = NETWORKS[self.hparams["network"]].options  # a head that no logits come from
        ours = {name: self.hparams[name] for name in ("num_classes", "in_channels")}
        theirs = {name: theirs_all.get(name) for name in ours}
        for name, parameter in keywords(type(inner)).items():
            if name not in (*TRAINING_ONLY, *unused):
                ours[name] = self.network.options.get(name, parameter.default)
                theirs[name] = theirs_all.get(name, parameter.default)
        wrong = [name for name in ours if _plain(ours[name]) != _plain(theirs[name])]
        if wrong:
            raise ValueError(
                f"init_from={checkpoint!r} was trained with {', '.join(f'{name}={theirs[name]!r}' for name in wrong)}, "
                f"not {', '.join(f'{name}={ours[name]!r}' for name in wrong)}: give the same in network_options"
            )
        state = stored["state_dict"]
        weights = {name.removeprefix("network."): w for name, w in state.items() if name.startswith("network.")}
        weights = {name: weight for name, weight in weights.items() if name.split(".")[0] not in unused}
        # A module may build more than one network, as SegNetModule does.
        otherwise = f"holds another network: its weights are not those of {type(inner).__name__}"
        load_start(inner, weights, checkpoint, otherwise=otherwise)
        for name in ("mean", "std"):
            if self.hparams[name] is None:
                if name not in state or state[name].shape != getattr(self, name).shape:
                    raise ValueError(
                        f"init_from={checkpoint!r} holds no {name} for {self.hparams['in_channels']} channels"
                    )
                getattr(self, name).copy_(state[name])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
