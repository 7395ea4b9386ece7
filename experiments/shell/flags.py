"""What every command line here does with a wrong flag: one line that names the right one, and exit status 2."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments.shell import helps


def refuse(message: str) -> NoReturn:
    """Ends the command for something that a person can mend."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


def with_nearest(message: str, flags: Sequence[str]) -> str:
    """The message of a parser, with the nearest known flag beside a misspelt one."""
    for flag in re.findall(r"--[\w.-]+", message) if "nrecognized" in message else []:
        near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.5)
        message += f"; did you mean {near[0]}?" if near else ""
    return message


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and the default of a flag whose help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        if "default" in told or action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return told
        return f"{told} (default: %(default)s)"


class Recorder(argparse.HelpFormatter):
    """Collects in `parts` what a formatter is to lay out, in the form of `helps`, and lays out nothing; a mix-in."""

    parts: list[helps.Part]

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        if usage is None:  # then argparse spells it out, in lines that fit the terminal
            kinds = [[a for a in actions if bool(a.option_strings) is flags] for flags in (True, False)]
            spelt = [self._format_actions_usage(kind, groups) for kind in kinds]
            self.parts.append(["usage", self._prog, *spelt])
        else:
            self.parts.append(["usage", usage % {"prog": self._prog}])

    def add_text(self, text: str | None) -> None:
        if text is not None and text is not argparse.SUPPRESS:
            self.parts += [["text", paragraph] for paragraph in text.split("\n\n")]

    def start_section(self, heading: str | None) -> None:
        self.parts.append(["section", heading or ""])

    def end_section(self) -> None:
        self.parts.append(["end"])

    def add_argument(self, action: argparse.Action) -> None:
        if action.help is not argparse.SUPPRESS:
            self.parts.append(["flag", self._format_action_invocation(action), self._expand_help(action)])

    def format_help(self) -> str:
        return ""


def recorded(parser: argparse.ArgumentParser) -> tuple[list[helps.Part], str]:
    """The parts of the help of a parser, and all of it, which is the one part where its parts do not make it."""
    formatter, parts, text = parser.formatter_class, list[helps.Part](), parser.format_help()

    class Recording(Recorder, formatter):  # type: ignore[misc, valid-type]
        pass

    Recording.parts = parts
    parser.formatter_class = Recording
    try:
        parser.format_help()
    finally:
        parser.formatter_class = formatter
    return (parts if helps.laid_out(parts) == text else [["whole", text]]), text


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations that names the nearest flag."""

    def __init__(self, *, description: str | None) -> None:
        super().__init__(
            prog=f"python -m experiments.{Path(sys.argv[0]).stem}",
            description=description,
            formatter_class=Formatter,
            allow_abbrev=False,
        )

    def print_help(self, file: Any = None) -> None:
        super().print_help(file)
        helps.keep(*recorded(self))

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        refuse(f"{with_nearest(message, flags)} (every flag: {self.prog} --help)")


class FolderParser(Parser):
    """Of a command that reads a folder of data and none of the catalogue's other data sets."""

    def error(self, message: str) -> NoReturn:
        if re.search(r"unrecognized arguments: (.* )?--data\b", message):
            verb = self.prog.rpartition(".")[2]
            refuse(
                f"{verb} reads a folder: {self.prog} DIR. Another data set of the catalogue verifies itself when it is "
                "trained, or shown: python -m experiments.show --data NAME"
            )
        super().error(message)


def positive(text: str) -> int:
    """A flag's value that must be an integer of at least 1."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """A flag's value that must be an integer of at least 0."""
    return _integer(text, 0)


def above_zero(text: str) -> float:
    """A flag's value that must be a finite number above 0."""
    return _above_zero(text, "a number")


def share(text: str) -> float:
    """A flag's value that must be a number above 0 and at most 1."""
    number = above_zero(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"expected a share, above 0 and at most 1, got {text!r}")
    return number


def minutes(text: str) -> float:
    """A flag's value that must be a number of minutes above 0."""
    return _above_zero(text, "a number of minutes")


def _above_zero(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected {what} above 0, got {text!r}")
    return number


def _integer(text: str, least: int) -> int:
    if not re.fullmatch(r"-?\d+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return int(text)
