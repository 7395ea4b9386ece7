"""Says everything that is wrong with a folder of images and masks before training starts.

Nothing is dropped, repaired or written: a problem names the file, what was found and what to do. What cannot be found
is a mask that fits its image in size and labels and yet shows something else, such as a transposed square one.
"""

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.files import (
    SPLITS,
    decode,
    files_by_name,
    has_groups,
    read_bytes,
    read_groups,
    read_split,
    readable,
    short,
)
from datamodules.fingerprint import file_states, keep_record, make_record, stored_record

SHOWN = 20  # problems spelt out in one message
ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 swap height and width

Files = dict[str, list[Path]]
Splits = dict[str, list[str]]


def check_layout(root: Path) -> None:
    """Raises a FileNotFoundError that lists what the folder lacks and what is there instead.

    ValueError where the system does not let it be looked into.
    """
    expected = ["images/", "masks/", "classes.txt", *(f"splits/{split}.txt" for split in SPLITS)]
    with readable(f"the data folder {root}"):
        if not root.is_dir():
            nearest = next(parent for parent in root.absolute().parents if os.path.isdir(parent))
            raise FileNotFoundError(
                f"the data folder {root} does not exist; expected a folder with {', '.join(expected)}. "
                f"{nearest} holds {_listing(nearest)}"
            )
        if missing := [e for e in expected if not ((root / e).is_dir() if e.endswith("/") else (root / e).is_file())]:
            raise FileNotFoundError(f"{root} has no {', '.join(missing)}; it holds {_listing(root)}")


def check_folder(root: Path, num_classes: int, ignore_index: int) -> None:
    """Raises a ValueError with every problem of the folder: how many there are, and the first 20.

    Every file counts, also one that no split names; one that cannot be read is a problem like any other. Warns of
    images that EXIF turns, and of those in no split. A folder that was found right is not read again until one of its
    files has another size or time.
    """
    wanted, record = [num_classes, ignore_index], stored_record(root)
    if record and record.verified == wanted:
        for line in record.warnings:
            warnings.warn(line, stacklevel=3)
        return
    try:
        states = file_states(root)
    except OSError:  # the reads below meet it again, and say of what
        states = {}
    unread: list[str] = []
    images, masks = (_listed(root / folder, unread) for folder in ("images", "masks"))
    splits = {split: names for split in SPLITS if (names := _named(root, split, unread)) is not None}
    pairs = {name: (images[name][0], masks[name][0]) for name in images if name in masks} if images and masks else {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter lock
        checked = pool.map(lambda pair: _check_pair(pair[0], pair[1], num_classes, ignore_index), pairs.values())
        checks = dict(zip(pairs, checked, strict=True))
    problems = [
        *unread,
        *_split_problems(splits, images),
        *_label_problems({label for check in checks.values() for label in check.labels}, num_classes, ignore_index),
        *_leaks(splits, checks),
        *(read_groups(root, splits.get("test", []), images)[1] if has_groups(root) else []),
        *(_pairing_problems(images, masks) if images is not None and masks is not None else []),
        *(problem for check in checks.values() for problem in check.problems),
    ]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n  ".join([f"{count} in {root}:", *problems[:SHOWN], *more]))
    turned = [name for name, check in checks.items() if check.orientation != 1]
    unused = sorted(set(pairs).difference(*splits.values()))
    warned = [
        f"{what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for what, names in (
            ("images turned upright by their EXIF orientation", turned),
            ("images in no split, which stay unused", unused),
        )
        if names
    ]
    for line in warned:
        warnings.warn(line, stacklevel=3)
    digests = {path: digest for check in checks.values() for path, digest in check.digests.items()}
    keep_record(root, make_record(root, states, digests, wanted, warned))


def _listed(folder: Path, unread: list[str]) -> Files | None:
    """The files of a folder; None, and one more line in `unread`, where the system does not tell them."""
    try:
        return files_by_name(folder)
    except ValueError as error:
        unread.append(str(error))
        return None


def _named(root: Path, split: str, unread: list[str]) -> list[str] | None:
    """The names in a split; None, and one more line in `unread`, where they cannot be read."""
    try:
        return read_split(root, split)
    except ValueError as error:
        unread.append(str(error))
        return None


@dataclass
class _Check:
    """What is known of an image and its mask."""

    problems: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # values in the mask
    digests: dict[Path, str] = field(default_factory=dict)  # SHA-256 of the files that can be read
    picture: str = ""  # that of the image
    orientation: int = 1


def _check_pair(image_path: Path, mask_path: Path, num_classes: int, ignore_index: int) -> _Check:
    check = _Check()
    image = mask = None
    try:
        image = _check_image(image_path, check)
    except ValueError as error:
        check.problems.append(str(error))
    try:
        mask = _check_mask(mask_path, check, num_classes, ignore_index)
    except ValueError as error:
        check.problems.append(str(error))
    if image and mask:
        width, height = image.size[::-1] if check.orientation >= 5 else image.size
        if mask.size != (width, height):
            turned = " once its EXIF orientation is applied" if check.orientation >= 5 else ""
            check.problems.append(
                f"{short(mask_path)} is {mask.width} x {mask.height} pixels and {short(image_path)} {width} x {height}"
                f"{turned}; make the mask for the image as it is here"
            )
    return check


