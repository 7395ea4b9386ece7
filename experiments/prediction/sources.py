"""What is to be predicted: the images that a path, a folder, a pattern or a list names, and what their results are
called."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.checks.problems import shown
from datamodules.files import IMAGE_ENDINGS, JUNK, read_lines
from experiments.shell.store import opened

ENDINGS = {*IMAGE_ENDINGS, ".npy"}
VOLUMES = (".nii", ".nii.gz")
# Images and scans that are not read.
OTHERS = {
    ".heic",
    ".heif",
    ".gif",
    ".avif",
    ".jp2",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
    ".svs",
    ".ndpi",
    ".czi",
    ".dcm",
    ".pdf",
}
LISTS = {".txt", ".lst"}
MOST = 10**6  # images of one call


@dataclass(frozen=True)
class Item:
    """An image, or a volume of them.

    Args:
        path: its file; of one in a bucket, its name there
        name: what its results are called: its place below the folder that was named, without ending
        url: where it lies, of one in a bucket
        stamp: its size and version there
    """

    path: Path
    name: str
    url: str = ""
    stamp: tuple[int, str] = (0, "")

    def known(self) -> list[Any]:
        """What it is known by: where it lies, its size and when it was written."""
        if self.url:
            return [self.url, *self.stamp]
        stat = self.path.stat()
        return [str(self.path), stat.st_size, stat.st_mtime_ns]

    @contextmanager
    def here(self) -> Iterator["Item"]:
        """The image as a file of this machine: one of a bucket is brought, and removed afterwards."""
        if not self.url:
            yield self
            return
        with tempfile.TemporaryDirectory(prefix="seglab-") as folder:
            path = Path(folder, self.path.name)
            filesystem, place = opened(self.url, self.url)
            try:
                filesystem.get_file(place, str(path))
            except Exception as error:
                raise ValueError(f"{self.url} cannot be fetched ({type(error).__name__}: {error})") from error
            yield replace(self, path=path)

    @property
    def volume(self) -> bool:
        return self.path.name.lower().endswith(VOLUMES)


def items(sources: Sequence[str], *, out: Path) -> list[Item]:
    """The images of all `sources`, each once, in order; those in `out`, which are results, are left out.

    A source is a file, a folder with all images below it, a pattern such as "scans/**/*.png", or a .txt file with a
    path a line, beside the list unless it is absolute. One source alone may be a bucket, s3://BUCKET/FOLDER. Names keep
    the tree below the folder that all have in common; where two would be equal, they keep their endings.

    Raises FileNotFoundError for what is not there, ValueError for a folder or a list without images.
    """
    if any("://" in source for source in sources):
        if len(sources) > 1:
            raise ValueError(f"a bucket is predicted alone, got {shown(' '.join(sources))}: call this once for each")
        return _in_bucket(sources[0])
    of_sources, listed = {source: _of(source) for source in sources}, shown(" ".join(sources))
    base = _base(of_sources)
    paths = dict.fromkeys(path for of_source in of_sources.values() for path in of_source)
    found = {path: PurePosixPath(*path.parts[len(base.parts) :]) for path in paths if not _within(path, out)}
    if not found and paths:
        raise ValueError(f"all images of {listed} lie in {out}, which holds results: choose another --out")
    if not found:
        raise ValueError(f"{listed} holds no image: {_endings()}")
    if len(found) > MOST:
        raise ValueError(f"{listed} holds {len(found):,} images, more than {MOST:,}: predict in parts")
    names = _told_apart({path: (str(name.with_name(_stem(name.name))), str(name)) for path, name in found.items()})
    return [Item(path, name) for path, name in names.items()]


def _in_bucket(url: str) -> list[Item]:
    """The images below a URL, in order."""
    filesystem, root = opened(url, url)
    try:
        found = {path: info for path, info in filesystem.find(root, detail=True).items() if _is_image(path)}
    except Exception as error:
        raise ValueError(f"{url} cannot be listed ({type(error).__name__}: {error})") from error
    if not found:
        raise FileNotFoundError(f"{url} holds no image: {_endings()}")
    if len(found) > MOST:
        raise ValueError(f"{url} holds {len(found):,} images, more than {MOST:,}: predict in parts")
    base = PurePosixPath(root) if root not in found else PurePosixPath(root).parent
    if odd := next((path for path in found if {"", ".", ".."} & {*path.lstrip("/").split("/")}), None):
        raise ValueError(f"{url} holds {shown(odd)}, which is no path of a file: give that object another name")
    places = {Path(path): PurePosixPath(path).relative_to(base) for path in sorted(found)}
    names = _told_apart({path: (str(n.with_name(_stem(n.name))), str(n)) for path, n in places.items()})
    items = []
    for path, name in names.items():
        info = found[str(path)]
        version = next(
            (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info), ""
        )
        items.append(
            Item(path, name, str(filesystem.unstrip_protocol(str(path))), (int(info.get("size") or 0), version))
        )
    return items


def left_out(sources: Sequence[str]) -> str:
    """The files in folders that look like images and are none that is read, in words: "3 .heic, 1 .gif"."""
    count: Counter[str] = Counter()
    for source in sources:
        for _, folders, files in os.walk(source):
            folders[:] = [name for name in folders if not name.startswith(".")]
            count.update(ending for name in files if (ending := Path(name).suffix.lower()) in OTHERS)
    return ", ".join(f"{number} {ending}" for ending, number in sorted(count.items()))


def _told_apart(names: dict[Path, tuple[str, str]]) -> dict[Path, str]:
    """Names without endings, or with them where two would be equal, also on a system that reads a.png for A.png."""
    chosen = {path: short for path, (short, _) in names.items()}
    while True:
        count = Counter(name.casefold() for name in chosen.values())
        clash = [p for p, name in chosen.items() if count[name.casefold()] > 1 and name != names[p][1]]
        if not clash:
            return chosen
        chosen |= {path: names[path][1] for path in clash}


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


def _base(of_sources: dict[str, list[Path]]) -> Path:
    """The folder below which names are told: the one that was named, or what all that was named has in common."""
    named = [Path(os.path.abspath(source)) for source in of_sources if os.path.isdir(source)]
    others = [path.parent for source, paths in of_sources.items() if not os.path.isdir(source) for path in paths]
    return Path(os.path.commonpath([*named, *others])) if named or others else Path("/")


def _within(path: Path, out: Path) -> bool:
    return Path(os.path.abspath(out)) in path.parents


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS or name.lower().endswith(VOLUMES)


def _stem(name: str) -> str:
    ending = next((ending for ending in VOLUMES[::-1] if name.lower().endswith(ending)), None)
    stem = name[: -len(ending)] if ending else Path(name).stem
    return name if stem.strip(".") == "" else stem


def _endings() -> str:
    return f"images end in {', '.join(sorted([*ENDINGS, *VOLUMES]))}"
