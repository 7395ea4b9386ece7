"""What is to be predicted: the images that a path, a folder, a pattern or a list names, and what their results are
called."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path, PurePosixPath

from datamodules.checks.problems import shown
from datamodules.files import IMAGE_ENDINGS, JUNK, read_lines

ENDINGS = {*IMAGE_ENDINGS, ".npy"}
VOLUMES = (".nii", ".nii.gz")
LISTS = {".txt", ".lst"}
MOST = 10**6  # images of one call


@dataclass(frozen=True)
class Item:
    """An image, or a volume of them.

    Args:
        path: its file
        name: what its results are called: its place below the folder that was named, without ending
    """

    path: Path
    name: str

    @property
    def volume(self) -> bool:
        return self.path.name.lower().endswith(VOLUMES)


def items(sources: Sequence[str], *, out: Path) -> list[Item]:
    """The images of all `sources`, each once, in order; those in `out`, which are results, are left out.

    A source is a file, a folder with all images below it, a pattern such as "scans/**/*.png", or a .txt file with a
    path a line, beside the list unless it is absolute. Names keep the tree below the folder that all have in common;
    where two would be equal, they keep their endings.

    Raises FileNotFoundError for what is not there, ValueError for a folder or a list without images.
    """
    found: dict[Path, PurePosixPath] = {}
    for source in sources:
        of_source = _of(source)
        base = _base(of_source, Path(source))
        for path in of_source:
            if not _within(path, out):
                found.setdefault(path, PurePosixPath(*path.parts[len(base.parts) :]))
    if not found:
        raise ValueError(f"{shown(' '.join(sources))} holds no image: {_endings()}")
    if len(found) > MOST:
        raise ValueError(
            f"{shown(' '.join(sources))} holds {len(found):,} images, more than {MOST:,}: predict in parts"
        )
    short = {path: str(name.with_name(_stem(name.name))) for path, name in found.items()}
    # On a system that does not tell a.png from A.png they would replace one another.
    count = Counter(name.casefold() for name in short.values())
    return [
        Item(path, short[path] if count[short[path].casefold()] == 1 else str(name)) for path, name in found.items()
    ]


def _of(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return [Path(os.path.abspath(one)) for one in _below(path)]
    if path.is_file():
        if path.suffix.lower() in LISTS:
            return _listed(path)
        if not _is_image(path.name):
            raise ValueError(f"{shown(source)} is no image: {_endings()}")
        return [Path(os.path.abspath(path))]
    if has_magic(source):
        matched = sorted(glob(source, recursive=True))
        of_images = [one for one in matched if os.path.isfile(one) and _is_image(one)]
        if not of_images:
            raise FileNotFoundError(
                f"{shown(source)} matches {len(matched)} files and no image among them: quote the pattern, so that "
                f"the shell leaves it alone; {_endings()}"
            )
        return [Path(os.path.abspath(one)) for one in of_images]
    if os.path.lexists(path):
        raise ValueError(f"{shown(source)} is neither a regular file nor a folder: give an image or a folder of them")
    raise FileNotFoundError(f"{shown(source)} is not there: give an image, a folder, a pattern or a list of images")


def _below(folder: Path) -> Iterator[str]:
    """Files below a folder, in order, links to folders not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(files):
            if not name.startswith(".") and name not in JUNK and _is_image(name):
                yield os.path.join(place, name)


def _listed(path: Path) -> list[Path]:
    found = []
    for number, line in enumerate(read_lines(path), 1):
        place = Path(os.path.abspath(path.parent / line))
        if not place.is_file():
            raise FileNotFoundError(f"{path} line {number}: {shown(line)} is not there; paths are beside the list")
        if not _is_image(place.name):
            raise ValueError(f"{path} line {number}: {shown(line)} is no image: {_endings()}")
        found.append(place)
    if not found:
        raise ValueError(f"{path} is an empty list: write the path of an image in each line")
    return found


def _base(paths: Sequence[Path], source: Path) -> Path:
    """The folder below which names are told: the one that was named, or what all images have in common."""
    if source.is_dir():
        return Path(os.path.abspath(source))
    return Path(os.path.commonpath([path.parent for path in paths])) if paths else Path("/")


def _within(path: Path, out: Path) -> bool:
    return Path(os.path.abspath(out)) in path.parents


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS or name.lower().endswith(VOLUMES)


def _stem(name: str) -> str:
    ending = next((ending for ending in VOLUMES[::-1] if name.lower().endswith(ending)), None)
    return name[: -len(ending)] if ending else Path(name).stem


def _endings() -> str:
    return f"images end in {', '.join(sorted([*ENDINGS, *VOLUMES]))}"