def _check_image(path: Path, check: _Check) -> Image.Image:
    data = read_bytes(path)
    image = decode(path, data)
    if image.mode not in {"RGB", "L", "P", "1"} or "transparency" in image.info:
        raise ValueError(f"{short(path)} holds {_meaning(image)}; save it as 8-bit RGB or grey without transparency")
    _check_single(image, path)
    check.picture = check.digests[path] = sha256(data).hexdigest()
    orientation = image.getexif().get(ORIENTATION, 1)
    check.orientation = orientation if orientation in range(1, 9) else 1  # also text and lists are found there
    return image


def _check_mask(path: Path, check: _Check, num_classes: int, ignore_index: int) -> Image.Image:
    data = read_bytes(path)
    mask = decode(path, data)
    fix = "save the mask as an 8-bit PNG of class indices"
    if mask.format != "PNG":
        lossy = ", whose compression changes labels" if mask.format == "JPEG" else ""
        raise ValueError(f"{short(path)} is a {mask.format} file{lossy}; {fix}")
    if mask.mode not in {"P", "L", "1"}:
        raise ValueError(f"{short(path)} holds {_meaning(mask)}; {fix}")
    if mask.mode == "L" and data[24] < 8:  # the bit depth in the PNG header
        raise ValueError(f"{short(path)} is grey with {data[24]} bits a pixel, which readers stretch to 0-255; {fix}")
    _check_single(mask, path)
    check.digests[path] = sha256(data).hexdigest()
    check.labels = np.bincount(np.asarray(mask, dtype=np.uint8).ravel()).nonzero()[0].tolist()
    if check.labels == [ignore_index]:
        raise ValueError(f"{short(path)} has no label, all of it is {ignore_index}; label it or move the pair out")
    if wrong := [label for label in check.labels if label >= num_classes and label != ignore_index]:
        listed = ", ".join(map(str, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(
            f"{short(path)} has the label{'s'[: len(wrong) - 1]} {listed}; classes.txt has 0 to {num_classes - 1}, and "
            f"{ignore_index} is unlabelled: add the class or correct the mask"
        )
    return mask


def _check_single(image: Image.Image, path: Path) -> None:
    # Counting them would read every one, also damaged ones. A phone's JPEG (MPO) has previews behind the picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(f"{short(path)} holds several pictures; save one picture a file")


def _split_problems(splits: Splits, images: Files | None) -> list[str]:
    problems = [f"splits/{split}.txt names no image; add names, one a line" for split in splits if not splits[split]]
    home: dict[str, str] = {}
    unknown = 0
    for split, names in splits.items():
        for name, times in Counter(names).items():
            if times > 1:
                problems.append(f"splits/{split}.txt names {name} {times} times; leave one")
            if home.setdefault(name, split) != split:
                problems.append(
                    f"{name} is in splits/{home[name]}.txt and in splits/{split}.txt, so that it leaks from one to the "
                    "other; remove it from one"
                )
            if images is not None and name not in images:
                unknown += 1
                # Comparing with every name is slow, and later problems are not shown.
                nearest = get_close_matches(name, images, 1, cutoff=0.5) if unknown <= SHOWN else []
                hint = f"; did you mean {nearest[0]}? (names have no extension)" if nearest else "; remove the line"
                problems.append(f"splits/{split}.txt names {name}, and images/ has no such file{hint}")
    return problems


def _label_problems(labels: set[int], num_classes: int, ignore_index: int) -> list[str]:
    """What only the labels of all masks together give away."""
    if labels == {0, 255} and ignore_index == 255:
        return ["masks/: all masks hold 0 and 255 only, like black and white, but 255 is unlabelled; write 1 for 255"]
    if 0 not in labels and max(labels - {ignore_index}, default=0) == num_classes:
        return [f"masks/: the labels of all masks are 1 to {num_classes}, but the first class is 0; subtract 1"]
    return []


def _leaks(splits: Splits, checks: dict[str, _Check]) -> list[str]:
    """The same picture under two names in two splits."""
    seen: dict[str, tuple[str, str]] = {}
    problems = []
    for split, names in splits.items():
        for name in names:
            if name in checks and (digest := checks[name].picture):
                twin, home = seen.setdefault(digest, (name, split))
                if home != split and twin != name:
                    problems.append(
                        f"{twin} in splits/{home}.txt and {name} in splits/{split}.txt are the same image; "
                        "remove one from its split"
                    )
    return problems


def _pairing_problems(images: Files, masks: Files) -> list[str]:
    problems = []
    for folder, files, others, other in (("images", images, masks, "mask"), ("masks", masks, images, "image")):
        if not files:
            problems.append(f"{folder}/ is empty; put the {folder} here")
        for name, paths in files.items():
            if len(paths) > 1:
                alike = " and ".join(path.name for path in paths)
                problems.append(f"{folder}/ has {alike}, which are one name; keep one of them")
            if name not in others:
                problems.append(f"{short(paths[0])} has no {other}; add {other}s/{name}.* or move it out of {folder}/")
    return problems


def _meaning(image: Image.Image) -> str:
    if "transparency" in image.info:
        return "transparent pixels"
    if image.mode.startswith("I;16"):
        return "16-bit numbers"
    meanings = {"RGB": "RGB colours", "RGBA": "an alpha channel", "LA": "an alpha channel", "CMYK": "CMYK colours"}
    return meanings.get(image.mode, f"pixels of mode {image.mode}")


def _listing(folder: Path) -> str:
    try:
        names = sorted(path.name + "/" * os.path.isdir(path) for path in folder.iterdir())
    except OSError:
        return "what cannot be listed"
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"
