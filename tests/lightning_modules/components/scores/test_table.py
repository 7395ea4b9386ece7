"""The table of scores: each entry computes what it describes, and describing needs no torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.components.scores.confusion import predict_labels
from lightning_modules.components.scores.metrics import Scores
from lightning_modules.components.scores.table import (
    ASKED,
    MOST_TRIMAP_CLASSES,
    PER_IMAGE,
    SCORES,
    SIZES,
    Predicted,
    errors,
    numbers,
)

ROOT = Path(__file__).parents[4]
CLASSES, SIDES = 3, (24, 30)


def batch() -> Predicted:
    logits, masks = torch.randn(2, CLASSES, *SIDES), torch.randint(CLASSES, (2, *SIDES))
    masks[:, 0] = 255
    return Predicted(logits, predict_labels(logits), masks, CLASSES, 255)


@pytest.mark.parametrize("name", PER_IMAGE)
def test_an_entry_computes_the_array_and_the_numbers_that_it_describes(name: str) -> None:
    score, predicted = PER_IMAGE[name], batch()
    array = score.compute(predicted).numpy()
    assert array.shape == (2, *(CLASSES if size == "C" else size for size in score.shape))
    assert array.dtype.kind in score.kinds
    high = np.prod(SIDES) if score.high is None else score.high
    assert np.nanmin(array) >= 0 and np.nanmax(array) <= high and (score.nan or not np.isnan(array).any())
    confusion = PER_IMAGE["confusion"].compute(predicted).sum(0).numpy()
    found = score.reduce(array.sum(axis=0) if score.summed else array, confusion)
    assert found.keys() == {*score.numbers, *score.others}
    assert all(isinstance(value, float) and 0 <= abs(value) <= 1 for value in found.values())
    if score.mean is not None:
        assert score.mean(torch.from_numpy(array)).shape == (2,)


def test_a_number_has_one_name_and_stands_in_one_table() -> None:
    names = [name for score in PER_IMAGE.values() for name in (*score.numbers, *score.others)]
    assert len(names) == len(set(names))
    tables = [*SCORES, *ASKED, *SIZES, *errors()]
    assert sorted(tables) == sorted(numbers())
    assert all(number.meaning for number in ASKED.values())
    assert all(number.meaning for number in errors().values())


@pytest.mark.parametrize(("classes", "stored"), [(MOST_TRIMAP_CLASSES, True), (MOST_TRIMAP_CLASSES + 1, False)])
def test_of_many_classes_no_trimap_is_stored(classes: int, stored: bool) -> None:
    scored = Scores(classes, 255, detailed=True)
    of_images = scored.update(torch.randn(1, classes, 8, 8), torch.randint(classes, (1, 8, 8)), torch.zeros(1))
    assert ("trimap" in of_images) == stored and "segments" in of_images


def test_the_table_needs_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; import lightning_modules.components.scores.table; "
        "sys.exit(', '.join({'torch', 'torchmetrics', 'lightning'} & sys.modules.keys()) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
