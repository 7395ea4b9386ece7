"""One zip of a report for a review or a repository of data: what is printed, what it is made from, and how to check it.

It names no place, user or machine: what would is left out or replaced, and a zip that still did is refused.
"""

import getpass
import json
import os
import platform
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evidence.experiment import Experiment
from experiments.reports.commands import PLACE, show_command
from experiments.reports.formats import defused
from experiments.reports.page import Section
from experiments.shell.files import slug, write_whole

ROOT = Path(__file__).resolve().parents[2]
CODE = ("blocks", "factorial", "family", "sums")  # of experiments/evidence: what the intervals are computed by
KEPT = ("result.json", "run.json", "environment.json", "metrics.csv", "per_image.npz")  # of each cell
WRITTEN = ("*.md", "*.tex", "*.bib", "*.csv", "*.html", "*.sh", "*.json", "*.patch")
PRINTED = ("figures/**/*", "tables/**/*")  # of each experiment
NOT_OURS = {"plan.json", "report.json"}  # written anew, without places
WHEN = (1980, 1, 1, 0, 0, 0)  # of every member, so that the same report is the same file
TEXTS = (".md", ".tex", ".bib", ".csv", ".html", ".sh", ".json", ".patch", ".py", ".svg", ".txt")

README = """# {title}

{answers}

| file | what |
|---|---|
| `report.html` | everything on one page that needs no network |
| `table.md`, `table.csv`, `table.tex` | the tables; `figures/`: the figures |
| `methods.md`, `references.bib` | how it was done, and whom it cites |
| `paper.tex` | all of it as a paper: `pdflatex paper`, `bibtex paper`, and `pdflatex paper` twice |
| `cells.csv` | the pixels of each variant, seed, image and class, from which every IoU follows |
| `runs/` | of each training its settings, scores, curves and machine{predictions} |
| `reproduce.sh`, `environment.json`{patches} | to train it again: commit, versions, commands |
| `verify.py`, `first_table.json`, `code/` | to check the numbers, below |

## Check a number

```sh
python -m pip install numpy scipy
python verify.py
```

recomputes every number of the first table from `cells.csv`: the mIoU of each variant, its standard deviation over
seeds, each difference with its interval and star. It prints each row, says where another is printed, and then ends with
an error. `code/` is the statistics of SegLab as they were when this was written. GMAC are counted in the network, not
in `cells.csv`: they are those of `runs/*/plan.json`.

Figures and page show images of the data set, whose own terms apply. Licence of the code: `LICENSE`.
"""


def write_archive(out: Path, sections: Sequence[Section], places: Sequence[Path], *, predictions: bool = False) -> Path:
    """Writes <out>/<name>.zip of a report that is written in `out`, and returns its path.

    `places` holds the folder of tables and figures of each section.

    Raises ValueError, and leaves an earlier file as it is, where a text in it names a place, the user or the machine,
    or where cells.csv was not written.
    """
    if not (out / "cells.csv").is_file():
        raise ValueError(f"{out} has no cells.csv, from which the archive's numbers are checked: add --cells")
    name = slug("-".join(section.experiment.plan["experiment"] for section in sections))[:80]
    path = out / f"{name}.zip"
    members = dict(_members(out, sections, places, predictions))
    for member, content in members.items():
        _refuse_places(member, content)
    order = sorted(members, key=lambda member: (member != "README.md", member))

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in order:
                info = zipfile.ZipInfo(f"{name}/{member}", WHEN)
                info.external_attr, info.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
                archive.writestr(info, members[member])

    write_whole(path, write)
    return path


