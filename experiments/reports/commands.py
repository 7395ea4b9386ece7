"""The commands that trained the cells of a report, and the code that each was typed for.

A command names no place on the machine that it was typed on: a folder in it becomes a variable.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.evidence.deviations import code_of, patch_name
from experiments.evidence.experiment import Experiment
from experiments.shell.difference import DIRTY

ROOTS = ("--root", "--data.root")
# Flags that the script sets itself, and those of a logger, which is nobody's to repeat: the numbers do not depend on
# it.
OWN = ("--seeds", "--only-seeds", "--out", "--logger", "--private", "--log-checkpoints", "--log-gradients")
# An absolute path, or one from a home folder, anywhere in a word; a file of weights by a path of any kind.
PLACE = re.compile(r"(?:^|[^\w.\-])[~/]+[\w.]|^[^\s=]*/[^\s=]*\.(?:ckpt|pth|pt|bin|safetensors)$")
TRAINER = re.compile(r"experiments\.(train|ablate_[A-Za-z0-9_]+)")  # the modules that train what a report shows


class Word(NamedTuple):
    """A word of a command; `variable` stands for a place on somebody's machine, `text` for what is before it."""

    text: str
    variable: str = ""

    def quoted(self) -> str:
        place = f'"${self.variable}"' if self.variable else ""
        return (shlex.quote(self.text) if self.text or not place else "") + place

    def shown(self) -> str:
        """For print: DIR for the root of the data, PATH for another place."""
        place = "DIR" if self.variable.endswith("_ROOT") else "PATH" if self.variable else ""
        return self.text + place if place else shlex.quote(self.text)


def split(command: str) -> list[str]:
    """The words of one command; a text that no shell could read is one word."""
    try:
        return shlex.split(command)
    except ValueError:
        return [command]


def read_command(command: str, data: str) -> list[Word]:
    """The words of one command; `data` names the variable for the root of its data."""
    words, flag = list[Word](), ""
    for text in split(command):
        name, equals, value = text.partition("=") if text.startswith("--") else (flag, "", text)
        is_flag = text.startswith("--") and not equals
        if not is_flag and (name in ROOTS or PLACE.search(value)):
            variable = _variable(name, data)
            before = [word for word in words if re.fullmatch(rf"{variable}(_\d+)?", word.variable)]
            several = before and name not in ROOTS  # each of several paths has a variable of its own
            words.append(
                Word(name + equals if equals else "", f"{variable}_{len(before) + 1}" if several else variable)
            )
        else:
            words.append(Word(text))
        if text.startswith("--"):
            flag = text if is_flag else ""
    return words


def show_command(command: str, data: str) -> str:
    """The command for print, as a person would type it on another machine; several, one a line, stay so."""
    return "\n".join(" ".join(word.shown() for word in read_command(line, data)) for line in command.split("\n"))


def _variable(flag: str, data: str) -> str:
    """CAMVID_ROOT, or WEIGHTS_PATH of another place than the data's root; never a name that shells know, like PATH."""
    word = re.sub(r"\W+", "_", data if flag in ROOTS else flag, flags=re.ASCII).strip("_").upper()
    of_a_shell = word.startswith(("LD", "DYLD", "GIT", "PYTHON", "BASH"))  # LD_LIBRARY_PATH is not only a shell's
    word = word if word and not word[0].isdigit() and not of_a_shell else f"DATA_{word}".rstrip("_")
    return f"{word}_{'ROOT' if flag in ROOTS else 'PATH'}"


class Code(NamedTuple):
    """The code that ran: a commit as `git_commit` has it, and what it differed in."""

    commit: str
    patch: str = ""  # SHA-256 of its code.patch
    lacks: tuple[str, ...] = ()  # files that the patch could not carry

    @property
    def checkout(self) -> str:
        """What git can check out for the commit."""
        clean = self.commit.removesuffix(DIRTY)
        # Whole: a part of one could be the name of a branch.
        return clean if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", clean) else "HEAD"

    @property
    def name(self) -> str:
        """Of its folder, which it shares with no other code."""
        return f"{self.checkout}-{self.patch[:12]}" if self.patch else self.checkout

    @property
    def shown(self) -> str:
        """For print."""
        return code_of({"commit": self.commit, "patch": self.patch})

    @property
    def note(self) -> str:
        """What a script that runs it cannot make as it was; empty where it can."""
        if self.lacks:
            return (
                f"note: {patch_name(self.patch) if self.patch else 'this code'} lacks {', '.join(self.lacks)}, which "
                "no patch can carry: this runs without, and may find other numbers"
            )
        if self.commit.endswith(DIRTY) and not self.patch:
            return (
                f"note: this code was {self.commit.removesuffix(DIRTY)} with changes that were not committed and are "
                "not known: this runs it without them, and may find other numbers"
            )
        if self.checkout == "HEAD":
            return "note: the commit is not known: this runs the HEAD of REPOSITORY, and may find other numbers"
        return ""


