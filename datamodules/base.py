"""What every data set shares: the sample, the classes, and which images each device sees in which order.

Everything random follows from (seed, epoch, index) alone. The sampler hands the epoch to the workers together with the
index, because workers that were forked in an earlier epoch do not see attributes that change later.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.boxes import filled_up
from datamodules.files import SPLITS
from datamodules.scale import Scale
from datamodules.transforms import Augmentation, JointTransform
from datamodules.workers import end_workers_at_exit, leave_signals_to_the_parent

SEED_OF_NO_RUN = 2**32  # a run's is less

Sample = dict[str, Tensor]
"""An image with its labels, and a batch of them when collated.

"image": float32 (in_channels, H, W) in [0, 1]; "mask": int64 (H, W) in [0, num_classes) or ignore_index; "index": int64
scalar, the position in the split, or -1 for an image that only fills up the last step of a distributed evaluation.
Where the data have them, "boxes": int64 (B, 5), see `SegmentationDataset.boxes`, filled up with rows of -1.
"""


def random_generator(*key: int) -> torch.Generator:
    """A generator that depends on `key` alone; neighbouring keys give unrelated streams."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """The images of one split as they are: `dataset[i]` is (image, mask), without augmentation, in `Sample`'s types."""

    names: list[str]  # one for every image, each only once: reports and per-image scores refer to it
    most_boxes: int = 0  # of an image, where the data have boxes of its objects

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def boxes(self, index: int) -> Tensor:
        """The boxes (B, 5) of the image at `index`, B at most `most_boxes`: left, top, right, bottom, category, int64.

        In pixels of what `dataset[index]` gives, right and bottom exclusive.
        """
        raise NotImplementedError


