"""Splits that are made: of the asked sizes, with each class in all of them, and no group in two."""

import json
import shutil
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.files import SPLITS, read_groups, read_split
from datamodules.folder import FolderDataModule
from datamodules.splitting import divide, folds, groups_by, joined
from experiments.runs.run import Run
from experiments.split import main
from lightning_modules.unet import UNetModule

NAMES = [f"p{patient:02}_{number}" for patient in range(30) for number in range(1 + patient % 5)]
RANDOM = np.random.default_rng(0)
HOLDS = {name: RANDOM.random(4) < (1.0, 0.5, 0.2, 0.12) for name in NAMES}
ALONE = {name: name for name in NAMES}
BY_PATIENT = {name: name.split("_")[0] for name in NAMES}
SHARES = (0.7, 0.15, 0.15)


@pytest.mark.parametrize("groups", [ALONE, BY_PATIENT], ids=["alone", "by patient"])
def test_every_image_is_in_one_part_and_every_group(groups: dict[str, str]) -> None:
    parts = divide(groups, HOLDS, SHARES, 0)
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    of_parts = [{groups[name] for name in part} for part in parts]
    assert not any(one & other for i, one in enumerate(of_parts) for other in of_parts[:i])


@pytest.mark.parametrize(("groups", "off"), [(ALONE, 0.02), (BY_PATIENT, 0.06)], ids=["alone", "by patient"])
def test_parts_have_the_asked_sizes_and_their_share_of_each_class(groups: dict[str, str], off: float) -> None:
    """Within two images of a class, or a group of it; chance alone would leave a part without the rare one at times."""
    parts = divide(groups, HOLDS, SHARES, 0)
    assert [len(part) / len(NAMES) for part in parts] == pytest.approx(SHARES, abs=off)
    whole = np.sum([HOLDS[name] for name in NAMES], axis=0)
    for part, share in zip(parts, SHARES, strict=True):
        found = np.sum([HOLDS[name] for name in part], axis=0)
        assert (np.abs(found - share * whole) <= (2 if groups is ALONE else 5)).all()
        assert found.all()


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_class_in_few_images_is_in_every_part(count: int) -> None:
    holds = {name: np.array([True, number < count]) for number, name in enumerate(NAMES)}
    for seed in range(10):
        parts = divide(ALONE, holds, SHARES, seed)
        assert all(any(holds[name][1] for name in part) for part in parts)
        assert [len(part) / len(NAMES) for part in parts] == pytest.approx(SHARES, abs=0.03)


def test_a_large_group_with_a_rare_class_does_not_turn_the_shares() -> None:
    """Dealt out by the rare class alone, the group of 200 would go to a small part."""
    sizes = [200, *[5] * 20]
    groups = {f"g{group}_{number}": f"g{group}" for group, size in enumerate(sizes) for number in range(size)}
    rare = {name: group in {"g1", "g2", "g3"} or name in ("g0_0", "g0_1") for name, group in groups.items()}
    parts = divide(groups, {name: np.array([True, held]) for name, held in rare.items()}, SHARES, 0)
    assert [len(part) for part in parts] == pytest.approx([210, 45, 45], abs=10)


def test_groups_with_a_picture_in_common_are_in_one_part() -> None:
    pictures = {name: name for name in NAMES} | {"p00_0": "x", "p07_1": "x", "p12_0": "x"}
    groups = joined(BY_PATIENT, pictures)
    assert groups["p00_0"] == groups["p07_0"] == groups["p12_1"]
    assert len({*groups.values()}) == 28


def test_a_seed_is_another_division_and_the_order_of_names_none() -> None:
    one = divide(ALONE, HOLDS, SHARES, 0)
    assert one == divide(dict(reversed(ALONE.items())), HOLDS, SHARES, 0)
    assert one != divide(ALONE, HOLDS, SHARES, 1)


def test_each_image_is_tested_once_in_folds_and_never_trained_in_the_same() -> None:
    made = folds(divide(BY_PATIENT, HOLDS, [1] * 5, 0))
    assert sorted(name for _, _, test in made for name in test) == sorted(NAMES)
    assert sorted(name for _, val, _ in made for name in val) == sorted(NAMES)
    for of_fold in made:
        assert sorted(name for names in of_fold for name in names) == sorted(NAMES)


def test_each_part_gets_a_group_where_there_are_no_more() -> None:
    groups = {"a1": "a", "a2": "a", "a3": "a", "b": "b", "c": "c"}
    parts = divide(groups, {name: np.array([True]) for name in groups}, SHARES, 0)
    assert sorted(map(len, parts)) == [1, 1, 3]


def test_images_without_any_class_are_dealt_out_too() -> None:
    parts = divide(ALONE, {name: np.zeros(3, dtype=bool) for name in NAMES}, SHARES, 0)
    assert [len(part) / len(NAMES) for part in parts] == pytest.approx(SHARES, abs=0.02)


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.0), (0.5, -1.0), (0.5, float("nan")), (0.5, float("inf"))])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares must be two numbers above 0 or more, got"):
        divide(ALONE, HOLDS, shares, 0)