def read_code(environment: Mapping[str, Any], commit: str = "") -> Code:
    """The code that an environment.json names; `commit` is that of the plan, for where it names none."""
    lacks = tuple(environment.get("patch_lacks", ()))
    return Code(environment.get("commit", commit), environment.get("patch") or "", lacks)


class Call(NamedTuple):
    """What a person typed to train cells, without the seeds and the folder, and the seeds that it trained."""

    code: Code
    words: list[Word]
    seeds: list[int]

    @property
    def module(self) -> str:
        """The module of `experiments` that it calls; empty where a script must not run it, as it is another program."""
        called = [word.text for word in self.words[:3] if not word.variable]
        trainer = TRAINER.fullmatch(called[-1]) if called[:2] == ["python", "-m"] else None
        return trainer[1] if trainer else ""

    @property
    def refused(self) -> str:
        """Why a script must not run it, for a plan can come from anybody; empty where it may."""
        if not self.module:
            return (
                "is not python -m experiments.MODULE, with a module that trains (train or ablate_NAME). A study that "
                "lies elsewhere is kept by no commit and no code.patch: move it to experiments/ablate_NAME.py, run it "
                "from there and report it again"
            )
        return "names a class to import" if any("class_path" in word.text for word in self.words) else ""

    @property
    def shown(self) -> str:
        """The whole command for print."""
        return f"{' '.join(word.shown() for word in self.words)} --seeds {' '.join(map(str, self.seeds))}"


def calls(experiment: Experiment) -> list[Call]:
    """The commands that trained the finished cells, those that differ in their seeds alone as one."""
    plan, by_words = experiment.plan, dict[tuple[Code, str], Call]()
    typed = plan["command"].split("\n")
    programs = {tuple(split(line)[:3]) for line in typed}
    for cell in sorted(experiment.finished(), key=lambda cell: plan["seeds"].index(cell.seed)):
        command = cell.environment.get("command", "")
        if tuple(split(command)[:3]) not in programs:
            command = typed[-1]  # a cell that was trained by hand: the experiment's command trains it, too
        words = _without_own(read_command(command, plan["data"]))
        code = read_code(cell.environment, plan["commit"])
        call = by_words.setdefault((code, repr(words)), Call(code, words, []))
        if cell.seed not in call.seeds:
            call.seeds.append(cell.seed)
    return list(by_words.values())


def patches(experiments: Sequence[Experiment]) -> dict[str, bytes]:
    """What the code of the finished cells differed in from its commits, by SHA-256."""
    found: dict[str, bytes] = {}
    for cell in (cell for experiment in experiments for cell in experiment.finished()):
        if (sha256 := cell.environment.get("patch")) and sha256 not in found:
            found[sha256] = cell.patch()
    return found


def uncommitted(experiment: Experiment) -> str:
    """That the study's file was not committed when it trained the cells, and which patch keeps it; else empty."""
    kept: dict[str, list[str]] = {}
    for sha256, patch in patches([experiment]).items():
        for module in {call.module for call in calls(experiment)} - {""}:
            name = f"experiments/{module}.py"
            head = rb"^diff --git a/%b b/%b\n(new file)?" % ((re.escape(name.encode()),) * 2)
            if found := re.search(head, patch, re.MULTILINE):
                said = "was not committed; it is" if found[1] else "had changes that were not committed; they are"
                kept.setdefault(said, []).append(patch_name(sha256))
    return " ".join(f"Its study file {said} kept in {' and '.join(names)}." for said, names in kept.items())


def _without_own(words: Sequence[Word]) -> list[Word]:
    kept, skipping = list[Word](), False
    for word in words:
        if word.text.startswith("--"):
            skipping = word.text.split("=")[0] in OWN
        if not skipping:
            kept.append(word)
    return kept
