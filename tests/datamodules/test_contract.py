"""What every data module of the catalogue promises, on a tiny example of each: see `tiny_data.py`."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from arrays import ArraysDataModule
from lightning.pytorch import Trainer
from tiny_data import MAKERS, example, tiny, write_arrays, write_folder
from torch import Tensor

from datamodules.base import SPLITS, EvaluationSampler, Sample, SegmentationDataModule, TrainingSamples
from datamodules.files import IMAGE_ENDINGS
from datamodules.folder import FolderDataModule
from datamodules.shapes import ShapesDataModule
from experiments.shell.catalogue import DATAMODULES

# And one that has files and is no folder data set, which none of the catalogue is.
PROMISING: dict[str, type[SegmentationDataModule]] = {**DATAMODULES, "arrays": ArraysDataModule}
FILE_ENDINGS = {*IMAGE_ENDINGS, ".npz", ".npy"}


@pytest.fixture(params=PROMISING)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def arguments(name: str, tmp_path: Path) -> dict[str, Any]:
    if name not in DATAMODULES:
        return {"root": str(write_arrays(tmp_path / "data")), "batch_size": 2, "crop": (40, 32)}
    return example(name, tmp_path / "data")


@pytest.fixture
def datamodule(name: str, arguments: dict[str, Any]) -> SegmentationDataModule:
    return PROMISING[name](**arguments)


def test_a_data_set_without_an_example_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"voc has no tiny example: add a folder tests/data/voc/ .*MAKERS"):
        tiny("voc", tmp_path)
    assert set(MAKERS) <= set(DATAMODULES)


def test_a_tree_in_the_data_of_the_tests_is_an_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "trees" / "own")
    monkeypatch.setattr("tiny_data.TREES", tmp_path / "trees")
    monkeypatch.setitem(DATAMODULES, "own", FolderDataModule)
    assert len(tiny("own", tmp_path / "data").dataset("train")) == 4
    assert (tmp_path / "data" / "classes.txt").is_file()


def samples(loader: Iterable[Sample]) -> list[tuple[int, Tensor, Tensor]]:
    return [
        (int(i), image, mask) for b in loader for i, image, mask in zip(b["index"], b["image"], b["mask"], strict=True)
    ]


def equal(a: list[tuple[int, Tensor, Tensor]], b: list[tuple[int, Tensor, Tensor]]) -> bool:
    return all(i == j and x.equal(y) and m.equal(n) for (i, x, m), (j, y, n) in zip(a, b, strict=True))


def test_classes_and_colours_are_known_before_setup(datamodule: SegmentationDataModule) -> None:
    assert datamodule.num_classes == len(datamodule.class_names) == len(datamodule.palette)
    assert len(set(datamodule.palette)) == len(set(datamodule.class_names)) == datamodule.num_classes
    assert datamodule.ignore_index == 255
    datamodule.verify()


def test_published_classes_have_their_names_and_colours(datamodule: SegmentationDataModule) -> None:
    if published := getattr(datamodule, "published", None):
        assert datamodule.class_names == list(published)
        assert datamodule.palette == list(published.values())


def test_raw_images_and_labels(datamodule: SegmentationDataModule) -> None:
    names = [name for split in SPLITS for name in datamodule.dataset(split).names]
    assert len(names) == len(set(names))
    for split in SPLITS:
        dataset = datamodule.dataset(split)
        assert datamodule.dataset(split) is dataset
        for image, mask in (dataset[i] for i in range(len(dataset))):
            assert image.shape == (datamodule.in_channels, *mask.shape)
            assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)
            assert 0 <= image.min() <= image.max() <= 1
            assert set(mask.unique().tolist()) <= {*range(datamodule.num_classes), 255}


def test_training_batches(datamodule: SegmentationDataModule) -> None:
    loader = datamodule.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == len(datamodule.dataset("train")) // datamodule.batch_size
    for batch in batches:
        assert batch["image"].shape == (datamodule.batch_size, datamodule.in_channels, 40, 32)
        assert batch["mask"].shape == (datamodule.batch_size, 40, 32)
        assert batch["index"].shape == (datamodule.batch_size,)
        assert (batch["image"].dtype, batch["mask"].dtype) == (torch.float32, torch.int64)
        assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    for index, _, mask in samples(batches):
        assert set(mask.unique().tolist()) <= {*datamodule.dataset("train")[index][1].unique().tolist(), 255}


def test_every_data_set_can_be_deformed(datamodule: SegmentationDataModule, arguments: dict[str, Any]) -> None:
    assert datamodule.transform.elastic == 0
    assert type(datamodule)(**arguments | {"elastic": 10}).transform.elastic == 10


def test_evaluation_sees_every_image_once_as_it_is(datamodule: SegmentationDataModule) -> None:
    for split, loader in (("val", datamodule.val_dataloader()), ("test", datamodule.test_dataloader())):
        dataset = datamodule.dataset(split)
        seen = samples(loader)
        assert [index for index, _, _ in seen] == list(range(len(dataset)))
        assert all(image.equal(dataset[i][0]) and mask.equal(dataset[i][1]) for i, image, mask in seen)


def test_samples_follow_from_seed_and_epoch_alone(datamodule: SegmentationDataModule) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = samples(datamodule.train_dataloader())
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert equal(first, samples(datamodule.train_dataloader()))
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert not equal(first, samples(loader))
    datamodule.seed = 1
    assert not equal(first, samples(datamodule.train_dataloader()))


def test_workers_do_not_change_the_samples(datamodule: SegmentationDataModule) -> None:
    alone = datamodule.train_dataloader()
    datamodule.num_workers = 2
    shared = datamodule.train_dataloader()
    for epoch in (0, 1):  # the workers of epoch 0 live on in epoch 1
        alone.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        shared.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert equal(samples(alone), samples(shared))


def test_a_sample_follows_from_seed_epoch_and_index(datamodule: SegmentationDataModule) -> None:
    data = TrainingSamples(datamodule.dataset("train"), datamodule.transform, seed=3)
    late = data[5, 1]
    early = data[0, 1]
    again = data[5, 1]  # whatever was asked for in between
    assert all(late[name].equal(again[name]) for name in late)
    assert not late["image"].equal(early["image"])
    assert int(late["index"]) == 1


def test_no_picture_is_in_two_splits(datamodule: SegmentationDataModule) -> None:
    pictures = {
        split: {datamodule.dataset(split)[i][0].numpy().tobytes() for i in range(len(datamodule.dataset(split)))}
        for split in SPLITS
    }
    for split, other in itertools.combinations(SPLITS, 2):
        assert pictures[split] and not pictures[split] & pictures[other]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_is_scored_once_on_any_number_of_devices(datamodule: SegmentationDataModule, world: int) -> None:
    for split in ("val", "test"):
        length = len(datamodule.dataset(split))
        dealt = [list(EvaluationSampler(length, rank, world)) for rank in range(world)]
        assert sorted(index for part in dealt for index in part if index >= 0) == list(range(length))
        assert len({len(part) for part in dealt}) == 1


def test_an_image_that_only_fills_up_is_ignored(datamodule: SegmentationDataModule) -> None:
    filler = datamodule.val_dataloader().dataset[-1]
    assert filler["mask"].unique().tolist() == [datamodule.ignore_index] and int(filler["index"]) == -1


def files_of(arguments: dict[str, Any], folder: Path) -> list[Path]:
    """The images and masks that a data module reads; none where code makes them, which then takes no place of any."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in FILE_ENDINGS)
    assert bool(found) == ("root" in arguments)
    return found


