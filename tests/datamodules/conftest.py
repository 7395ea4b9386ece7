"""A tiny data folder on disk, made anew for every test that asks for one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_data import write_folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with 4 training, 2 validation and 1 test image of 24 x 32 pixels and returns its path."""

    def make(classes: Sequence[str] = ("road", "tree", "sky")) -> Path:
        return write_folder(tmp_path / "data", classes)

    return make
