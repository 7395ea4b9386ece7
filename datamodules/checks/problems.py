"""What is wrong with a folder of data: a stable code for each kind of problem, and how a list of them is told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN = 3  # of each kind that are spelt out

# By code, what is wrong. A code never changes its meaning; docs/data.md lists them with an example of each.
ERRORS = {
    "E_EMPTY_DATASET": "a folder without files",
    "E_EMPTY_FILE": "a file of 0 bytes",
    "E_UNREADABLE": "a file or folder that the system does not let be read",
    "E_NOT_REGULAR_FILE": "a pipe, a folder or a device instead of a file",
    "E_BROKEN_LINK": "a link to nothing",
    "E_DECODE": "a damaged or cut-off file, or one that is no image",
    "E_FORMAT": "an intact file of a format that is not read",
    "E_MULTIFRAME": "several pictures in one file",
    "E_TOO_MANY_PIXELS": "more pixels than the cap",
    "E_TOO_SMALL": "a side of fewer than 8 pixels",
    "E_IMAGE_MODE": "an image of 16 bits or floats without a range, or of CMYK colours",
    "E_ALPHA": "an image with an alpha channel or transparent pixels",
    "E_BANDS": "an image with bands beside those of its colours",
    "E_RANGE": "values without a known range, or that are no number",
    "E_MASK_FORMAT": "a mask that is no PNG",
    "E_LOSSY_MASK": "a mask whose compression changes labels",
    "E_MASK_MODE": "a mask of colours, of 16 bits or of few bits that readers stretch",
    "E_MASK_PALETTES": "palettes that show one label in two colours",
    "E_SIZE_MISMATCH": "a mask of another size than its image",
    "E_LABEL_RANGE": "labels outside the classes, or counted from 1",
    "E_BINARY_0_255": "255 for a class, although it is unlabelled",
    "E_ALL_IGNORE": "a mask without a labelled pixel",
    "E_MISSING_MASK": "an image without a mask",
    "E_ORPHAN_MASK": "a mask without an image",
    "E_DUP_STEM": "two files of one name",
    "E_EXT": "a file that is no image among the images",
    "E_CONTROL_CHAR_IN_NAME": "a name with a character that cannot be seen",
    "E_NO_SPLITS": "no lists of the training, validation and test images",
    "E_SPLIT_EMPTY": "a split without images",
    "E_SPLIT_TWICE": "an image that a split names twice",
    "E_SPLIT_UNKNOWN": "a split that names what is not there",
    "E_SPLIT_LEAK": "the same picture in two splits",
    "E_MANIFEST_HASH": "a file that is not the one in SHA256SUMS",
    "E_LAYOUT": "a dataset.yaml, a flag or a list of the layout that cannot be used",
    "E_TEXT": "a list that is no UTF-8 text",
    "E_GROUPS": "a line of groups.csv that cannot be used",
    "E_ANNOTATION": "an annotation that cannot be drawn",
}
WARNINGS = {
    "W_CONSTANT_IMAGE": "an image of one colour alone",
    "W_GROUP_LEAK": "a group of groups.csv in two splits",
    "W_EXIF_APPLIED": "an image or a mask that its metadata turn",
    "W_NEAR_DUPLICATE": "nearly the same picture in two splits",
    "W_NO_TRAINING_PIXEL": "a class without a pixel in the training split",
    "W_255_AMONG_LABELS": "masks of 0 and 255 alone beside others with classes",
    "W_NOT_NFC": "a name in another Unicode form than the usual one",
    "W_JUNK": "files of a file manager, which are skipped",
    "W_LINK_OUTSIDE": "a link to a file outside the folder",
    "W_NO_TEST": "no test split, so that the validation images are scored",
    "W_NARROW_RANGE": "images that fill a small part of their range of values",
    "W_UNUSED": "an image that no split names",
}


def coded(code: str, said: str) -> ValueError:
    """An error with its code. Not a class of its own, as a process that loads data sends on what takes one text."""
    error = ValueError(said)
    error.code = code  # type: ignore[attr-defined]
    return error


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    code: str  # of ERRORS or WARNINGS
    said: str  # names the file, what was found and what to do

    @classmethod
    def of(cls, error: ValueError) -> "Problem":
        return cls(getattr(error, "code", "E_TEXT"), str(error))


def told(root: object, problems: Sequence[Problem]) -> str:
    """All problems by kind, with three examples of each, so that no kind hides another one."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{count} in {shown(str(root))}:"]
    for code in dict.fromkeys(problem.code for problem in problems):
        alike = [problem.said for problem in problems if problem.code == code]
        lines += [f"{code}: {said}" for said in alike[:SHOWN]]
        lines += [f"{code}: ... and {len(alike) - SHOWN} more, {ERRORS[code]}"] if len(alike) > SHOWN else []
    return "\n  ".join(lines)


def some(names: Iterable[str], count: int = SHOWN) -> str:
    """The first of them, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(map(shown, listed[:count])) + more


def shown(text: str) -> str:
    """The text with what cannot be seen spelt out, as it could steer a terminal: ESC is \\x1b."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
