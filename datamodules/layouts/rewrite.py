"""Writes a corrected copy of a data set in the plain layout; the data themselves are only read."""

import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from datamodules.checks.pairs import ORIENTATION, check_pair, picture_of
from datamodules.checks.problems import coded, shown
from datamodules.files import IMAGE_ENDINGS, MAX_PIXELS, SPLITS, decode, quoted, read_bytes, short
from datamodules.layouts.config import FILE
from datamodules.layouts.labels import IGNORED, Classes, Labels, colours_of, labels_of, raw_values
from datamodules.layouts.lists import SHARES, shared_out
from datamodules.layouts.source import Source
from datamodules.splitting import joined

TRAIN_VAL = {"train": 0.85, "val": 0.15}
SCORED_FIRST = ("test", "val", "train")  # an image in two splits stays in the first of these
KEPT = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


@dataclass
class Copy:
    """What was changed in a copy: the kind of each change and the image or the file, and what was left out and why."""

    changes: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def kinds(self) -> dict[str, int]:
        """How often each kind of change was made."""
        return dict(Counter(kind for kind, _ in self.changes))


def rewrite(
    source: Source, out: Path, palette: Sequence[tuple[int, int, int]], progress: Callable[[str], None]
) -> Copy:
    """Copies images, masks, classes, groups and splits into the new folder `out`, corrected where that loses nothing.

    Corrected are colours, raw values, 0 and 255, labels from 1, palettes, files of objects, polygons, orientation,
    names and lists. Pairs that cannot be read are left out. ValueError where there is no pair left, or `out` is there,
    or lies within the data. Interrupted, it leaves nothing behind.
    """
    if os.path.lexists(out):
        raise ValueError(f"{shown(str(out))} is there already, and nothing is replaced: name a new folder")
    real = Path(os.path.realpath(out))
    files = [path for of_name in (source.images, source.masks) for paths in of_name.values() for path in paths]
    theirs = {os.path.realpath(source.root), *(os.path.realpath(path.parent) for path in files)}
    if theirs & {str(folder) for folder in [real, *real.parents]}:
        raise ValueError(f"{shown(str(out))} lies within the data, which are not changed: name a folder elsewhere")
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        said = error.strerror or error
        raise ValueError(f"{shown(str(out))} cannot be written ({said}); name a folder elsewhere") from error
    try:
        made = _write(source, part, palette, progress)
        part.chmod(0o777 & ~_umask())
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return made


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(source: Source, out: Path, palette: Sequence[tuple[int, int, int]], progress: Callable[[str], None]) -> Copy:
    made = Copy()
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    usable = source.usable
    if not usable:
        raise coded("E_EMPTY_DATASET", f"no image in {shown(str(source.root))} has a mask")
    labels_of_all = _reader(source, usable)
    new_names: dict[str, str] = {}
    pictures: dict[str, str] = {}
    for number, name in enumerate(usable, 1):
        progress(f"{number} of {len(usable)} pairs")
        try:
            _check_alone(source, name)
            labels, said = labels_of_all(name)
            picture = _image(source, name, labels.shape, out, new_names, made)
            pictures[name] = picture
        except (ValueError, OSError) as error:
            made.left_out.append((name, str(error)))
            continue
        made.changes += [(kind, name) for kind in said]
        mask = Image.fromarray(labels)
        # All 256: Pillow saves as many bits as the palette needs, and 255 would become another label.
        whole = [*palette, *[(255, 255, 255)] * (256 - len(palette))]
        mask.putpalette([value for colour in whole for value in colour])
        mask.save(out / "masks" / f"{new_names[name]}.png")
    for name in [*source.images, *source.masks]:
        if name not in source.images or name not in source.masks:
            made.left_out.append((name, "has no mask" if name in source.images else "has no image"))
    if not new_names:
        kind, why = made.left_out[0]
        raise coded("E_EMPTY_DATASET", f"no pair can be copied; the first, {shown(kind)}: {why}")
    text = "".join(f"{label} {name}\n" for label, name in enumerate(source.classes.names))
    (out / "classes.txt").write_text(text, encoding="utf-8")
    groups = source.groups(())[0] if source.has_groups else {}
    if groups:
        rows = "".join(f"{quoted(new)},{quoted(groups.get(name, new))}\n" for name, new in new_names.items())
        (out / "groups.csv").write_text(f"image,group\n{rows}", encoding="utf-8")
    _lists(source, out, new_names, pictures, groups, made)
    if stated := _kept_layout(source):
        import yaml

        (out / FILE).write_text(yaml.safe_dump(stated), encoding="utf-8")
    changed = [f"{quoted(shown(kind))},{quoted(shown(name))}" for kind, name in made.changes]
    changed += [f"{quoted(f'left out: {shown(why)}')},{quoted(shown(name))}" for name, why in made.left_out]
    (out / "changes.csv").write_text("change,image\n" + "".join(f"{line}\n" for line in changed), encoding="utf-8")
    return made


