"""What the files of a stored experiment hold, field by field. All that reads them, reads them through here.

A folder may come from anybody and may be damaged. Each file is read and validated as a whole, sizes before contents,
and refused in one line that names the file, the field, what was expected and what came. Fields that this version does
not know are let pass: those of later versions. What earlier versions did not store is optional.
"""

import csv
import hashlib
import math
import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from experiments.evidence.arrays import Array, DamagedError, Npz, unreadable
from experiments.evidence.refused import check_energy, got, refuse, said
from experiments.shell.difference import MOST_PATCH
from experiments.shell.files import read_json
from lightning_modules.components.scores.table import PER_IMAGE

MOST_JSON = 2**24  # bytes of a JSON file
MOST_CSV = 2**28  # bytes of a metrics.csv, which is read line by line
MOST_DEPTH = 40  # of objects and lists in one another
MOST_CELLS = 10_000  # variants times seeds
MOST_CLASSES = 255  # labels are bytes, and one of them is for ignored pixels
MOST_IMAGES = 200_000  # of a test split
MOST_PIXELS = 2**28  # of an image
MOST_SAMPLES = 100  # images in samples.npz, of which this version stores up to 18
MEASURED = ("parameters", "gmac", "step_seconds", "step_ratio", "peak_memory_mb")  # of a variant
LARGEST = 3.5e38  # of a number in metrics.csv: that of float32


def folder_name(name: str) -> str:
    """The name, if it makes a folder that does not leave the one it is made in; ValueError with the reason if not."""
    parts = name.split("/")
    if {"", ".", ".."} & {*parts} or name != printable(name) or any(len(part.encode()) > 255 for part in parts):
        raise PydanticCustomError(
            "folder",
            "must make the name of a folder that lies in this one: no absolute path, no .., no control characters, up "
            "to 255 bytes",
        )
    return name


def printable(text: str) -> str:
    """Without characters that steer a terminal or that UTF-8 cannot write: escapes such as \\x1b in their places."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"
        else char
        for char in text
    )


def _unique(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("unique", "must differ from one another")
    return values


def _times(seconds: dict[str, float]) -> dict[str, float]:
    if not {"network", "crf"} <= seconds.keys() or not seconds["network"]:
        raise PydanticCustomError("times", "must hold the seconds of network, above 0, and of crf")
    return seconds


Count = Annotated[int, Field(ge=0, le=2**53)]  # beyond, a float64 misses numbers
Measure = Annotated[float, Field(ge=0, le=1e15)]
Points = Annotated[float, Field(gt=0, le=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Folder = Annotated[str, AfterValidator(folder_name)]
Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
Pair = Annotated[list[Any], Field(min_length=2, max_length=2)]
Settings = dict[str, Any]


class _Stored(BaseModel):
    """No type is turned into another ("1" is no number), and numbers are finite."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Variant(_Stored):
    """What plan.json says of a variant. Without measurements where none was made."""

    levels: Settings
    parameters: Count | None = None
    gmac: Measure | None = None
    step_seconds: Measure | None = None
    step_ratio: Measure | None = None
    peak_memory_mb: Measure | None = None
    image_seconds: Annotated[dict[str, Measure], AfterValidator(_times)] = Field(default_factory=dict)


class Budget(_Stored):
    """What a variant is trained with, as `fairness.budget` has it."""

    steps: Count
    batch: Count
    accumulation: Count
    images: Count
    epochs: Count
    train_images: Count
    steps_before: Count
    augmentation: Settings
    start: str
    optimizer: Any
    lr: Any
    momentum: Any
    weight_decay: Any
    schedule: Any
    warmup: Any
    gradient_clip_val: Any
    loss: Any
    class_weights: Any
    precision: Any


class Match(_Stored):
    """How an arm was matched to another one."""

    of: Annotated[str, Field(pattern="^(parameters|gmac)$")]
    like: str
    by: str | None
    tolerance: Measure
    ratio: Measure
    values: Pair | None


class Trial(_Stored):
    """A value that a variant was tried with, and its validation mIoU; none where it diverged."""

    values: Settings
    miou: Annotated[float, Field(ge=0, le=1)] | None


class Tuning(_Stored):
    """What each variant was tried with before the experiment, and which of it was taken: see `tuning.tuned`."""

    seed: Seed
    settings: dict[str, Annotated[list[Any], Field(min_length=2)]]
    trials: dict[str, list[Trial]]
    chosen: dict[str, Settings]

    @model_validator(mode="after")
    def _fields_agree(self) -> "Tuning":
        if self.trials.keys() != self.chosen.keys():
            refuse("trials and chosen must be of the same variants")
        for variant, values in self.chosen.items():
            if values.keys() != self.settings.keys() or values not in [t.values for t in self.trials[variant]]:
                refuse(f"chosen.{variant} must be the values of one of its trials, got {got(values)}")
        return self


class Statistics(_Stored):
    """How a report judges, fixed before training."""

    variances: Annotated[str, Field(pattern="^(pooled|separate)$")] = "pooled"
    margin: Points | None = None
    margin_after: bool = False  # given when cells were finished
    until: Points | None = None  # half-width
    stage: Annotated[list[Seed], Field(min_length=3), AfterValidator(_unique)] | None = None  # seeds of stage one
    needed: Count | None = None  # seeds, by the variance of stage one