def _members(
    out: Path, sections: Sequence[Section], places: Sequence[Path], predictions: bool
) -> Iterator[tuple[str, bytes]]:
    patches = sorted(out.glob("code-*.patch"))
    told = "\n\n".join(f"**{section.headline}**" for section in sections)
    yield (
        "README.md",
        README.format(
            title=", ".join(section.experiment.plan["experiment"] for section in sections),
            answers=told,
            predictions=", and its predictions as label images" if predictions else "",
            patches="".join(f", `{patch.name}`" for patch in patches),
        ).encode(),
    )
    tables = [_first_table(section) for section in sections]
    yield "first_table.json", json.dumps(tables, indent=1, ensure_ascii=False).encode()
    yield "verify.py", (Path(__file__).parent / "templates" / "verify.py").read_bytes()
    yield "code/experiments/__init__.py", b'"""What verify.py needs of SegLab."""\n'
    yield "code/experiments/evidence/__init__.py", b'"""The statistics of a report."""\n'
    for module in CODE:
        source = ROOT / "experiments" / "evidence" / f"{module}.py"
        yield f"code/experiments/evidence/{module}.py", source.read_bytes()
    if (ROOT / "LICENSE").is_file():
        yield "LICENSE", (ROOT / "LICENSE").read_bytes()
    # Beside the tables of each experiment `out` has that of all.
    printed = [(place, pattern) for place in dict.fromkeys([out, *places]) for pattern in PRINTED]
    for place, pattern in [*((out, pattern) for pattern in WRITTEN), *printed]:
        for file in sorted(place.glob(pattern)):
            if file.is_file() and not file.is_symlink() and file.name not in NOT_OURS:
                yield file.relative_to(out).as_posix(), file.read_bytes()
    for section in sections:
        yield from _runs(section.experiment, predictions)


def _runs(experiment: Experiment, predictions: bool) -> Iterator[tuple[str, bytes]]:
    """The plan and each finished cell, without places; weights, logs and images are left out."""
    folder = f"runs/{slug(experiment.plan['experiment'])}"
    data = experiment.plan["data"]
    yield f"{folder}/plan.json", _without_places(experiment.plan, data)
    for cell in experiment.finished():
        for name in (*KEPT, *(["predictions.zip"] if predictions else [])):
            file = cell.folder / name
            if not file.is_file():
                continue
            content = file.read_bytes()
            if name.endswith(".json"):
                content = _without_places(json.loads(content), data)
            yield f"{folder}/{cell.folder.parent.name}/{cell.folder.name}/{name}", content


def _without_places(value: Any, data: str) -> bytes:
    return json.dumps(_scrubbed(value, data), indent=1, ensure_ascii=False).encode()


def _scrubbed(value: Any, data: str) -> Any:
    """The same with DIR or PATH for each place on a machine."""
    if isinstance(value, Mapping):
        return {
            key: show_command(inner, data) if key == "command" and isinstance(inner, str) else _scrubbed(inner, data)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_scrubbed(inner, data) for inner in value]
    if isinstance(value, str) and PLACE.search(value):
        return "PLACE"
    return value


def _first_table(section: Section) -> dict[str, Any]:
    """What `verify.py` needs beside cells.csv, and what the table says."""
    experiment, first = section.experiment, section.tables[0]
    plan, settings = experiment.plan, experiment.plan.get("statistics", {})
    return {
        "experiment": plan["experiment"],
        "cells_name": defused(plan["experiment"]),
        "title": first.title,
        "rows": first.rows,
        "baseline": plan["baseline"],
        "classes": [defused(name) for name in plan["class_names"]],
        "variants": {name: defused(name) for name in plan["variants"]},
        "levels": experiment.levels(),
        "seeds": len(plan["seeds"]),
        "gmac": {row[0]: row[-1] for row in first.rows},
        "separate": settings.get("variances") == "separate",
        "stage": settings.get("stage"),
    }


def _refuse_places(member: str, content: bytes) -> None:
    """ValueError where a text names the user, the machine or a folder of it."""
    if not member.endswith(TEXTS):
        return
    text = content.decode("utf-8", errors="replace")
    for word in _names():
        if found := re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text):
            line = text.count("\n", 0, found.start()) + 1
            raise ValueError(
                f"the archive would say {word!r} in {member}, line {line}, and it is to name no place, user or "
                "machine: rename what is called so, or make the archive elsewhere"
            )


def _names() -> list[str]:
    """What would tell where the archive was made; words that are said of any machine are none."""
    words = {str(Path.home()), str(Path.cwd()), str(ROOT), platform.node()}
    try:
        words.add(getpass.getuser())
    except (OSError, KeyError):  # a user without a name
        pass
    words |= {os.environ.get(name, "") for name in ("HOSTNAME", "USER", "LOGNAME")}
    return sorted(word for word in words if len(word) > 2 and word not in ("root", "user", "localhost", "/root"))
