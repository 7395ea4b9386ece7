"""Forty bad kinds of folders are named by a stable code before training, five good ones are not refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from kinds import BAD, DOCS, GOOD, MORE, Kind, in_docs, said, table
from PIL import Image
from tiny_data import write_folder

from datamodules.checks.problems import ERRORS, WARNINGS
from datamodules.folder import FolderDataModule


@pytest.mark.parametrize("kind", [*GOOD, *BAD, *MORE], ids=lambda kind: kind.what)
def test_every_kind_of_folder_has_its_verdict(kind: Kind, tmp_path: Path) -> None:
    lines, refused = said(kind, tmp_path)
    if not kind.code:
        assert not lines
        return
    assert refused is kind.code.startswith("E_"), lines
    assert any(line.startswith(f"{kind.code}: ") for line in lines), lines
    assert {line.split(":")[0] for line in lines} <= {
        kind.code,
        "E_SIZE_MISMATCH",
        "W_UNUSED",
        "W_NO_TRAINING_PIXEL",
    } | ({"E_SPLIT_UNKNOWN", "E_ORPHAN_MASK"} if kind.code == "E_EMPTY_DATASET" else set())


def test_a_transposed_square_mask_is_the_one_kind_that_is_not_found(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    square = np.zeros((32, 32), dtype=np.uint8)
    square[4, 20] = 1
    Image.fromarray(square.T).save(root / "masks/train_1.png")
    Image.fromarray(square * 200).save(root / "images/train_1.jpg")
    FolderDataModule(str(root)).verify()
    assert "transposed" in DOCS.read_text(encoding="utf-8")


def test_the_forty_kinds_are_forty() -> None:
    assert (len(GOOD), len(BAD)) == (5, 40)
    assert len({kind.what for kind in [*GOOD, *BAD, *MORE]}) == len([*GOOD, *BAD, *MORE])


def test_every_code_has_an_example_and_a_meaning() -> None:
    used = {kind.code for kind in [*BAD, *MORE]} | {"E_UNREADABLE"}  # which root can always read
    assert used == {*ERRORS, *WARNINGS}


def test_the_docs_have_the_message_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert in_docs(table()) == DOCS.read_text(encoding="utf-8"), "python tests/datamodules/kinds.py writes them"
