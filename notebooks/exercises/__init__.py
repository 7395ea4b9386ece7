"""The hidden checks of the notebooks' exercises: one module a notebook, one function an exercise.

A function raises AssertionError with a hint for a wrong answer; its docstring is what a right one is told.
"""

import inspect
from importlib import import_module
from typing import Any


def check(name: str, answer: Any) -> None:
    """Says whether `answer` solves the exercise `name`, such as "upsampling.a"; None is an exercise not yet tried."""
    module, letter = name.split(".")
    exercise = getattr(import_module(f"exercises.{module}"), letter)
    if answer is None:
        print(f"Exercise {letter} waits: put your answer in place of None.")
        return
    try:
        exercise(answer)
    except AssertionError as wrong:
        print(f"Not yet. {wrong}")
    except Exception as wrong:  # noqa: BLE001  of any kind: the answer is a student's
        said = f"{type(wrong).__name__}: {wrong}".splitlines()[0]
        print(f"Not yet: the answer has another form than asked for, or ends in an error ({said}).")
    else:
        print(f"Right. {inspect.getdoc(exercise)}")