class StoredPlan(_Stored):
    """plan.json"""

    experiment: str
    question: str
    baseline: str
    factors: dict[str, list[Any]]
    variants: dict[Folder, Variant]
    seeds: Annotated[list[Seed], AfterValidator(_unique)]
    data: str
    data_note: str
    scale_note: str
    common: Settings
    class_names: Annotated[list[str], Field(min_length=1, max_length=MOST_CLASSES), AfterValidator(_unique)]
    palette: Annotated[list[Colour], Field(min_length=1, max_length=256)]
    command: str
    device: str
    commit: str
    scored: Annotated[str, Field(pattern="^(test|val)$")] = "test"  # the split
    notes: list[str] = Field(default_factory=list)
    stages: dict[Folder, Settings] = Field(default_factory=dict)
    parents: dict[str, list[str]] = Field(default_factory=dict)
    not_compared: list[str] = Field(default_factory=list)  # the stages of earlier versions, as the next
    hashes: Settings = Field(default_factory=dict)
    budget: dict[str, Budget] = Field(default_factory=dict)
    differences: dict[str, dict[str, Pair]] = Field(default_factory=dict)
    matched: dict[str, Match] = Field(default_factory=dict)
    tuning: Tuning | None = None
    statistics: Statistics = Field(default_factory=Statistics)
    seeds_planned: Annotated[list[Seed], AfterValidator(_unique)] | None = None  # of the first plan
    looks: list[list[Seed]] = Field(default_factory=list)  # seeds that were reported before more were added

    @model_validator(mode="after")
    def _fields_agree(self) -> "StoredPlan":
        names = set(self.variants)
        if self.baseline not in names:
            refuse(f"names no variant {self.baseline!r}, its baseline")
        if len(names) * len(self.seeds) > MOST_CELLS:
            refuse(f"must plan up to {MOST_CELLS:,} cells, got {len(names)} variants and {len(self.seeds)} seeds")
        crossed = math.prod(len(levels) for levels in self.factors.values()) == len(names)
        for name, variant in self.variants.items():
            if variant.levels.keys() != self.factors.keys():
                refuse(f"variants.{name}.levels must have a level of each factor, got {got(variant.levels)}")
            for factor, level in variant.levels.items() if crossed else ():
                if level not in self.factors[factor]:
                    refuse(f"variants.{name}.levels.{factor} must be one of {got(self.factors[factor])}")
        for field in ("budget", "differences"):
            of_field = getattr(self, field)
            if field in self.model_fields_set and of_field.keys() != names:
                refuse(f"{field} must have an entry for each variant and no other, got {got(list(of_field))}")
        if self.tuning is not None and self.tuning.chosen.keys() != names:
            refuse(f"tuning must have the trials of each variant, got {got(list(self.tuning.chosen))}")
        if not {*(self.statistics.stage or ())} <= {*self.seeds}:
            refuse(f"statistics.stage must be seeds of the plan, got {got(self.statistics.stage)}")
        if not self.matched.keys() <= names:
            refuse(f"matched must name variants, got {got(list(self.matched))}")
        return self


class RunRecord(_Stored):
    """run.json of a cell: what was asked for, and from some version on all settings with their defaults."""

    hparams: Settings = Field(default_factory=dict)
    data: Settings = Field(default_factory=dict)
    trainer: Settings = Field(default_factory=dict)
    settings: Settings = Field(default_factory=dict)


