"""Data sets in the forms in which strangers publish them are read by one dataset.yaml, or by its keys as flags."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import COUNT, FORMS, Form, cases, scene

from datamodules.files import SPLITS
from datamodules.folder import FolderDataModule
from datamodules.layouts.source import Source


@pytest.mark.parametrize("form", cases(FORMS))
def test_a_form_is_read_as_it_lies(form: Form, tmp_path: Path) -> None:
    root = form.make(tmp_path / "data")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    data = FolderDataModule(str(root))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "W_NO_TEST|W_UNUSED|W_NEAR_DUPLICATE")
        warnings.filterwarnings("error", "(?!W_)")
        data.verify()
    assert data.scored == form.scored
    splits = [split for split in SPLITS if split in data.source.splits]
    names = [name for split in splits for name in data.dataset(split).names]
    assert sorted(names) == sorted(form.name(i) for i in range(COUNT))
    assert len({*names}) == COUNT
    expected = {form.name(i): form.labels(scene(i)[1].copy()) for i in range(COUNT)}
    for split in splits:
        dataset = data.dataset(split)
        for index, name in enumerate(dataset.names):
            image, mask = dataset[index]
            assert image.shape == (data.in_channels, 40, 56) and image.dtype == torch.float32
            assert 0 <= image.min() < image.max() <= 1
            np.testing.assert_array_equal(mask.numpy(), expected[name], err_msg=name)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", cases(FORMS))
def test_flags_read_the_same_as_the_file_wherever_that_lies(form: Form, tmp_path: Path) -> None:
    root = form.make(tmp_path / "data")
    by_file = FolderDataModule.identify({"root": str(root)})
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(f"root: data\n{(root / 'dataset.yaml').read_text()}")
    (root / "dataset.yaml").unlink()
    assert FolderDataModule.identify({"root": str(root), **form.layout}) == by_file
    assert FolderDataModule.identify({"root": str(elsewhere)}) == by_file


CHANGED: dict[str, Callable[[Source], object]] = {
    "another label of a value": lambda _: {"classes": {"cell": 0, "membrane": 128, "synapse": 255}},
    "other splits": lambda _: {"splits": {"train": 0.5, "val": 0.25, "test": 0.25}},
    "grey": lambda _: {"channels": "grey"},
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_the_layout_makes_of_the_files_is_part_of_the_fingerprint(change: str, tmp_path: Path) -> None:
    root = FORMS[3].make(tmp_path / "data")
    assert FolderDataModule.identify({"root": str(root)}) == FolderDataModule.identify({"root": str(root)})
    other = {"root": str(root), **CHANGED[change](Source(root))}  # type: ignore[dict-item]
    assert FolderDataModule.identify(other) != FolderDataModule.identify({"root": str(root)})