def _check_alone(source: Source, name: str) -> None:
    """Raises ValueError where more than one file is the image, or its mask: which one counts, nobody says."""
    pictures = [path for path in source.images[name] if not source.layout.plain or path.suffix.lower() in IMAGE_ENDINGS]
    masks = [path for path in source.masks[name] if not source.layout.plain or path.suffix.lower() in IMAGE_ENDINGS]
    for paths in (pictures, [] if source.several else masks):
        if len(paths) > 1:
            raise coded("E_DUP_STEM", f"{short(paths[0])} and {short(paths[1])} are one name")


def _kept_layout(source: Source) -> dict[str, Any]:
    """The keys that the copy needs, too: images keep their bands and bits."""
    stated: dict[str, Any] = {"channels": source.layout.channels, "value_range": source.layout.value_range}
    if source.layout.max_pixels != MAX_PIXELS:
        stated["max_pixels"] = source.layout.max_pixels
    return {key: list(value) if isinstance(value, tuple) else value for key, value in stated.items() if value}


def _image(source: Source, name: str, shape: tuple[int, ...], out: Path, new_names: dict[str, str], made: Copy) -> str:
    """Copies an image; returns what tells equal pictures. ValueError for one that cannot be used."""
    path = picture_of(source.images[name])
    new = _name(name, {*new_names.values()})
    if not source.as_read:
        check = check_pair(source, name, path)
        wrong = [problem for problem in check.problems if problem.code not in ("E_ALL_IGNORE",)]
        if wrong:
            raise coded(wrong[0].code, wrong[0].said)
        shutil.copyfile(path, out / "images" / f"{new}{path.suffix}")
        digest = check.picture
    else:
        data = read_bytes(path)
        image = decode(path, data, source.layout.max_pixels)
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise coded("E_MULTIFRAME", f"{short(path)} holds several pictures")
        if image.mode.startswith(("I", "F")):
            raise coded("E_IMAGE_MODE", f"{short(path)} holds more than 8 bits: state value_range in {FILE}")
        upright = ImageOps.exif_transpose(image)
        turned = image.getexif().get(ORIENTATION, 1) in range(2, 9)
        odd = upright.mode not in ("RGB", "L", "P", "1") or "transparency" in upright.info
        if shape != (upright.height, upright.width):
            raise coded(
                "E_SIZE_MISMATCH",
                f"its mask is {shape[1]} x {shape[0]} pixels, and {short(path)} {upright.width} x {upright.height}",
            )
        if turned or odd:
            kinds = ["orientation applied"] * turned + [f"{upright.mode} to RGB"] * odd
            made.changes += [(kind, name) for kind in kinds]
            upright = upright.convert("RGB") if odd else upright
            Image.fromarray(np.asarray(upright)).save(out / "images" / f"{new}.png")
        else:
            ending = path.suffix if image.format in KEPT else ".png"
            (out / "images" / f"{new}{ending}").write_bytes(data)
        digest = sha256(f"{upright.size} ".encode() + upright.convert("RGB").tobytes()).hexdigest()
    if new != name:
        made.changes.append(("name", name))
    new_names[name] = new
    return digest


def _name(name: str, taken: set[str]) -> str:
    """A name that a list can hold, and that no other image has."""
    kept = "".join(
        "_" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp", "Cf") or c in '/\\:*?"<>|' else c for c in name
    )
    new = base = kept.strip() or "image"
    number = 2
    while new in taken:
        new, number = f"{base}_{number}", number + 1
    return new


Read = Callable[[str], tuple[Labels, list[str]]]


def _reader(source: Source, names: Sequence[str]) -> Read:
    """What reads the labels of an image, and says what it corrected."""
    if not source.strict:
        said = (
            ["labels by the layout"] if source.reading.get("several") or source.classes.values else ["labels by colour"]
        )

        def by_layout(name: str) -> tuple[Labels, list[str]]:
            labels = source.labels(name)
            if (labels == IGNORED).all():
                raise coded("E_ALL_IGNORE", f"{short(source.masks[name][0])} has no label")
            return labels, said

        return by_layout
    count = len(source.classes.names)
    masks: dict[str, tuple[tuple[int, ...], dict[int, tuple[int, int, int]]]] = {}
    for name in names:
        try:
            mask = _opened(source, name)
            found = np.unique(raw_values(mask, short(source.masks[name][0]))).tolist()
            masks[name] = tuple(map(int, found)), colours_of(mask, found)
        except (ValueError, OSError):  # which is said when the pair is copied
            continue
    every = {value for values, _ in masks.values() for value in values}
    black = {name for name, (values, _) in masks.items() if {*values} == {0, 255}}
    meant = any(255 in values and {*values} - {0, 255} for values, _ in masks.values())  # as unlabelled
    binary = every == {0, 255} or (every <= {0, 1, 255} and len(black) > 1 and not meant)
    binary = binary and count == 2
    shifted = 0 not in every and max(every - {IGNORED}, default=0) == count
    table = _palettes([colours for _, colours in masks.values()])

    def read(name: str) -> tuple[Labels, list[str]]:
        path = picture_of(source.masks[name])
        mask, said = _opened(source, name), list[str]()
        if (form := mask.format) == "JPEG":
            raise coded("E_LOSSY_MASK", f"{short(path)} is a JPEG file, whose compression changed labels")
        if mask.getexif().get(ORIENTATION, 1) in range(2, 9):
            said.append("orientation applied")
        mask = _turned_like_image(source, name, ImageOps.exif_transpose(mask), said)
        if table and mask.mode == "P":
            indices = np.asarray(mask)
            used = Classes(source.classes.names, colours=table, others=True)
            labels = labels_of(mask.convert("RGB"), used, short(path))
            labels = np.where(indices == IGNORED, IGNORED, labels).astype(np.uint8)
            said.append("one palette")
        else:
            raw = raw_values(mask, short(path))
            labels = np.minimum(raw, 255).astype(np.uint8)
            if (raw > 255).any():
                raise coded("E_LABEL_RANGE", f"{short(path)} has labels above 255")
        if binary and name in masks and 255 in masks[name][0]:
            labels, said = np.where(labels == 255, 1, labels).astype(np.uint8), [*said, "0 and 255 to 0 and 1"]
        if shifted:
            labels = np.where(labels == IGNORED, IGNORED, labels - 1).astype(np.uint8)
            said.append("labels from 0")
        if wrong := sorted({*np.unique(labels).tolist()} - {*range(count), IGNORED}):
            raise coded("E_LABEL_RANGE", f"{short(path)} has the labels {wrong[:8]}, which are no classes")
        if (labels == IGNORED).all():
            raise coded("E_ALL_IGNORE", f"{short(path)} has no label")
        if form != "PNG" or mask.mode not in ("P", "L", "1"):
            said.append("8-bit PNG")
        return labels, said

    return read