class Result(_Stored):
    """result.json"""

    status: str
    seconds: Measure | None = None
    epochs: Count | None = None
    steps: Count = 0
    params: Count | None = None
    accumulated: Count | None = None  # parts of a step, where memory ran out
    norm_batch: Count | None = None  # images that a batch norm then saw at a time
    energy: Annotated[dict[str, Any], AfterValidator(check_energy)] | None = None
    test: dict[str, float | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_whole(self) -> "Result":
        for field in ("seconds", "epochs"):
            if self.status == "done" and getattr(self, field) is None:
                refuse(f"lacks {field}")
        return self


class Environment(_Stored):
    """environment.json of a cell."""

    command: str = ""
    commit: str = ""
    patch: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    patch_lacks: list[str] = Field(default_factory=list)
    device: str = ""
    python: str = ""
    platform: str = ""
    processor: str = ""
    instruction_set: str = ""
    blas: str = ""
    cpus: Count | None = None
    torch_threads: Count = 0
    versions: dict[str, str] = Field(default_factory=dict)


def per_image() -> dict[str, Array]:
    """Of per_image.npz; letters in a shape are sizes that are the same wherever they stand: n images, C classes."""
    arrays = {"names": Array("U", ("n",)), "groups": Array("U", ("n",), optional=True)}
    for name, score in PER_IMAGE.items():
        high = MOST_PIXELS if score.high is None else score.high
        arrays[name] = Array(score.kinds, ("n", *score.shape), high=high, nan=score.nan, optional=score.detailed)
    return arrays


SAMPLED = {"names": Array("U", ("k",)), "kinds": Array("U", ("k",), optional=True)}  # k images
KIND_WORDS = {"fixed", "worst", "best"}


def _samples(count: int) -> dict[str, Array]:
    """Of samples.npz with `count` images, see `callbacks.sampled`: each is as large as its mask and prediction."""
    arrays = dict(SAMPLED)
    for key in ("logits", "initial_logits"):  # not of a cell that was not trained from the start; may be infinite
        arrays[key] = Array("f", ("C", f"{key} H", f"{key} W"), optional=True, any_value=True)
    for i in range(count):
        size = (f"H{i}", f"W{i}")
        arrays |= {f"image_{i}": Array("u", (*size, 3), high=255)}
        arrays |= {f"{key}_{i}": Array("u", size, high=255) for key in ("mask", "prediction")}
    return arrays


def read(path: Path, model: type[_Stored]) -> dict[str, Any]:
    """The object in a JSON file, as it stands there but for `printable`; an optional field that is absent has its
    default in a plan's variants, and stays absent elsewhere. Raises ValueError, which names file and field.
    """
    check_file(path, MOST_JSON)
    content = _clean(read_json(path), path)
    try:
        record = model.model_validate(content)
    except ValidationError as error:
        raise DamagedError(f"{path} {said(error.errors()[0])}: {_way_out(path)}") from None
    if isinstance(record, StoredPlan):
        for name, variant in content["variants"].items():
            content["variants"][name] = {key: None for key in MEASURED if key not in variant} | variant
    return content


def read_patch(path: Path, sha256: str) -> bytes:
    """A code.patch with this SHA-256, which git takes as it is. Raises ValueError, which names the file."""
    way_out = 'put it back, or delete "patch" from the environment.json beside it: reproduce.sh then runs without it'
    check_file(path, MOST_PATCH, way_out)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, way_out) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        named = f"the SHA-256 that {path.with_name('environment.json')} names, {sha256}"
        raise DamagedError(f"{path} must have {named}, got {found}: {way_out}")
    if not content.startswith(b"diff --git ") or b"\0" in content:
        raise DamagedError(f"{path} must be a patch as text, got {got(content[:40])}: {way_out}")
    return content


def read_curve(path: Path, column: str) -> dict[int, float]:
    """A column of a metrics.csv by epoch; epochs without a value are left out. Raises ValueError, which names the
    file."""
    check_file(path, MOST_CSV)
    curve: dict[int, float] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                epoch, value = row.get("epoch"), row.get(column)
                if not epoch or not value:
                    continue
                when, what = float(epoch), float(value)
                if not (when.is_integer() and 0 <= when <= 2**31):
                    raise ValueError(f"line {line}: epoch must be a whole number, got {epoch[:40]!r}")
                if not abs(what) <= LARGEST:
                    raise ValueError(f"line {line}: {column} must be a finite number, got {value[:40]!r}")
                curve[int(when)] = what
    except (OSError, ValueError, csv.Error) as error:
        raise unreadable(path, error) from error
    return curve


def read_samples(path: Path, classes: int) -> Npz:
    """The arrays of a samples.npz, each read when it is asked for. Raises ValueError, which names file and field."""
    words = Npz(path, SAMPLED, {}, MOST_SAMPLES)
    names, kinds = words.texts("names"), words.texts("kinds") if "kinds" in words else []
    if len(set(names)) < len(names):
        raise DamagedError(f"{path}: names must differ, got {got(names)}: {_way_out(path)}")
    if not {word for kind in kinds for word in kind.split()} <= KIND_WORDS:
        raise DamagedError(
            f"{path}: kinds must be of {', '.join(sorted(KIND_WORDS))}, got {got(kinds)}: {_way_out(path)}"
        )
    arrays = Npz(path, _samples(len(names)), {"k": len(names), "C": classes}, MOST_PIXELS)
    arrays.check_total(("image_", "mask_", "prediction_"))
    return arrays


def check_file(path: Path, most: int, way_out: str = "") -> None:
    """Raises ValueError for a file that is too large, or none that could be read: a pipe would be waited for."""
    try:
        if not path.exists():
            raise FileNotFoundError("no such file")
        if not path.is_file():
            raise ValueError("no regular file")
        if path.stat().st_size > most:
            raise ValueError(f"expected up to {most:,} bytes, got {path.stat().st_size:,}")
    except (OSError, ValueError) as error:
        raise unreadable(path, error, way_out) from error


def _clean(value: Any, path: Path, depth: int = 0) -> Any:
    if depth > MOST_DEPTH:
        raise DamagedError(f"{path} holds objects within objects, more than {MOST_DEPTH} deep: {_way_out(path)}")
    if isinstance(value, dict):
        return {printable(key): _clean(item, path, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, path, depth + 1) for item in value]
    return printable(value) if isinstance(value, str) else value


def _way_out(path: Path) -> str:
    if path.name == "plan.json":  # whose folder holds every finished cell
        return "start the experiment again, which writes it anew and keeps its finished cells"
    return f"delete {path.parent} and run the experiment again"
