"""What the documentation says, read as a machine reads it: commands, Python, links and diffs that do not hold."""

import argparse
import ast
import configparser
import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from datamodules.shapes import ShapesDataModule
from experiments.runs.run import Run
from experiments.shell.class_flags import ClassParser
from experiments.shell.flags import Parser
from lightning_modules.unet import UNetModule

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"))]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
# What a reader puts something else for, and a value that stands for what he puts.
PLACEHOLDERS = {"MINUTES": "5", "N": "2", "MODEL": "unet", "--model NAME": "unet", "--data NAME": "shapes"}
FOREIGN = {
    "bash",
    "bibtex",
    "cd",
    "source",
    "jupyter",
    "jupytext",
    "pdflatex",
    "wandb",
    "ray",
    "tmux",
    "squeue",
    "docker",
    "helm",
    "kubectl",
}  # programs that are not ours


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its first line, and whether it is to be run."""

    language: str
    text: str
    line: int
    runnable: bool


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"^(<!-- runnable -->\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[2], m[3], text[: m.start(3)].count("\n") + 1, m[1] is not None) for m in found]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """The inline code of a document."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command line: those of shell blocks, and inline code that begins as one."""
    lines = [line for block in blocks(text) if block.language == "sh" for line in block.text.splitlines()]
    inline = [code for code in spans(text) if re.match(r"(python|bash) \S|make [a-z]|pip install ", code)]
    for line in (*lines, *inline):
        for part in line.split(" && "):
            if words := shlex.split(part, comments=True):
                yield words


class Parsed(SystemExit):
    """A command has read its flags, which is as far as a document is followed."""


class Reader:
    """Parses the command lines of the project with their own parsers, and runs none of them.

    `folder` is where a checkpoint stands that the lines name as CHECKPOINT. `flags` are those of all parsers so far.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoint = folder / "checkpoints" / "last.ckpt"
        self.checkpoint.parent.mkdir()
        parts = {"hyper_parameters": {}, "segmentation": {"architecture": "UNetModule"}}
        torch.save({"state_dict": {"weight": torch.ones(1)}, **parts}, self.checkpoint)
        run = Run(module=UNetModule, datamodule=ShapesDataModule)
        (folder / "run.json").write_text(json.dumps(run.config()))
        self.flags = set[str]()
        self._said: dict[str, str] = {}

    def parse(self, verb: str, words: list[str]) -> str:
        """Parses the words as `python -m experiments.<verb>` does; the error that it ends with, "" for none."""
        line = shlex.join([verb, *words])
        if line not in self._said:  # documents repeat each other
            self._said[line] = self._parse(verb, words)
        return self._said[line]

    def _parse(self, verb: str, words: list[str]) -> str:
        if not (ROOT / "experiments" / f"{verb}.py").exists():
            return f"there is no experiments/{verb}.py"
        values = PLACEHOLDERS | {"CHECKPOINT": str(self.checkpoint)}
        words = [values.get(w, values.get(f"{before} {w}", w)) for before, w in zip(["", *words], words, strict=False)]
        with contextlib.ExitStack() as stack:
            for parser in (Parser, ClassParser):
                stack.enter_context(patch.object(parser, "parse_args", self._stopping(parser.parse_args)))
            stack.enter_context(patch.object(sys, "argv", [f"experiments/{verb}.py", *words]))
            said = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            try:
                runpy.run_module(f"experiments.{verb}", run_name="__main__")
            except Parsed:
                return ""
            except SystemExit as stop:
                return "" if stop.code in (None, 0) and "--help" in words else said.getvalue().strip()
        return "it parses nothing"

    def _stopping(self, parse: Any) -> Any:
        def parse_args(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
            self.flags |= {flag for action in parser._actions for flag in action.option_strings}
            parse(parser, *args, **kwargs)
            raise Parsed

        return parse_args

    def wrong(self, words: list[str]) -> str:
        """What is wrong with a command line; "" for nothing."""
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        program, rest = Path(words[0]).name.replace("python3", "python"), words[1:]
        begins = {"torchrun": "-m", "srun": "python"}.get(program)  # what it starts, after its own flags
        if begins in rest:
            return self.wrong(["python"] * (program == "torchrun") + rest[rest.index(begins) :])
        if program == "python" and rest[:1] == ["-m"] and len(rest) > 1:
            return self._module(rest[1], rest[2:])
        if program == "make":
            return _make(rest)
        if program == "pip":
            return _pip(rest)
        if program == "python":
            return "" if (ROOT / rest[0]).exists() else f"there is no {rest[0]}"
        return "" if program in FOREIGN else f"no program of the project: {program}"

    def _module(self, module: str, words: list[str]) -> str:
        if module.startswith("experiments."):
            verb = module.removeprefix("experiments.")
            return "" if re.search("<|ablate_$", verb) else self.parse(verb, words)
        if module == "venv":
            return ""
        if module == "pytest":
            missing = [word for word in words if word.startswith("tests") and not (ROOT / word).exists()]
            return f"there is no {missing[0]}" if missing else ""
        path = ROOT / module.replace(".", "/")
        return "" if path.with_suffix(".py").exists() or (path / "__main__.py").exists() else f"there is no {module}"


def _make(words: list[str]) -> str:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, variable, _ = word.partition("=")
        if not re.search(rf"\$\({name}\)" if variable else rf"^{name}:", text, re.MULTILINE):
            return f"Makefile has no {'variable' if variable else 'target'} {name}"
    return ""


def extras() -> set[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return {*parser["options.extras_require"]}


def _pip(words: list[str]) -> str:
    if words[:3] == ["install", "torch", "torchvision"] and words[3:4] == ["--index-url"]:
        return ""  # another build of what the project needs
    target = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[-1])
    if words[0] != "install" or target is None:
        return "pip installs this project alone here"
    unknown = {*(target[1] or "").split(",")} - {""} - extras()
    return f"setup.cfg has no extra {', '.join(sorted(unknown))}" if unknown else ""


def wrong_python(text: str) -> str:
    """What does not compile, or cannot be imported; "" for nothing."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return f"{error.msg}: {(error.text or '').strip()}"
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        for name in names:
            module, attribute = (node.module, name) if isinstance(node, ast.ImportFrom) else (name, None)
            try:
                imported = import_module(str(module))
            except ImportError as error:
                return str(error)
            if attribute and not hasattr(imported, attribute):
                return f"{module} has no {attribute}"
    return ""


