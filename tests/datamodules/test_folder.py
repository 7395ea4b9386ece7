import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.camvid import CLASSES, CamVidDataModule, stretches
from datamodules.files import read_classes
from datamodules.folder import FolderDataModule, generated_palette

DATA = Path(os.environ.get("SEGLAB_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_palette_masks_keep_their_indices_and_colours(make_folder: Callable[..., Path]) -> None:
    root = make_folder([f"class{i}" for i in range(6)])
    for path in (root / "masks").iterdir():
        labels = np.zeros((24, 32), np.uint8)
        labels[4:9], labels[20:] = 5, 255
        mask = Image.fromarray(labels).convert("P")
        mask.putpalette([v for i in range(256) for v in (255 - i, i // 2, 7)])
        mask.putdata(labels.flatten().tolist())
        mask.save(path)
    datamodule = FolderDataModule(str(root))
    datamodule.verify()
    mask = datamodule.dataset("train")[0][1]
    assert mask.unique().tolist() == [0, 5, 255]
    assert mask[5].unique().tolist() == [5]
    assert datamodule.palette == [(255 - i, i // 2, 7) for i in range(6)]


@pytest.mark.parametrize("mode", ["1", "P"])
def test_masks_with_few_bits_keep_their_indices(make_folder: Callable[..., Path], mode: str) -> None:
    root = make_folder(["cell", "membrane"])
    labels = np.eye(24, 32) > 0
    for path in (root / "masks").iterdir():
        mask = Image.fromarray(labels) if mode == "1" else Image.fromarray(labels.astype(np.uint8)).convert("P")
        if mode == "P":
            mask.putpalette([0, 0, 0, 255, 0, 0])
            mask.putdata(labels.astype(int).flatten().tolist())
        mask.save(path, bits=1)
    datamodule = FolderDataModule(str(root))
    datamodule.verify()
    assert datamodule.dataset("val")[1][1].equal(torch.from_numpy(labels).long())


def test_grey_images_become_rgb(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    grey = np.arange(24 * 32).reshape(24, 32)
    for i, path in enumerate(sorted((root / "images").iterdir())):
        path.unlink()
        Image.fromarray((grey + i).astype(np.uint8)).save(path.with_suffix(".PNG"))
    datamodule = FolderDataModule(str(root))
    datamodule.verify()
    image = datamodule.dataset("test")[0][0]  # the first by name
    assert image.equal((torch.from_numpy(grey) % 256 / 255).expand(3, -1, -1))


def test_images_are_turned_as_exif_says(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    path = root / "images/train_0.jpg"
    upright = np.array(Image.open(path))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    path.unlink()
    Image.fromarray(np.rot90(upright).copy()).save(path.with_suffix(".png"), exif=exif)
    datamodule = FolderDataModule(str(root))
    with pytest.warns(UserWarning, match="images turned upright by their EXIF orientation: train_0"):
        datamodule.verify()
    image, mask = datamodule.dataset("train")[0]
    assert image.shape[1:] == mask.shape
    assert (image * 255).round().byte().permute(1, 2, 0).numpy().tolist() == upright.tolist()


def test_scale_applies_to_every_split(make_folder: Callable[..., Path]) -> None:
    datamodule = FolderDataModule(str(make_folder()), scale=0.5)
    for split in ("train", "val", "test"):
        image, mask = datamodule.dataset(split)[0]
        assert image.shape == (3, 12, 16) and mask.shape == (12, 16)


def test_names_match_in_either_unicode_form(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    (root / "images/val_0.jpg").rename(root / "images/stra\u00dfe_\u00e4.jpg")
    (root / "masks/val_0.png").rename(root / "masks/stra\u00dfe_a\u0308.png")
    (root / "splits/val.txt").write_text("\ufeffval_1\r\nstra\u00dfe_a\u0308\r\n", encoding="utf-8")
    datamodule = FolderDataModule(str(root))
    datamodule.verify()
    assert datamodule.dataset("val").names == ["val_1", "stra\u00dfe_\u00e4"]


@pytest.mark.parametrize("text", ["1 b c\n0 a\n2 d\n", "a\n\nb c\nd\n"])
def test_classes_with_and_without_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    assert read_classes(tmp_path / "classes.txt", 255) == ["a", "b c", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a\n2 b\n", "indices must be 0 to 1, each once, got 1, 2"),
        ("0 a\n1 b\n255 void\n", "got 0, 1, 255; unlabelled pixels are 255"),
        ("0 a\n0 b\n", "got 0, 0"),
        ("a\nb\na\n", "more than once: a"),
        ("0 a\n" + "9" * 5000 + " b\n", "classes.txt: lines are 'index name', but one is '9999"),
        ("", "expected 2 to 255 classes, one a line, found 0"),
    ],
)
def test_bad_classes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / "classes.txt", 255)


@pytest.mark.parametrize("num_classes", [2, 8, 21, 255])
def test_generated_colours_differ(num_classes: int) -> None:
    assert len(set(generated_palette(num_classes))) == num_classes


def test_camvid_has_its_own_classes_and_colours(make_folder: Callable[..., Path]) -> None:
    root = make_folder(list(CLASSES))
    datamodule = CamVidDataModule(str(root))
    assert datamodule.palette[datamodule.class_names.index("road")] == (128, 64, 128)
    (root / "classes.txt").write_text("road\nsky\n")
    with pytest.raises(ValueError, match=r"11 classes of CamVid, sky, .* got road, sky; .* FolderDataModule"):
        CamVidDataModule(str(root))


def test_camvid_groups_are_stretches_of_a_drive() -> None:
    # As in the test split: a frame a second, 30 numbers a second, in one drive of two notations.
    names = [f"0001TP_{number:06}" for number in range(8550, 10381, 30)]
    names += [f"Seq05VD_f{number:05}" for number in range(0, 5101, 30)]
    groups = stretches(names)
    assert list(dict.fromkeys(groups)) == ["0001TP 1/2", "0001TP 2/2", *(f"Seq05VD {i}/6" for i in range(1, 7))]
    assert sorted(Counter(groups).values()) == [28, 28, 28, 29, 29, 29, 31, 31]
    assert [group for group, _ in itertools.groupby(groups)] == list(dict.fromkeys(groups))  # without a gap
    assert stretches(names[::-1]) == groups[::-1]


def test_camvid_groups_are_as_long_whatever_the_frame_rate() -> None:
    often, seldom = ([f"0016E5_{number:05}" for number in range(0, 1499, step)] for step in (2, 250))
    assert [set(stretches(names)) for names in (often, seldom)] == [{"0016E5 1/1"}] * 2
    assert stretches(["a_0", "a_749", "a_1499"]) == ["a 1/2", "a 1/2", "a 2/2"]


def test_frames_of_an_unknown_name_are_their_own_groups() -> None:
    assert stretches(["tree", "0001TP_008550", "a_b", "a_" + "9" * 5000])[::2] == ["tree", "a_b"]
    assert stretches(["a_" + "9" * 5000]) == ["a_" + "9" * 5000]


def test_groups_csv_wins_over_what_names_tell(make_folder: Callable[..., Path]) -> None:
    root = make_folder(list(CLASSES))
    assert CamVidDataModule(str(root)).groups(["test_0"]) == ["test 1/1"]
    (root / "groups.csv").write_text("image,group\ntest_0,the only drive\n")
    assert CamVidDataModule(str(root)).groups(["test_0"]) == ["the only drive"]


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "groups"),
    [
        ("camvid", CamVidDataModule, (367, 101, 233), 8),
        ("isbi_em", FolderDataModule, (20, 4, 6), 6),
        ("chest_xray", FolderDataModule, (73, 8, 19), 19),
    ],
)
def test_real_data(name: str, kind: type[FolderDataModule], sizes: tuple[int, ...], groups: int) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}; the folder of data sets is set by SEGLAB_DATA")
    datamodule = kind(str(DATA / name), batch_size=2)
    datamodule.verify()
    assert tuple(len(datamodule.dataset(split)) for split in ("train", "val", "test")) == sizes
    assert len(set(datamodule.groups(datamodule.dataset("test").names))) == groups
    batch = next(iter(datamodule.train_dataloader()))
    assert batch["image"].shape[2:] == batch["mask"].shape[1:] == datamodule.transform.crop
