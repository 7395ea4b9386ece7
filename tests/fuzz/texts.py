"""classes.txt, groups.csv and the files of splits, broken as editors, other systems and strangers break them."""

import random
from pathlib import Path

from datamodules.files import read_classes, read_groups, read_split
from datamodules.verify import check_layout
from tests.fuzz.mutate import mutated, refused

NAME = "texts"
NAMES = [
    "sky",
    "car",
    "Straße",
    "u\u0308ber",
    "道路",
    "",
    " ",
    "#x",
    "a" * 5000,
    "../x",
    "/etc/passwd",
    "a\tb",
    "\x00",
    "0",
]
NUMBERS = ["0", "1", "2", "-1", "007", "1e3", "²", "٣", "9" * 20, "9" * 5000, "255", ""]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "cp037"]


def one(rng: random.Random, folder: Path) -> str:
    lines = []
    for number in range(rng.choice([0, 1, 2, 3, 5, 300])):
        name = rng.choice(NAMES)
        index = rng.choice(NUMBERS) if rng.random() < 0.1 else str(number)
        lines.append(rng.choice([name, f"{index} {name}", f"{index}:{name}", f"{index},{name}", f"{index}\t{name}"]))
    kind = rng.choice(["classes.txt", "splits/", "groups.csv"])
    if kind == "groups.csv" and rng.random() < 0.8:
        lines.insert(0, rng.choice(["image,group", "image, group ", '"image","group"']))
    text = rng.choice(["\n", "\r\n", "\r", "\u2028", "\x0c"]).join(lines)
    data = text.encode(rng.choice(ENCODINGS), "replace")
    if rng.random() < 0.5:
        data = mutated(rng, data)
    for part in ("images", "masks", "splits"):
        (folder / part).mkdir()
    for name in ("train", "val", "test"):
        (folder / "splits" / f"{name}.txt").write_bytes(data if kind == "splits/" else b"a\n")
    (folder / "classes.txt").write_bytes(data if kind == "classes.txt" else b"a\nb\n")
    (folder / "groups.csv").write_bytes(data)
    check_layout(folder)
    if kind == "groups.csv":
        groups, problems = read_groups(folder, ["sky"], rng.choice([None, NAMES]))
        assert problems or groups["sky"]
        return refused(ValueError(problems[-1]), kind) if problems else "read"
    try:
        if kind == "splits/":
            read_split(folder, rng.choice(["train", "val", "test"]))
        else:
            read_classes(folder / "classes.txt", 255)
    except ValueError as error:
        return refused(error, kind)
    return "read"
