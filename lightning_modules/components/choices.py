"""What is refused by more than one file: an argument that is none of its choices."""

import difflib
import reprlib
from collections.abc import Iterable

SHORT = reprlib.Repr()  # of an array or a text without end, its beginning and its end
SHORT.maxstring = 80


def one_of(name: str, value: object, choices: Iterable[object]) -> None:
    """ValueError that names the argument, its `choices` and the nearest one, unless `value` is one of them."""
    choices = tuple(choices)
    try:
        chosen = bool(value in choices)
    except (ValueError, RuntimeError):  # an array or a tensor, whose comparison is no truth value
        chosen = False
    if not chosen:
        near = difflib.get_close_matches(value, map(str, choices), n=1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {SHORT.repr(value)}{hint}")
