"""Forms put together of any place and any code of labels are read exactly, as stated and as found from their files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import save, scene, text

from datamodules.layouts.guess import suggest
from datamodules.layouts.source import Source
from datamodules.verify import check_layout, examine

COUNT = 12
SIZE = (64, 72)

# Of image i, by its split, its site and its number: the path of the image and of its mask, and the patterns of both.
PLACES = {
    "suffix": ("d/{i:03}_im.png", "d/{i:03}_mask.png", "d/{name}_im.png", "d/{name}_mask.png"),
    "beside": ("{i:03}.png", "{i:03}_label.png", "{name}.png", "{name}_label.png"),
    "tree": ("raw/{site}/im{i}.png", "gt/{site}/im{i}.png", "raw/**/{{name}}.png", "gt/**/{{name}}.png"),
    "split": ("{split}/img/{i}.png", "{split}/gt/{i}.png", "{{split}}/img/{{name}}.png", "{{split}}/gt/{{name}}.png"),
    "split within": ("a_{split}/{i}.png", "m_{split}/{i}.png", "a_{{split}}/{{name}}.png", "m_{{split}}/{{name}}.png"),
    "split and tree": (
        "img/{split}/{site}/{j}_rgb.png", "gt/{split}/{site}/{j}_gt_ids.png",
        "img/{{split}}/**/{{name}}_rgb.png", "gt/{{split}}/**/{{name}}_gt_ids.png",
    ),
    "own folder": ("all/s{i}/image.png", "all/s{i}/label.png", "all/{{name}}/image.png", "all/{{name}}/label.png"),
    "numbers": ("raw/{i:02}.png", "gt/frame{i:06}.png", "raw/{number}.png", "gt/frame{number}.png"),
}  # fmt: skip

COLOURS = np.array([[10, 20, 30], [0, 255, 0], [255, 0, 0]], dtype=np.uint8)
CODES: dict[str, tuple[Any, Any]] = {  # what is saved for labels, and the classes of the layout
    "indices": (lambda m: m, ["ground", "tree", "car"]),
    "values": (lambda m: np.array([5, 0, 200], dtype=np.uint8)[m], {"ground": 5, "tree": 0, "car": 200}),
    "16 bits": (lambda m: np.array([0, 300, 40], dtype=np.uint16)[m], {"ground": 0, "tree": 300, "car": 40}),
    "colours": (lambda m: COLOURS[m], {"ground": "#0a141e", "tree": "#00ff00", "car": "#ff0000"}),
}


def made(root: Path, place: str, code: str) -> tuple[dict[str, Any], dict[tuple[str, int], np.ndarray]]:
    """Writes the set; its layout, and the labels of each image by the path of its file and the scene."""
    save_as, classes = CODES[code]
    image_at, mask_at, images, masks = PLACES[place]
    truth = {}
    for i in range(COUNT):
        words = {"i": i, "j": i // 4, "split": ("train", "valid")[i % 2], "site": ("north", "south")[i // 2 % 2]}
        pixels, labels = scene(i, SIZE)
        image = root / image_at.format(**words)
        save(pixels, image)
        save(save_as(labels), root / mask_at.format(**words))
        truth[image.relative_to(root).as_posix(), i] = labels
    layout = {
        "images": images.replace("{{", "{").replace("}}", "}"),
        "masks": masks.replace("{{", "{").replace("}}", "}"),
    }
    splits = {} if "{split}" in layout["images"] else {"splits": {"train": 0.5, "val": 0.5}}
    return {**layout, "classes": classes, **splits}, truth


def labels_by_path(source: Source) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_layout(source)
        assert not (problems := examine(source).problems), problems[:3]
    names = [name for of_split in source.splits.values() for name in of_split]
    assert len(names) == len({*names}) == COUNT
    return {source.images[name][0].relative_to(source.root).as_posix(): source.labels(name) for name in names}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("place", PLACES)
def test_any_place_and_any_code_are_read_as_stated_and_as_found(place: str, code: str, tmp_path: Path) -> None:
    layout, truth = made(tmp_path, place, code)
    found = labels_by_path(Source(tmp_path, **layout))
    for (path, _), labels in truth.items():
        np.testing.assert_array_equal(found[path], labels, err_msg=path)

    suggestion = suggest(tmp_path)
    assert suggestion is not None
    text(tmp_path / "dataset.yaml", suggestion.text())
    guessed = labels_by_path(Source(tmp_path))
    pairs = {
        (int(a), int(b))
        for (path, _), m in truth.items()
        for a, b in zip(m.ravel(), guessed[path].ravel(), strict=True)
    }
    assert len(pairs) == 3, suggestion.text()  # the same regions, whatever their labels are called