def test_verify_names_a_broken_image(
    datamodule: SegmentationDataModule, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Whichever it is; data that code makes have no file that could break."""
    files = files_of(arguments, tmp_path)
    datamodule.verify()
    for path in (files[0], files[-1]) if files else ():
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=path.name):
            datamodule.verify()
        path.write_bytes(whole)
    datamodule.verify()


def test_what_is_on_disk_has_a_name_in_the_hash(
    datamodule: SegmentationDataModule, arguments: dict[str, Any], tmp_path: Path
) -> None:
    files = files_of(arguments, tmp_path)
    if not files:
        assert datamodule.identify(arguments) is None
        return
    name = datamodule.identify(arguments)
    assert name is not None and name == datamodule.identify(arguments) and len(name) == 16
    for path in (files[0], files[-1]):
        path.write_bytes(path.read_bytes() + b"more")
        assert datamodule.identify(arguments) not in (None, name)
        name = datamodule.identify(arguments)


def test_a_missing_root_is_said(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    if "root" in arguments:
        absent = {**arguments, "root": str(tmp_path / "absent")}
        for ask in (lambda: PROMISING[name](**absent), lambda: PROMISING[name].identify(absent)):
            with pytest.raises(FileNotFoundError, match=r"absent does not exist; expected .* holds data/"):
                ask()
        with pytest.raises(ValueError, match="needs root, the folder of its data"):
            PROMISING[name].identify({})


def test_every_test_image_has_a_group(datamodule: SegmentationDataModule) -> None:
    names = datamodule.dataset("test").names
    groups = datamodule.groups(names)
    assert len(groups) == len(names) and all(isinstance(group, str) and group for group in groups)
    assert datamodule.groups(names[::-1]) == groups[::-1]  # in whatever order they are asked for


def test_batch_size_must_suit_the_devices() -> None:
    datamodule = ShapesDataModule(batch_size=4)
    datamodule.trainer = Trainer(accelerator="cpu", strategy="ddp_fork", devices=3, logger=False)
    with pytest.raises(ValueError, match=r"batch_size .* 3 devices .* multiple of 3, got 4; try 6"):
        datamodule.train_dataloader()


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(ValueError, match="batch_size 8 is more than the 4 training images"):
        ShapesDataModule(length=4, batch_size=8).train_dataloader()
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ShapesDataModule(batch_size=0)


def test_unknown_split_names_the_choices() -> None:
    with pytest.raises(ValueError, match="train, val, test, got 'valid'"):
        ShapesDataModule().dataset("valid")
