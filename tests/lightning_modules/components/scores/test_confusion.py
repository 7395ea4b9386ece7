"""Labels, confusion matrices and the scores that are read from them."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_modules.components.scores.boundary import boundary_f1
from lightning_modules.components.scores.boundary_iou import boundary_iou
from lightning_modules.components.scores.confusion import confusion_matrix, image_iou, predict_labels
from lightning_modules.components.scores.metrics import ConfusionMatrix
from lightning_modules.components.scores.reductions import image_means, scores
from lightning_modules.components.scores.segments import iou_by_size
from lightning_modules.components.scores.surface import surface_distance

Score = Callable[[Tensor, Tensor, int, int], Tensor]


@pytest.fixture(params=[False, True], ids=["free", "deterministic"])
def _determinism(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


def random_maps(shape: tuple[int, ...], num_classes: int, *, ignored: float = 0.1) -> tuple[Tensor, Tensor]:
    """Labels and masks that agree in about half of the pixels."""
    masks = torch.randint(num_classes, shape)
    labels = torch.where(torch.rand(shape) < 0.5, masks, torch.randint(num_classes, shape))
    return labels, masks.masked_fill(torch.rand(shape) < ignored, 255)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_predicted_labels_are_the_argmax_and_the_first_of_a_tie(memory_format: torch.memory_format) -> None:
    logits = torch.randint(4, (2, 5, 33, 17)).float().to(memory_format=memory_format)  # many ties
    labels = predict_labels(logits)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, logits.argmax(1))


def test_nan_counts_as_the_least_logit_in_every_memory_format() -> None:
    nan, inf = math.nan, math.inf
    pixels = [[nan, -5, -3], [1, nan, 2], [3, nan, 2], [nan, nan, nan], [nan, -inf, 0], [2, inf, nan], [nan, -inf, nan]]
    expected = [2, 2, 0, 0, 2, 1, 0]
    logits = torch.tensor(pixels).t().reshape(1, 3, 1, 7).expand(2, 3, 4, 7)
    for memory_format in (torch.contiguous_format, torch.channels_last):  # the second is searched as on a GPU
        for dtype in (torch.float32, torch.bfloat16):
            labels = predict_labels(logits.to(dtype).contiguous(memory_format=memory_format))
            assert labels.shape == (2, 4, 7) and (labels == torch.tensor(expected)).all(), memory_format


def test_nan_at_random_gives_the_same_labels_in_every_memory_format() -> None:
    logits = torch.randn(2, 7, 20, 30)
    logits[torch.rand_like(logits) < 0.3] = math.nan
    labels = [
        predict_labels(logits.contiguous(memory_format=m)) for m in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*labels)
    chosen = logits.gather(1, labels[0][:, None])[:, 0]
    assert torch.equal(chosen.isnan(), logits.isnan().all(1))  # it wins only where nothing else is


def test_confusion_and_scores_of_a_2x2_image() -> None:
    masks = torch.tensor([[[0, 0], [1, 255]]])
    labels = torch.tensor([[[0, 1], [1, 0]]])  # the last pixel is ignored, the second wrong
    confusion = confusion_matrix(labels, masks, 3, 255)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == [[[1, 1, 0], [0, 1, 0], [0, 0, 0]]]

    values = {name: value[0].tolist() for name, value in scores(confusion.numpy()).items()}
    # class 0: 2 true, 1 predicted, 1 right; class 1: 1 true, 2 predicted, 1 right; class 2: nowhere
    assert values["iou"] == pytest.approx([1 / 2, 1 / 2, math.nan], nan_ok=True)
    assert values["dice"] == pytest.approx([2 / 3, 2 / 3, math.nan], nan_ok=True)
    assert values["acc"] == pytest.approx([1 / 2, 1, math.nan], nan_ok=True)
    assert values["miou"] == pytest.approx(1 / 2)
    assert values["mdice"] == pytest.approx(2 / 3)
    assert values["macc"] == pytest.approx(3 / 4)
    assert values["pixel_acc"] == pytest.approx(2 / 3)
    assert values["fwiou"] == pytest.approx(2 / 3 * 1 / 2 + 1 / 3 * 1 / 2)


def test_a_class_only_predicted_has_iou_zero_and_no_accuracy() -> None:
    values = scores(np.array([[3, 1], [0, 0]]))
    assert values["iou"].tolist() == [0.75, 0]
    assert values["dice"][1] == 0
    assert math.isnan(values["acc"][1])
    assert (values["miou"], values["macc"]) == (0.375, 0.75)


def test_nothing_labelled_scores_nan_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    confusion = confusion_matrix(torch.zeros(1, 4, 4, dtype=torch.int64), torch.full((1, 4, 4), 255), 2, 255)
    assert confusion.sum() == 0
    assert all(np.isnan(value).all() for value in scores(confusion.numpy()).values())
    assert not recwarn.list


def test_scores_of_a_stack_are_those_of_its_matrices() -> None:
    stack = np.random.default_rng(0).integers(0, 9, (4, 5, 3, 3))
    together, alone = scores(stack), scores(stack[2, 3])
    for name, value in together.items():
        np.testing.assert_array_equal(value[2, 3], alone[name])


@pytest.mark.usefixtures("_determinism")
def test_confusion_counts_every_pair() -> None:
    labels, masks = random_maps((3, 40, 31), 6)
    expected = np.zeros((3, 6, 6), dtype=np.int64)
    images = np.broadcast_to(np.arange(3)[:, None, None], masks.shape)
    valid = (masks != 255).numpy()
    np.add.at(expected, (images[valid], masks.numpy()[valid], labels.numpy()[valid]), 1)
    np.testing.assert_array_equal(confusion_matrix(labels, masks, 6, 255).numpy(), expected)
    np.testing.assert_array_equal(confusion_matrix(labels.byte(), masks.byte(), 6, 255).numpy(), expected)


@pytest.mark.usefixtures("_determinism")
def test_miou_equals_torchmetrics() -> None:
    ours, theirs = ConfusionMatrix(6), MulticlassJaccardIndex(6, ignore_index=255)
    for _ in range(2):
        labels, masks = random_maps((2, 20, 31), 5)  # class 5 is absent
        ours.update(confusion_matrix(labels, masks, 6, 255))
        theirs.update(labels, masks)
    assert scores(ours.compute().numpy())["miou"] == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_exact_at_8x21x512x512() -> None:
    logits = torch.randn(8, 21, 1, 512).expand(8, 21, 512, 512)
    masks = torch.randint(21, (8, 512, 512))
    masks[:, :7] = 255
    confusion = confusion_matrix(predict_labels(logits), masks, 21, 255)
    assert confusion.sum() == 8 * (512 - 7) * 512
    for index in range(21):
        assert confusion[:, index].sum() == (masks == index).sum()


@pytest.mark.parametrize("score", [confusion_matrix, boundary_f1, boundary_iou, surface_distance, image_iou])
def test_ignored_pixels_change_no_score(score: Score) -> None:
    labels, masks = random_maps((2, 60, 80), 4)
    other = torch.where(masks == 255, torch.randint(4, masks.shape), labels)
    assert not torch.equal(labels, other)
    assert torch.equal(score(labels, masks, 4, 255), score(other, masks, 4, 255))


@pytest.mark.parametrize("score", [confusion_matrix, boundary_f1, boundary_iou, surface_distance, iou_by_size])
@pytest.mark.parametrize("bad", [4, 7, 254, -1])
def test_a_label_outside_the_classes_is_named(score: Score, bad: int) -> None:
    labels, masks = random_maps((2, 5, 6), 4)
    with pytest.raises(ValueError, match=rf"masks must hold classes 0 to 3 .*255.* got {bad}:"):
        score(labels, masks.index_fill(1, torch.tensor([2]), bad), 4, 255)
    with pytest.raises(ValueError, match=rf"labels must hold classes 0 to 3 .* got {bad}:"):
        score(labels.index_fill(1, torch.tensor([2]), bad), masks, 4, 255)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels \(1, 4, 4\) and masks \(1, 4, 5\)"):
        confusion_matrix(torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 5, dtype=torch.int64), 2, 255)


def test_the_iou_of_an_image_is_of_the_classes_in_its_truth() -> None:
    truth = torch.tensor([[[0, 0, 0, 1]], [[2, 2, 255, 255]], [[255] * 4]])
    given = torch.tensor([[[0, 0, 2, 1]], [[2, 1, 0, 0]], [[0] * 4]])
    found = image_iou(given, truth, 3, 255).numpy()
    np.testing.assert_allclose(found, [[2 / 3, 1, np.nan], [np.nan, np.nan, 1 / 2], [np.nan] * 3])
    of_images, of_classes = image_means(found)
    assert of_images == pytest.approx(((2 / 3 + 1) / 2 + 1 / 2) / 2)
    assert of_classes == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
