"""docs/architectures/: a page and a drawing of each entry of the catalogue, from docstrings, networks and tests.

`make pages` writes them all; with names it writes those: `python tests/stored_pages.py unet fcn`.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.explain import SIZE, build_on_meta
from experiments.reports.explained import size_of
from experiments.reports.network_drawing import svg
from experiments.shell.citation import bibtex
from lightning_modules.analysis.blocks import Drawing, drawing_of
from lightning_modules.analysis.parts import Network
from lightning_modules.base import SegmentationModule
from lightning_modules.catalogue import ARCHITECTURES
from lightning_modules.papers import PAPERS, Paper
from lightning_modules.recipe import Recipe
from lightning_modules.settings import explanations

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "architectures"
RECORD = ROOT / "experiments" / "results" / "architectures.md"
LECTURE = ROOT / "docs" / "lecture.md"
SIZES = {"unet": (388, 388)}  # of Fig. 1, whose image has a mirrored border around these pixels
# Fields of a recipe that say how a machine computes, not what is learned.
NEUTRAL = ("average", "ema_decay", "channels_last", "checkpointing", "compile", "mean", "std")
FIELD = "receptive field of the logits"
HEAD = "<!-- Written by `make pages` from docstrings, networks and tests: change those. -->"


def paths(name: str) -> tuple[Path, Path]:
    """The page and the drawing of an architecture."""
    return FOLDER / f"{name}.md", FOLDER / f"{name}.svg"


@dataclass(frozen=True)
class Page:
    """What is told of an architecture: of the form that its paper published, where there is one."""

    name: str

    @property
    def module(self) -> type[SegmentationModule]:
        return ARCHITECTURES[self.name].module

    @property
    def paper(self) -> Paper:
        return PAPERS.get(self.name, Paper(cited=""))

    @property
    def size(self) -> tuple[int, int]:
        return SIZES.get(self.name, SIZE)

    @property
    def form(self) -> str:
        """The classes, channels and settings of what is drawn and counted."""
        paper = self.paper
        return Paper(
            cited="", num_classes=paper.num_classes, in_channels=paper.in_channels, settings=paper.settings
        ).form

    @cached_property
    def built(self) -> SegmentationModule:
        paper = self.paper
        return build_on_meta(self.module, paper.num_classes, paper.in_channels, **paper.settings)

    @cached_property
    def network(self) -> Network:
        return Network(self.built, *self.size)

    @cached_property
    def drawing(self) -> Drawing:
        return drawing_of(self.built, *self.size)

    @cached_property
    def told(self) -> list[str]:
        """The paragraphs of the docstring of its file."""
        text = inspect.getdoc(inspect.getmodule(self.module)) or ""
        return [part.strip("\n") for part in text.split("\n\n")]

    @property
    def title(self) -> str:
        return self.told[0].split(",")[0].rstrip(".")

    @property
    def citation(self) -> str:
        """Who wrote the paper, when, and where it is."""
        text = next((part for part in self.told if "http" in part), "")
        found = re.search(r"^(.*?),?\s(https?://\S+)", text, re.DOTALL)
        cited = self.paper.cited
        if found is None:
            return f"[Paper]({cited if cited.startswith('http') else f'https://doi.org/{cited}'})"
        who = " ".join(found[1].split())
        return f"[{who.partition(', ')[2] if text is self.told[0] else who}]({found[2].rstrip('.,')})"

    def svg(self) -> str:
        return svg(self.drawing, f"{self.title} ({self.name}): {self.form}")

    def field(self) -> str:
        """The receptive field of the logits, which takes seconds to follow."""
        try:
            field = self.network.fields[""]
        except NotImplementedError as error:
            return f"not followed: {error}"
        return "the whole image" if field.whole_image else f"{size_of(field)} pixels"

    def markdown(self, field: str) -> str:
        """The page, with what `field` returns, or returned before."""
        skipped = 1 + (len(self.told) > 1 and "http" not in self.told[0] and "http" in self.told[1])  # that is cited
        begins = next((n for n, part in enumerate(self.told) if n and _departs(part)), len(self.told))
        parts = [
            HEAD,
            f"# {self.title} (`{self.name}`)",
            f"**{self._answer()}** {self.citation}, [its file](../../{_path(self.module)}).",
            *map(_lists, self.told[skipped:begins]),
            f"![{self.title}, from the image to the logits]({self.name}.svg)",
            f"Drawn from its modules: {self.form}. With `--out DIR`, and settings of yours, this command draws yours:",
            _block(self._explain()),
            self._numbers(field),
            "## Train it",
            _block(f"python -m experiments.train --model {self.name} --data camvid --data.root DIR"),
            *self._scores(),
            *(["## Where it departs", *map(_lists, self.told[begins:])] if begins < len(self.told) else []),
            "## Recipe",
            self._recipe(),
            "## Options",
            self._options(),
            "## What holds it to this",
            *self._tests(),
            *self._uses(),
            *(["## Cite", f"```bibtex\n{bibtex(self.paper.cited)}\n```"] if self.paper.cited else []),
        ]
        return "\n\n".join(parts) + "\n"

    def _answer(self) -> str:
        count = sum(p.numel() for p in self.built.parameters())
        paper = self.paper.parameters
        as_published = ", as published" if count == paper and not self.paper.derived else ""
        height, width = self.size
        return (
            f"`--model {self.name}`: {count:,} parameters{as_published}, {_giga(self.network.macs)} multiply-adds for "
            f"{height} x {width} pixels."
        )

    def _explain(self) -> str:
        paper = self.paper
        words = [f"python -m experiments.explain {self.name} --num-classes {paper.num_classes}"]
        words += [f"--in-channels {paper.in_channels}"] * (paper.in_channels != 3)
        words += [f"--size {self.size[0]} {self.size[1]}"] * (self.size != SIZE)
        return " ".join([*words, *(f"--model.{name} {value}" for name, value in paper.settings.items())])

    def _numbers(self, field: str) -> str:
        count = sum(p.numel() for p in self.built.parameters())
        paper = self.paper
        published, ours = "none of its own", f"{count:,}"
        if paper.derived:
            published, ours = "leaves it open", f"{ours}, [tested](../../tests/lightning_modules/test_papers.py)"
        elif paper.parameters == count:
            published, ours = ours, f"{ours}, [tested](../../tests/lightning_modules/test_papers.py)"
        elif paper.parameters is not None:
            published = f"{paper.parameters:,}: {paper.form}"
        strides = [block.stride for block in self.drawing.blocks if block.stride]
        rows = [
            ("parameters", published, ours),
            ("multiply-adds, {} x {} pixels".format(*self.size), "", _giga(self.network.macs)),
            ("output stride, of the deepest map", "", f"{max(strides):g}"),
            (FIELD, "", field),
        ]
        return _table(("", "paper", "here"), rows)

    def _scores(self) -> list[str]:
        runs = {run: (row, command) for run, (row, command) in scored().items() if f"--model {self.name} " in command}
        if not runs:
            return []
        head = ("run", "images", "parameters", "epochs", "test mIoU (%)", "pixel accuracy (%)", "boundary F1 (%)")
        commands = "\n".join(command for _, command in runs.values())
        said = "Trained once at CPU scale, narrow and briefly: that it learns, [not how it ranks]"
        return [
            f"{said}(../../experiments/results/architectures.md).",
            _table(head, [row[: len(head)] for row, _ in runs.values()]),
            f"<details><summary>Commands of these runs</summary>\n\n{_block(commands)}\n\n</details>",
        ]

    def _recipe(self) -> str:
        told = self._explanations()
        shown = [entry.name for entry in fields(Recipe) if entry.name not in NEUTRAL]
        return _table(
            ("setting", "value", "what it is"), [(f"`{n}`", _value(self.built.hparams[n]), told[n]) for n in shown]
        )

    def _explanations(self) -> dict[str, str]:
        parts = (Recipe, self.module.network_class, self.module)
        return explanations(*(base for part in parts for base in reversed(part.__mro__)))

    def _options(self) -> str:
        told, common = self._explanations(), {entry.name for entry in fields(Recipe)}
        common |= {"num_classes", "ignore_index", "in_channels"}
        own = [p for name, p in inspect.signature(self.module).parameters.items() if name not in common]
        rows = [(f"`--model.{p.name}`", _value(p.default), told.get(p.name, "")) for p in own]
        return _table(("option", "default", "what it is"), rows)

    def _tests(self) -> list[str]:
        contract = (
            "The contract of every architecture: [test_architectures.py]"
            "(../../tests/lightning_modules/test_architectures.py); the drawing: "
            "[test_drawing_blocks.py](../../tests/lightning_modules/analysis/test_drawing_blocks.py)."
        )
        parts = [contract]
        for path, names in held_by(self.name, _path(self.module)).items():
            lines = "\n".join(f"- {name.removeprefix('test_').replace('_', ' ')}" for name in names)
            number = f"{len(names)} test{'s'[: len(names) - 1]}"
            parts.append(f"[{Path(path).name}](../../{path}):")
            parts.append(f"<details><summary>{number}</summary>\n\n{lines}\n\n</details>")
        return parts

    def _uses(self) -> list[str]:
        rows = [
            (f"[`{path.stem}`](../../experiments/{path.name})", said, _records(path.stem))
            for path, said in ablations(self.name, self.module.__name__)
        ]
        table = _table(("ablation", "what it asks", "record"), rows)
        lecture = ["Where the notebooks explain it: [lecture](../lecture.md)."] if LECTURE.exists() else []
        return [*(["## Ablations that use it", table] if rows else []), *lecture]


def held_by(name: str, file: str) -> dict[str, list[str]]:
    """The tests of an architecture by file: all of a file of its name, and of others those that name what is in it."""
    module, stem = file.removesuffix(".py").replace("/", "."), Path(file).stem
    found: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests" / "lightning_modules").glob("test_*.py")):
        tree = parsed(path)
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == module
            for alias in node.names
        }
        whole = any(re.fullmatch(rf"test_{one}(_stages)?", path.stem) for one in (name, stem))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        names = [node.name for node in functions if whole or imported & _names(node)]
        if names:
            (found if whole else others)[path.relative_to(ROOT).as_posix()] = names
    return found | others


def ablations(name: str, module: str) -> Iterator[tuple[Path, str]]:
    """The ablations that name an architecture, each with the first sentence of what it asks."""
    for path in sorted((ROOT / "experiments").glob("ablate_*.py")):
        tree = parsed(path)
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == name}
        if words or module in _names(tree):
            said = " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
            yield path, re.split(r"(?<=[.?]) ", said)[0]


@cache
def scored() -> dict[str, tuple[list[str], str]]:
    """Each run of experiments/results/architectures.md: its row, and its command."""
    text = RECORD.read_text(encoding="utf-8")
    commands = dict(re.findall(r"^# (\S+)\n(python .*)$", text, re.MULTILINE))
    rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return {row[0]: (row, commands[row[0]]) for row in rows if row[0] in commands}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _path(module: type) -> str:
    return module.__module__.replace(".", "/") + ".py"


def _departs(paragraph: str) -> bool:
    """Whether a paragraph, before its list, says what is another way than in the paper."""
    return bool(re.search(r"\b([Dd]eparts\s+from|Decided here)\b", paragraph.partition("\n- ")[0]))


def _lists(paragraph: str) -> str:
    """A paragraph of a docstring, whose lists stand alone as Markdown wants them."""
    lines = list[str]()
    for line in paragraph.splitlines():
        inside = line.startswith(("- ", "  "))
        if lines and inside != lines[-1].startswith(("- ", "  ")):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _block(commands: str) -> str:
    return f"```sh\n{commands}\n```"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.3g} G"


def _records(stem: str) -> str:
    folder = ROOT / "experiments" / "results"
    found = [path for path in sorted(folder.glob(f"{stem}*.md")) if re.fullmatch(rf"{stem}(_camvid)?", path.stem)]
    return ", ".join(
        f"[{'CamVid' if path.stem.endswith('_camvid') else 'record'}](../../experiments/results/{path.name})"
        for path in found
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def stored_field(name: str) -> str:
    """The receptive field that the stored page says."""
    found = re.search(rf"^\| {FIELD} \|[^|]*\| (.*) \|$", paths(name)[0].read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def main(names: Sequence[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or ARCHITECTURES:
        page = Page(name)
        for path, text in zip(paths(name), (page.markdown(page.field()), page.svg()), strict=True):
            path.write_text(text, encoding="utf-8", newline="\n")
    if not names:
        kept = {path for name in ARCHITECTURES for path in paths(name)}
        for path in {*FOLDER.iterdir()} - kept:
            path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
