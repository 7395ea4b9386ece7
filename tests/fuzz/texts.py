"""classes.txt, groups.csv, dataset.yaml and lists, broken as editors, other systems and strangers break them."""

import random
from pathlib import Path

from datamodules.files import read_classes, read_groups, read_split
from datamodules.layouts.source import Source
from datamodules.verify import check_layout, examine
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


KEYS = {
    "images": [
        "'{name}.png'",
        "'**/{name}.*'",
        "'{split}/{number}.tif'",
        "'{'",
        "'*'",
        "'**'",
        "[1]",
        "/etc/{name}",
        "1",
    ],
    "masks": ["'m/{name}.png'", "'m/{class}/{name}.*'", "'{name}/*'", "'a.json'", "'{name'", "''", "{a: b}"],
    "classes": [
        "[a, b]",
        "{a: 0, b: 1}",
        "{a: '#000000', b: '#ffffff'}",
        "{a: '0-9', b: [10, 11]}",
        "{a: , b: c}",
        "x.txt",
    ],
    "ignore": ["255", "[255, '0-3']", "others", "[a]", "['#zzz']", "{a: 1}", "1.5"],
    "splits": ["splits", "{train: 0.5, val: 0.5}", "{train: [a], val: [1]}", "{train: x}", "{a: 1}", "3", "[1]", "''"],
    "background": ["a", "ignore", "1", "[a]"],
    "group_by": ["'(a)'", "'('", "1"],
    "channels": ["rgb", "all", "1", "[rgb]"],
    "value_range": ["[0, 1]", "[1, 0]", "[a, b]", "5", "[0, .nan]"],
    "max_pixels": ["5", "-1", "true", "1e9"],
    "pairs": ["groups.csv", "{train: splits/train.txt}", "[a]", "../x"],
}


def layout(rng: random.Random, folder: Path) -> str:
    """A dataset.yaml of values that fit and others, broken now and then; all that is asked of it."""
    chosen = rng.sample([*KEYS], rng.randint(0, 5))
    data = "".join(f"{key}: {rng.choice(KEYS[key])}\n" for key in chosen).encode()
    if data and rng.random() < 0.4:
        data = mutated(rng, data)
    (folder / "dataset.yaml").write_bytes(data)
    try:
        source = Source(folder)
        check_layout(source)
        examine(source)
        return f"read {len(source.reading)}"[:4]
    except (ValueError, FileNotFoundError) as error:
        return refused(error, "dataset.yaml", *KEYS, str(folder), *NAMES)


def one(rng: random.Random, folder: Path) -> str:
    lines = []
    for number in range(rng.choice([0, 1, 2, 3, 5, 300])):
        name = rng.choice(NAMES)
        index = rng.choice(NUMBERS) if rng.random() < 0.1 else str(number)
        lines.append(rng.choice([name, f"{index} {name}", f"{index}:{name}", f"{index},{name}", f"{index}\t{name}"]))
    kind = rng.choice(["classes.txt", "splits/", "groups.csv", "dataset.yaml"])
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
    if kind == "dataset.yaml":
        return layout(rng, folder)
    check_layout(Source(folder))
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
