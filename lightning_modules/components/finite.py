"""Numbers that are none stop an evaluation: of NaN no class is the largest, and an infinite loss has no mean."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_modules.components.errors import NonFiniteError

LISTED = 5  # classes that an error names
WAY_OUT = (
    "nothing of it is scored. Train with a lower learning rate (lr) or clipped gradients "
    "(--trainer.gradient_clip_val), or in --trainer.precision 32-true if it was another"
)


def labelled_logits(
    logits: Tensor, masks: Tensor, ignore_index: int, images: Sequence[str], class_names: Sequence[str]
) -> Tensor:
    """The logits (N, C, H, W), which must be finite where masks (N, H, W) have a label; elsewhere 0 for what is not.

    So that a loss, which ignores those pixels, can be computed. `images` is what an error calls each image. Raises
    NonFiniteError for NaN or infinity at a labelled pixel, naming the image, the classes and how many pixels.
    """
    if all_finite(logits):
        return logits
    wrong, labelled = ~logits.isfinite(), masks != ignore_index
    for image, where, kept in zip(images, wrong, labelled, strict=True):
        per_class = (where & kept).flatten(1).sum(1).tolist()
        if any(per_class):
            names = [name for name, count in zip(class_names, per_class, strict=True) if count]
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            raise NonFiniteError(
                f"the logits of {image} are NaN or infinite at {int((where.any(0) & kept).sum())} of its "
                f"{int(kept.sum())} labelled pixels, for {', '.join(names[:LISTED])}{more}: {WAY_OUT}"
            )
    return logits.masked_fill(wrong, 0)


def finite_losses(losses: Tensor, images: Sequence[str]) -> Tensor:
    """The losses (N,) of images whose logits are finite; NonFiniteError names the first that is not."""
    for image, loss in zip(images, losses.tolist(), strict=True):
        if loss - loss != 0:
            raise NonFiniteError(
                f"the loss of {image} is {loss}, though its logits are finite: lower the class_weights, or take a loss "
                "that divides by the number of pixels, such as loss='ce'"
            )
    return losses


def all_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite; reads a dense tensor (N, C, ...) once, in the order of its memory."""
    if values.ndim > 1 and values.stride(1) == 1:  # channels last: some twenty times as slow in the other order
        values = values.movedim(1, -1)
    return bool(torch.stack(torch.aminmax(values.detach())).isfinite().all())  # of NaN both are NaN


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Puts the image in front of a NonFiniteError raised inside by what does not know it, such as a CRF."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{image}: {error}") from error


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The names of weights and buffers that hold NaN or an infinity; empty where all are numbers."""
    names = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
