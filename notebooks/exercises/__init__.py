"""The hidden checks of the notebooks' exercises: one module a notebook, one function an exercise.

A function raises AssertionError with a hint for a wrong answer; its docstring is what a right one is told.
"""

import inspect
import re
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

QUOTED = re.compile(r"\s*([(\[{].*|-?\d[\d.,\s]*)")  # a number or a bracket, as text


class WaitsError(Exception):
    """A function still returns None."""


class BreaksError(Exception):
    """A function raises an error; the message says which, and in which of its lines."""


def told(error: Exception) -> str:
    """The error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of an answer, raising WaitsError if it has returned nothing yet and BreaksError if it fails."""
    returned: list[Any] = []

    def call(*inputs: Any) -> Any:
        try:
            result = function(*inputs)
        except Exception as error:
            file = getattr(getattr(function, "__code__", None), "co_filename", None)
            lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
            where = f", in the line `{lines[-1]}`" if lines and lines[-1] else ""
            raise BreaksError(f"the function raises {told(error)}{where}.") from error
        if result is None and not returned:
            raise WaitsError
        returned.append(result)
        return result

    return call


def pair(answer: Any) -> tuple[Any, Any]:
    """The two numbers of an answer whose order counts."""
    assert not isinstance(answer, set | dict), "Write two numbers in round brackets: a set has no order."
    first, second = answer
    return first, second


def in_brackets(exercise: Callable[[Any], None], answer: Any) -> bool:
    """Whether the answer is a single value that would be right without the brackets around it."""
    if not isinstance(answer, list | tuple | set) or len(answer) != 1:
        return False
    try:
        exercise(next(iter(answer)))
    except Exception:  # noqa: BLE001
        return False
    return True


def check(name: str, answer: Any) -> None:
    """Says whether `answer` solves the exercise `name`, such as "upsampling.a"; None is an exercise not yet tried."""
    module, letter = name.split(".")
    exercise = getattr(import_module(f"exercises.{module}"), letter)
    if answer is None:
        print(f"Exercise {letter} waits: put your answer in place of None.")
        return
    if isinstance(answer, str) and QUOTED.fullmatch(answer):
        print("Not yet: write it without quotes.")
        return
    try:
        exercise(watched(answer) if callable(answer) else answer)
    except WaitsError:
        print(f"Exercise {letter} waits: the function returns None.")
    except BreaksError as wrong:
        print(f"Not yet: {wrong}")
    except Exception as wrong:  # noqa: BLE001  a hint, or of any kind: the answer is a student's
        if in_brackets(exercise, answer):
            print("Not yet: write it without brackets.")
        elif isinstance(wrong, AssertionError):
            print(f"Not yet. {wrong}")
        else:
            print(f"Not yet: the answer has another form than asked for ({told(wrong)}).")
    else:
        print(f"Right. {inspect.getdoc(exercise)}")