def test_the_group_of_a_name_is_what_the_pattern_finds() -> None:
    assert groups_by(r"^(p\d+)_", ["p01_3", "p02_1"]) == {"p01_3": "p01", "p02_1": "p02"}
    assert groups_by(r"^p\d+", ["p01_3"]) == {"p01_3": "p01"}
    assert groups_by(r"^(.*?)_?\d+$", ["001", "a_1"]) == {"001": "001", "a_1": "a"}
    with pytest.raises(ValueError, match=r"matches nothing in x, y: every image needs a group"):
        groups_by(r"^p\d+", ["p01_3", "x", "y"])
    with pytest.raises(ValueError, match=r"--group-by must be a regular expression, got '\('"):
        groups_by("(", ["p01_3"])


def content(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_is_split_and_trained_by_its_folds(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    before = content(root)
    main([str(root), "--folds", "3", "--into", "folds", "--group-by", "^[a-z]+_[0-9]"])
    after = content(root)
    assert before.items() <= after.items()  # nothing is changed
    tested = []
    for fold in range(3):
        folder = root / "folds" / str(fold)
        made = json.loads((folder / "split.json").read_text())
        data = FolderDataModule(str(root), splits=f"folds/{fold}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which classes are where, a folder of seven images leaves to chance
            data.verify()
        for split in SPLITS:
            names = read_split(root, split, f"folds/{fold}")
            assert len(data.dataset(split)) == len(names) == made["images"][split]
            assert made["sha256"][split] == sha256((folder / f"{split}.txt").read_bytes()).hexdigest()
        tested += read_split(root, "test", f"folds/{fold}")
        assert data.groups(tested) == tested
    assert sorted(tested) == sorted(path.stem for path in (root / "images").iterdir())


def test_a_run_is_known_by_what_its_splits_hold_and_not_by_their_folder(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    main([str(root), "--folds", "3", "--into", "folds"])
    (root / "again").symlink_to(root / "splits")

    def run(**data: Any) -> Run:
        return Run(module=UNetModule, datamodule=FolderDataModule, data={"root": str(root), **data})

    assert run().hash == run(splits="again").hash == run(splits="splits").hash
    assert len({run().hash, run(splits="folds/0").hash, run(splits="folds/1").hash}) == 3
    first = run(splits="folds/0").identified()
    assert first.but(data={"splits": "folds/1"}).fingerprint is None
    assert first.but(lr=1e-3).fingerprint == first.fingerprint


REFUSED = {
    "replaced": ([], "splits is there already, and nothing is replaced: remove it, or choose another with --into"),
    "both": (["--folds", "3", "--fractions", "1", "1", "1"], "--folds makes parts of equal size"),
    "two folds": (["--folds", "2", "--into", "new"], "--folds must be at least 3"),
    "elsewhere": (["--into", "../new"], "--into must be the name of a new folder, in letters, got '../new'"),
    "images": (["--into", "images"], "--into must be the name of a new folder"),
    "many": (["--folds", "8", "--into", "new"], "7 groups cannot be divided into 8 parts"),
    "none": (["--group-by", "^q", "--into", "new"], "matches nothing in test_0, train_0, train_1 and 4 more"),
    "shares": (["--fractions", "1", "0", "1", "--into", "new"], "shares must be two numbers above 0 or more"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_split_is_said_and_nothing_is_written(
    kind: str, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    flags, said = REFUSED[kind]
    before = content(root)
    with pytest.raises(SystemExit, match="2"):
        main([str(root), *flags])
    assert said in capsys.readouterr().err
    assert content(root) == before
    assert not (root / "new").exists()


def test_groups_that_are_there_win_and_must_name_every_image(
    make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    (root / "groups.csv").write_text("image,group\ntest_0,a\n")
    with pytest.raises(SystemExit, match="2"):
        main([str(root), "--into", "new"])
    assert "but of all images not" in capsys.readouterr().err
    names = sorted(path.stem for path in (root / "images").iterdir())
    lines = "".join(f"{name},{name[-1]}\n" for name in names)
    (root / "groups.csv").write_text(f"image,group\n{lines}")
    main([str(root), "--into", "new"])
    groups, _ = read_groups(root, names, None)
    of_splits = [{groups[name] for name in read_split(root, split, "new")} for split in SPLITS]
    assert sum(map(len, of_splits)) == len({*groups.values()})
    with pytest.raises(SystemExit, match="2"):
        main([str(root), "--into", "newer", "--group-by", "."])
    assert "groups.csv has groups already" in capsys.readouterr().err


def test_equal_pictures_are_in_one_split_and_bad_masks_are_named(
    make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    shutil.copy(root / "images/train_1.jpg", root / "images/test_0.jpg")
    main([str(root), "--into", "new"])
    of_splits = [{*read_split(root, split, "new")} & {"train_1", "test_0"} for split in SPLITS]
    assert {"train_1", "test_0"} in of_splits
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(root / "masks/train_1.png")
    with pytest.raises(SystemExit, match="2"):
        main([str(root), "--into", "newer"])
    assert "E_MASK_MODE: masks/train_1.png holds RGB colours" in capsys.readouterr().err


def test_a_folder_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "has no images/, masks/, classes.txt; it holds" in capsys.readouterr().err


@pytest.mark.parametrize("splits", ["../x", "/tmp", "", "."])
def test_splits_lie_within_the_folder(splits: str, make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    with pytest.raises((ValueError, FileNotFoundError), match=r"splits must be a folder within|has no"):
        FolderDataModule(str(root), splits=splits)