def _opened(source: Source, name: str) -> Image.Image:
    path = picture_of(source.masks[name])
    return decode(path, read_bytes(path), source.layout.max_pixels)


def _turned_like_image(source: Source, name: str, mask: Image.Image, said: list[str]) -> Image.Image:
    """The mask turned as its image is, where it was drawn on the image as the camera held it."""
    path = picture_of(source.images[name])
    image = decode(path, read_bytes(path), source.layout.max_pixels)
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation in (5, 6, 7, 8) and mask.size == image.size and mask.width != mask.height:
        turned = mask.copy()
        turned.getexif()[ORIENTATION] = orientation
        said.append("mask turned as its image")
        return ImageOps.exif_transpose(turned)
    return mask


def _palettes(of_masks: Sequence[Mapping[int, tuple[int, int, int]]]) -> dict[tuple[int, int, int], int]:
    """The label of each colour, as most masks have it, where palettes disagree; else nothing."""
    votes: dict[tuple[int, int, int], Counter[int]] = {}
    of_masks = [{v: c for v, c in colours.items() if v != IGNORED} for colours in of_masks]
    if any(len({*colours.values()}) < len(colours) for colours in of_masks):
        return {}  # a colour of two labels tells neither
    for colours in of_masks:
        for value, colour in colours.items():
            votes.setdefault(colour, Counter())[value] += 1
    by_value: dict[int, tuple[int, int, int]] = {}
    for colours in of_masks:
        for value, colour in colours.items():
            if by_value.setdefault(value, colour) != colour:
                table = {colour: count.most_common(1)[0][0] for colour, count in votes.items()}
                return table if len({*table.values()}) == len(table) else {}
    return {}


def _lists(
    source: Source,
    out: Path,
    new_names: Mapping[str, str],
    pictures: Mapping[str, str],
    groups: Mapping[str, str],
    made: Copy,
) -> None:
    """Each image in one split; lists that are not there are made."""
    stated, bad = source.read_splits
    if bad:
        raise coded(bad[0].code, f"{bad[0].said}; the lists are not made anew while one cannot be read")
    home: dict[str, str] = {}
    first: dict[str, str] = {}
    for split in SCORED_FIRST:
        for name in stated.get(split, ()):
            known = name if name in source.images else source.finder(name)
            if known is None or known not in new_names:
                made.changes.append((f"not in {split} as it is not there", name))
            elif known in home or pictures[known] in first:
                kept = home.get(known) or first[pictures[known]]
                if kept != split or known in home:
                    made.changes.append((f"not in {split} as it is in {kept}", known))
                else:
                    home[known] = split
            else:
                home[known], first[pictures[known]] = split, split
    splits = {split: [name for name, of in home.items() if of == split] for split in SPLITS}
    lacking = [split for split in ("train", "val") if not splits[split]]
    if lacking:
        made.changes.append((f"{' and '.join(lacking)} made by shares", "all images"))
        listed = {split: names for split, names in splits.items() if names}
        if "train" in listed:
            rest = {"val": SHARES["val"]}
        else:  # of what is in no list
            rest = {"train": 1.0} if "val" in listed else TRAIN_VAL if "test" in listed else SHARES
        together = joined({name: groups.get(name, name) for name in new_names}, dict(pictures))
        splits = shared_out(listed, rest, [*new_names], together)
    (out / "splits").mkdir()
    for split, names in splits.items():
        if names:
            text = "".join(f"{new_names[name]}\n" for name in names)
            (out / "splits" / f"{split}.txt").write_text(text, encoding="utf-8")