class EpochSampler(Sampler[tuple[int, int]]):
    """Deals an epoch of whole batches to the devices as (epoch, index); (seed, epoch) alone decides on the order.

    `batch_size` counts all devices together: step s takes the same images of the order for any `world`. What is left
    after the last whole batch is dropped; it differs from epoch to epoch. The first pass leaves out the `done` batches
    that an interrupted run has trained on, but the length stays that of an epoch, which Lightning counts by.
    """

    def __init__(self, length: int, batch_size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        self.epoch = self.done = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of every epoch; what was `done` belongs to another one."""
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        return self.length // self.batch_size * self.batch_size // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self.length, generator=random_generator(self.seed, self.epoch, 0))
        first, last = self.done * self.batch_size, len(self) * self.world
        self.done = 0
        return iter([(self.epoch, index) for index in order[first:last][self.rank :: self.world].tolist()])


class EvaluationSampler(Sampler[int]):
    """Deals every index to exactly one device, and -1 where a device would have one step less than another."""

    def __init__(self, length: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.rank, self.world = length, rank, world

    def __len__(self) -> int:
        return math.ceil(self.length / self.world)

    def __iter__(self) -> Iterator[int]:
        padded = [*range(self.length), *[-1] * (-self.length % self.world)]
        return iter(padded[self.rank :: self.world])


class TrainingSamples(Dataset[Sample]):
    """Augmented samples by (epoch, index)."""

    def __init__(self, dataset: SegmentationDataset, transform: JointTransform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        image, mask = self.dataset[index]
        size, of_sample = (mask.shape[0], mask.shape[1]), (self.seed, epoch, 1 + index)  # 0 is of the epoch's order
        image, mask = self.transform(image, mask, random_generator(*of_sample))
        sample = {"image": image, "mask": mask, "index": torch.tensor(index)}
        if most := self.dataset.most_boxes:
            boxes = self.transform.boxes(self.dataset.boxes(index), size, random_generator(*of_sample))
            sample["boxes"] = filled_up(boxes, most)
        return sample


class EvaluationSamples(Dataset[Sample]):
    """Samples by index, as they are; -1 gives the first image with every pixel ignored."""

    def __init__(self, dataset: SegmentationDataset, ignore_index: int) -> None:
        self.dataset, self.ignore_index = dataset, ignore_index

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.dataset[max(index, 0)]
        if index < 0:
            mask = torch.full_like(mask, self.ignore_index)
        sample = {"image": image, "mask": mask, "index": torch.tensor(index)}
        if most := self.dataset.most_boxes:
            sample["boxes"] = filled_up(self.dataset.boxes(max(index, 0)), most)
        return sample


@dataclass(frozen=True, kw_only=True)
class Loading(Augmentation):
    """How images become batches: the arguments that every data set takes. A data set states its own as `loading`.

    Args:
        scale: factor of the size of every image, for cheap runs; the crop counts pixels after it
        batch_size: images of one optimiser step, over all devices and accumulated batches
        num_workers: processes of each device that load images; 0 leaves it to the one that trains
        tile: validation and test images are predicted in exact tiles of so many pixels a side, for images that do not
            fit into memory at once; null predicts them whole
    """

    scale: float = 1.0
    batch_size: int = 8
    num_workers: int = 0
    tile: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise ValueError(f"scale must be more than 0, got {self.scale}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.tile is not None and self.tile < 16:
            raise ValueError(f"tile must be at least 16 pixels, got {self.tile}")


class SegmentationDataModule(LightningDataModule):
    """A subclass states its `loading`, in its constructor its classes and colours, and reads a split in `load`.

    Its arguments are its own and the fields of `Loading`, each stated once: `inspect.signature` knows them all.
    `batch_size` counts the images of one optimiser step, over all devices and all batches that the trainer accumulates,
    so that neither changes the result; the last, incomplete batch of an epoch is dropped. Validation and test take one
    whole image at a time and every image exactly once. The trainer needs `use_distributed_sampler=False`: samplers are
    made here.
    """

    num_classes: int
    class_names: list[str]
    palette: list[tuple[int, int, int]]  # red, green, blue of every class, 0 to 255
    in_channels: int = 3
    ignore_index: int = JointTransform.ignore_index
    loading: Loading = Loading()
    hidden: ClassVar[tuple[str, ...]] = ()  # arguments of `Loading` that the data set does not take
    located: ClassVar[tuple[str, ...]] = ("root",)  # arguments that say what is read, which `identify` counts instead
    note: ClassVar[str] = ""  # what its numbers can and cannot show, for reports
    cpu_scale: ClassVar[Scale | None] = None  # of studies on two CPU cores; None where a rule finds it
    full_size: ClassVar[Scale | None] = None  # of studies on a GPU
    __signature__: ClassVar[inspect.Signature]
    seed: int = 0  # of the order and the augmentation; set it before the first training batch
    # The split whose images the final scores are of. "val" where the data have no test split: whoever chooses settings
    # by these scores has seen them, which every report says.
    scored: str = "test"
    box_categories: frozenset[int] = frozenset()  # classes of the boxes that samples have; none without boxes

    def __init_subclass__(cls) -> None:
        """Composes the signature of `cls`: what it and its bases declare, then its `loading` but the `hidden`
        arguments."""
        super().__init_subclass__()
        declared: dict[str, inspect.Parameter] = {}
        for base in cls.__mro__[: cls.__mro__.index(SegmentationDataModule)]:
            if "__init__" in vars(base):
                for parameter in [*inspect.signature(vars(base)["__init__"]).parameters.values()][1:]:
                    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                        declared.setdefault(parameter.name, parameter)
        for field in fields(Loading):
            if field.name in declared and getattr(cls.loading, field.name) != field.default:
                raise TypeError(
                    f"{cls.__name__}.loading cannot state {field.name}: it is an argument of the constructor, whose "
                    "default counts"
                )
            if field.name not in cls.hidden:
                default = getattr(cls.loading, field.name)
                keyword = inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type
                )
                declared.setdefault(field.name, keyword)
        cls.__signature__ = inspect.Signature(sorted(declared.values(), key=lambda parameter: parameter.kind))
        anonymous = cls.identify.__func__ is SegmentationDataModule.identify.__func__  # type: ignore[attr-defined]
        if anonymous and (read := [name for name in cls.located if name in declared]):
            raise TypeError(
                f"{cls.__name__} takes {read[0]} and needs identify(arguments), as changed data would keep their hash: "
                f'return digest_files(arguments.get("{read[0]}"), "*.npz"), of datamodules/fingerprint.py'
            )
        for name in sorted(declared.keys() & vars(cls).keys()):
            if not callable(value := vars(cls)[name]) and not hasattr(value, "__get__"):
                way_out = "state its default there"
                if name in {field.name for field in fields(Loading)}:
                    way_out = f"state it in loading = Loading({name}=...)"
                elif name == "classes" and hasattr(cls, "published"):
                    way_out = "state the classes of a data set, with their colours, as published"
                raise TypeError(f"{cls.__name__}.{name} is read by nothing: it is an argument; {way_out}")

    def __init__(self, **loading: Any) -> None:
        super().__init__()
        arguments = inspect.signature(type(self)).parameters
        if unknown := [name for name in loading if name not in arguments]:
            raise TypeError(
                f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}: it takes "
                f"{', '.join(arguments)}"
            )
        self.loading = replace(self.loading, **loading)
        self.batch_size, self.num_workers = self.loading.batch_size, self.loading.num_workers
        augmentation = {field.name: getattr(self.loading, field.name) for field in fields(Augmentation)}
        self.transform = JointTransform(**augmentation)
        self._datasets: dict[str, SegmentationDataset] = {}
        self._position = (0, 0)  # epoch and batches that the checkpoint of a resumed run has behind it

    @property
    def reads(self) -> dict[str, Any]:
        """How an image file becomes what the network gets, in plain values: a checkpoint carries it, for predictions.

        `channels` and `value_range` are those of `datamodules.layouts.pixels.as_channels`, `bits` those of a stored
        value (32 is a float), None where code makes the images; `scale` is the factor of their size.
        """
        channels = {1: "grey", 3: "rgb", 4: "rgba"}.get(self.in_channels, "all")
        return {"channels": channels, "value_range": None, "bits": None, "scale": self.loading.scale}

    def load(self, split: str) -> SegmentationDataset:
        """Reads one of `SPLITS`; `dataset` calls it once for each."""
        raise NotImplementedError

    def verify(self) -> None:
        """Raises a ValueError that names every bad file, before anything expensive starts."""

    @classmethod
    def read_shared(cls) -> None:
        """Reads what every instance has in common and keeps in memory: processes that are forked after it have it."""

    @classmethod
    def identify(cls, arguments: Mapping[str, Any]) -> str | None:
        """What the data of these keyword arguments hold, as a short name for a run's hash; None where code makes them.

        Raises as `verify` does.
        """
        return None

    @classmethod
    def about(cls, arguments: Mapping[str, Any]) -> str:
        """What the numbers of these data can and cannot show: the `note`, unless the `arguments` state one."""
        return cls.note

    def groups(self, names: Sequence[str]) -> list[str]:
        """The group of each of these test images, in their order; by default every image is its own.

        Images whose errors go together are a group: slices of a patient or a volume, frames of a drive. It is what is
        drawn as a whole when other images are asked about, and stored with the scores.
        """
        return list(names)

    def dataset(self, split: str) -> SegmentationDataset:
        """The raw images of "train", "val" or "test"; for the last those of `scored`, so that every stored file keeps
        its form."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        split = self.scored if split == "test" else split
        if split not in self._datasets:
            self._datasets[split] = self.load(split)
        return self._datasets[split]

    def train_dataloader(self) -> DataLoader[Sample]:
        dataset, (rank, world) = self.dataset("train"), self._devices()
        parts = world * self._accumulate()
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size counts the images of one optimiser step: it is shared by {world} devices x "
                f"{self._accumulate()} accumulated batches and must be a multiple of {parts}, got {self.batch_size}; "
                f"try {-(-self.batch_size // parts) * parts}"
            )
        if len(dataset) < self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is more than the {len(dataset)} training images, so an epoch would have "
                f"no step; choose batch_size <= {len(dataset)}"
            )
        sampler = EpochSampler(len(dataset), self.batch_size, self.seed, rank=rank, world=world)
        (sampler.epoch, sampler.done), self._position = self._position, (0, 0)
        return self._loader(TrainingSamples(dataset, self.transform, self.seed), sampler, self.batch_size // parts)

    def crops(self, count: int) -> Iterator[Tensor]:
        """So many training images as `train_dataloader` has them, in batches: the same for every seed.

        (N, in_channels, H, W) in [0, 1] each, N the `batch_size` but for the last. Where there are fewer images, each
        comes more than once, augmented otherwise.
        """
        dataset = self.dataset("train")
        samples = TrainingSamples(dataset, self.transform, SEED_OF_NO_RUN)
        epochs = range(math.ceil(count / len(dataset)))
        orders = (torch.randperm(len(dataset), generator=random_generator(SEED_OF_NO_RUN, e, 0)) for e in epochs)
        keys = [(epoch, index) for epoch, order in enumerate(orders) for index in order.tolist()][:count]
        for first in range(0, count, self.batch_size):
            yield torch.stack([samples[key]["image"] for key in keys[first : first + self.batch_size]])

    def state_dict(self) -> dict[str, int]:
        """The epoch and the batches of it that a checkpoint has behind it.

        A resumed run needs them when it makes the first iterator, which is before Lightning restores its loops (for
        the length of a schedule) and before it calls `set_epoch`.
        """
        if not self.trainer:
            return {"epoch": 0, "batches": 0}
        loop = self.trainer.fit_loop
        epochs = loop.epoch_progress.current.state_dict()
        epoch, batches = epochs["processed"], 0  # `trainer.current_epoch` is one behind after the end of an epoch
        if epochs["ready"] > epochs["processed"]:  # from within an epoch, or of its last step
            done = loop.epoch_loop.batch_progress.current.state_dict()["processed"]
            if done >= loop.max_batches:  # which may be fewer than the images make
                epoch += 1
            else:
                batches = done // self._accumulate()
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._position = (state_dict["epoch"], state_dict["batches"])

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader[Sample]:
        dataset = self.dataset(split)
        sampler = EvaluationSampler(len(dataset), *self._devices())
        return self._loader(EvaluationSamples(dataset, self.ignore_index), sampler, 1)

    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _devices(self) -> tuple[int, int]:
        """Rank of this process and number of processes; a single one where no trainer is attached, as in a notebook."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self, samples: Dataset[Sample], sampler: EpochSampler | EvaluationSampler, batch_size: int
    ) -> DataLoader[Sample]:
        if self.num_workers:
            end_workers_at_exit()
        return DataLoader(
            samples,
            batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_the_parent,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A loader draws a number for its workers; from the global generator it would shift dropout.
            generator=torch.Generator(),
        )
