"""A tiny data folder on disk, made anew for every test that asks for one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with 4 training, 2 validation and 1 test image of 24 x 32 pixels and returns its path."""

    def make(classes: Sequence[str] = ("road", "tree", "sky")) -> Path:
        root = tmp_path / "data"
        for folder in ("images", "masks", "splits"):
            (root / folder).mkdir(parents=True)
        (root / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(classes)))
        rng = np.random.default_rng(0)
        for split, count in (("train", 4), ("val", 2), ("test", 1)):
            names = [f"{split}_{i}" for i in range(count)]
            (root / f"splits/{split}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                mask = rng.integers(len(classes), size=(24, 32)).astype(np.uint8)
                mask[0] = 255
                Image.fromarray(mask).save(root / f"masks/{name}.png")
                image = rng.integers(256, size=(24, 32, 3)).astype(np.uint8)
                Image.fromarray(image).save(root / f"images/{name}.jpg")
        return root

    return make
