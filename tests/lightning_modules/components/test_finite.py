import math

import pytest
import torch
from torch import Tensor

from lightning_modules.components.errors import NonFiniteError
from lightning_modules.components.finite import all_finite, finite_losses, labelled_logits, naming

IMAGES, CLASSES = ["left (test)", "right (test)"], ["sky", "road", "car"]


def case() -> tuple[Tensor, Tensor]:
    """Logits of two images, and masks whose first row has no label."""
    masks = torch.randint(3, (2, 4, 5))
    masks[:, 0] = 255
    return torch.randn(2, 3, 4, 5), masks


def test_finite_logits_are_handed_on_as_they_are() -> None:
    logits, masks = case()
    assert labelled_logits(logits, masks, 255, IMAGES, CLASSES) is logits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_not_finite_at_a_labelled_pixel_names_image_pixels_and_classes(
    value: float, memory_format: torch.memory_format
) -> None:
    logits, masks = case()
    logits[1, 1, 2, 3] = logits[1, 2, 2, 3] = logits[1, 2, 3, 0] = logits[1, 0, 0, 0] = value
    message = (
        r"logits of right \(test\) are NaN or infinite at 2 of its 15 labelled pixels, for road, car: .*learning rate"
    )
    with pytest.raises(NonFiniteError, match=message):
        labelled_logits(logits.contiguous(memory_format=memory_format), masks, 255, IMAGES, CLASSES)


def test_many_classes_are_cut_short() -> None:
    names = [f"class{i}" for i in range(9)]
    with pytest.raises(NonFiniteError, match="for class0, class1, class2, class3, class4 and 4 more:"):
        labelled_logits(torch.full((1, 9, 2, 2), math.nan), torch.zeros(1, 2, 2).long(), 255, ["a"], names)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_where_nothing_is_labelled_it_becomes_zero_and_the_rest_stays(value: float) -> None:
    logits, masks = case()
    spoiled = logits.clone()
    spoiled[0, 1, 0, 2] = value
    usable = labelled_logits(spoiled, masks, 255, IMAGES, CLASSES)
    assert usable[0, 1, 0, 2] == 0
    logits[0, 1, 0, 2] = 0
    assert torch.equal(usable, logits)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (2, 1, 4, 5)])
def test_one_element_is_found_wherever_it_lies(value: float, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    assert all_finite(values)
    for place in (0, values.numel() // 2, values.numel() - 1):
        spoiled = values.clone()
        spoiled.view(-1)[place] = value
        assert not all_finite(spoiled)
        if len(shape) == 4:
            assert not all_finite(spoiled.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_image(value: float) -> None:
    losses = torch.tensor([0.5, 1.5])
    assert finite_losses(losses, IMAGES) is losses
    with pytest.raises(NonFiniteError, match=rf"the loss of right \(test\) is {value}, .*class_weights"):
        finite_losses(torch.tensor([0.5, value]), IMAGES)


def test_an_error_that_does_not_know_the_image_is_given_its_name() -> None:
    with pytest.raises(NonFiniteError, match=r"^left \(test\): of a CRF$"), naming("left (test)"):
        raise NonFiniteError("of a CRF")
    with pytest.raises(ValueError, match=r"^another$"), naming("left (test)"):
        raise ValueError("another")
