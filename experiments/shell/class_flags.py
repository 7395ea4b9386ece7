"""Flags that are the arguments of classes, and commands whose first words decide which classes those are."""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, NoReturn, get_args, get_origin

import jsonargparse

from experiments.shell import helps
from experiments.shell.flags import recorded, refuse, with_nearest
from lightning_modules.settings import explanations


class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows type and default of every flag, choices once, and the description as it is written."""

    def _expand_help(self, action: argparse.Action) -> str:
        told = re.sub(r"\(type: Literal\[[^\]]*\], default", "(default", super()._expand_help(action))
        # typing gives equal unions the order of the first of them, which another package may have made
        return told.replace("Union[float, int", "Union[int, float")


def settings_of(cls: type, *parts: type) -> Callable[..., None]:
    """A function that takes what `cls` takes, for a parser, which reads signature and docstring of one object.

    The help of an argument is what the `Args:` of `cls`, of the `parts` that its signature is composed of, or of a base
    of these says.
    """

    def settings() -> None: ...

    told = explanations(*(base for part in (*parts, cls) for base in reversed(part.__mro__)))
    signature = inspect.signature(cls)
    plain = [p.replace(annotation=_plain(p.annotation)) for p in signature.parameters.values()]
    signature = signature.replace(parameters=plain)
    summary = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    lines = [f"    {name}: {text}" for name, text in told.items() if name in signature.parameters]
    settings.__signature__ = signature  # type: ignore[attr-defined]
    settings.__doc__ = "\n".join([summary, "", "Args:", *lines])
    return settings


def _plain(annotation: Any) -> Any:
    """The type without what it is annotated with, which is for the hash of a run."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


class ClassParser(jsonargparse.ArgumentParser):
    """Takes the arguments of classes as flags; names the nearest right flag beside a misspelt one.

    `chosen` says in an error what has to stand before --help for the flags that belong to it to be listed.
    """

    def __init__(self, *, verb: str, usage: str, description: str, chosen: str) -> None:
        super().__init__(
            prog=f"python -m experiments.{verb}",
            usage=usage,
            description=description,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        self.chosen = chosen

    def add_class(
        self, cls: Callable[..., Any], key: str, *, skip: Collection[str] = (), help: str | None = None
    ) -> None:
        """The flags --key.NAME of the arguments of `cls`, or of a function; `help` is that of --key, which was read
        before, or None to hide it.

        jsonargparse reads a file where --key stands, which no command here does.
        """
        add = self.add_class_arguments if isinstance(cls, type) else self.add_function_arguments
        add(cls, key, skip=set(skip))
        (action,) = [action for action in self._actions if action.option_strings == [f"--{key}"]]
        action.metavar, action.help = "NAME", argparse.SUPPRESS if help is None else help

    def print_help(self, file: Any = None) -> None:
        super().print_help(file)
        helps.keep(*recorded(self))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = with_nearest(self._in_one_line(message), flags)
        refuse(f"{near} (every flag: {self.prog} --help, {self.chosen})")

    def _in_one_line(self, message: str) -> str:
        """jsonargparse's report on a value, which goes through every type that the flag takes, in our words."""
        message = re.sub(r'^Parser key ("[^"]+") element \d+:', r"Parser key \1:", message)  # of a list
        message = re.sub(r"invalid literal for int\(\) with base 10: '([^']*)'", r"\1", message)
        if lacking := re.search(r"the following arguments are required: (.+)", message):
            listed = " and ".join(f"--{name}" for name in lacking[1].split(", "))
            return f"{listed} {'are' if ', ' in lacking[1] else 'is'} required"
        key = re.match(r'Parser key "([^"]+)":\s*', message)
        if key and "Not of type Name" in message:
            return f"--{key[1]}: expected a name of Lightning's, in letters: {message.split('Name: ')[1]}"
        ours = "PositiveInt|NonNegativeInt|PositiveFloat|Devices|Seed"
        given = re.search(rf"(?:[Vv]alue|type (?:{ours})): ([^\n]*?)(?: does not (?:conform|match) .*)?$", message)
        if key is None or given is None:
            return " ".join(message.split())
        flag = next(
            (a.option_strings[0] for a in self._actions if a.dest == key[1] and a.option_strings), f"--{key[1]}"
        )
        kinds = []
        if "Sequence" in message or "tuple" in message:
            kinds.append('a list such as "[2, 4]"')
        if "dict" in message:
            kinds.append('a dictionary such as {"width": 4}')
        choices = [v.strip(" '") for values in re.findall(r"Literal\[([^\]]*)\]", message) for v in values.split(",")]
        kinds += choices
        names = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}
        names |= {"PositiveInt": "a whole number of at least 1", "NonNegativeInt": "a whole number of at least 0"}
        names |= {"PositiveFloat": "a number above 0", "Devices": "auto or a whole number of at least 1"}
        names |= {"Seed": "a whole number of at least 0 and less than 2**32"}
        kinds += [words for name, words in names.items() if re.search(rf"\b{name}\b", message.split("Given")[0])]
        if kinds and kinds == choices:
            near = difflib.get_close_matches(given[1], choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{flag} must be one of {', '.join(choices)}, got {given[1]!r}{hint}"
        return f"{flag} expects {', '.join(dict.fromkeys(kinds)) or 'another value'}, got {given[1]!r}"


class Choice(argparse.ArgumentParser):
    """Takes the flags that decide on the other ones."""

    def __init__(self, told: str, **defaults: str | None) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.told = told
        for name, default in defaults.items():
            self.add_argument(f"--{name}", default=default)

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}: {self.told}")


def first_word(argv: Sequence[str], *, what: str, usage: str, description: str) -> str:
    """The word that decides on the flags of a command; ends the command where it is missing, or --help stands there."""
    if argv and not argv[0].startswith("-"):
        return argv[0]
    if {"-h", "--help"} & {*argv}:
        text = f"usage: {usage}\n\n{description}\n"
        sys.stdout.write(text)
        helps.keep([["whole", text]], text)
        sys.exit(0)
    refuse(f"the first word is to be {what} (usage: {usage})")