def slugs(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def wrong_links(path: Path, text: str) -> list[str]:
    """The links of a document to files and headings that do not exist."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        file, _, anchor = target.partition("#")
        if re.match(r"https?://", target):
            continue
        to = path.parent / file
        dead = bool(file) and not to.exists()
        if dead or (anchor and anchor not in slugs(to.read_text(encoding="utf-8") if file else text)):
            wrong.append(target)
    return wrong


def diffs(text: str) -> str:
    """The diffs of a document, as one patch."""
    return "".join(block.text for block in blocks(text) if block.language == "diff")


def patches(text: str) -> Iterator[tuple[str, str]]:
    """The diffs of a document by file: its path and its hunks with their heads."""
    for part in re.split(r"^(?=--- (?:a/|/dev/null))", diffs(text), flags=re.MULTILINE)[1:]:
        yield part.splitlines()[1].removeprefix("+++ b/"), part


def applied(diff: str, root: Path, *options: str) -> str:
    """What `git apply` says of a diff of the files below `root`; "" where it applies."""
    command = ["git", "apply", *options, "-"]
    return subprocess.run(command, cwd=root, input=diff, capture_output=True, text=True, check=False).stderr


def wrong_diffs(text: str, root: Path = ROOT) -> str:
    """What `git apply` says of the diffs of a document; "" where each applies to the checkout or has been applied."""
    wrong = ""
    for path, diff in patches(text):
        said = applied(diff, root, "--check")
        begun = diff.startswith("--- /dev/null") and (root / path).exists()  # and then written on
        if said and not begun and applied(diff, root, "--check", "--reverse"):
            wrong += said
    return wrong


def with_own_lines(diff: str) -> str:
    """A diff that adds a line of its own, and nothing else, at each place where `diff` changes something."""
    hunks = list[str]()
    for start, body in re.findall(r"^@@ -(\d+).* @@\n((?:[ +-].*\n)+)", diff, re.MULTILINE):
        kept = [" " + line[1:] for line in body.splitlines() if line[0] != "+"]
        place = next(i for i, line in enumerate(line for line in body.splitlines()) if line[0] != " ")
        new = "\n".join([*kept[:place], "+# an entry of the reader", *kept[place:]])
        hunks.append(f"@@ -{start},{len(kept)} +{int(start) + len(hunks)},{len(kept) + 1} @@\n{new}\n")
    return "".join([*diff.splitlines(keepends=True)[:2], *hunks])


def new_python(text: str) -> Iterator[tuple[str, str]]:
    """The Python files that the diffs of a document add: path and text."""
    for block in blocks(text):
        for path, new in re.findall(
            r"^--- /dev/null\n\+\+\+ b/(\S+\.py)\n@@.*\n((?:\+.*\n)+)", block.text, re.MULTILINE
        ):
            yield path, re.sub(r"^\+", "", new, flags=re.MULTILINE)


@contextlib.contextmanager
def added(path: str, text: str) -> Iterator[ModuleType]:
    """The module that such a file is, which others can import meanwhile."""
    name = path.removesuffix(".py").replace("/", ".")
    before = sys.modules.get(name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "added.py")
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            yield module
        finally:
            del sys.modules[name]
            if before:
                sys.modules[name] = before


def unread(cls: type) -> set[str]:
    """The public values that a class states without their type, and that no class below it knows: misspelt ones."""
    known = {name for base in cls.__mro__[1:] for name in {*vars(base), *vars(base).get("__annotations__", ())}}
    stated = {name for name, value in vars(cls).items() if name[0] != "_" and not callable(value)}
    return stated - known - vars(cls).get("__annotations__", {}).keys()
