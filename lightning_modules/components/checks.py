"""What is refused by more than one file: an argument that is none of its choices."""

import difflib
from collections.abc import Iterable


def one_of(name: str, value: object, choices: Iterable[object]) -> None:
    """ValueError that names the argument, its `choices` and the nearest one, unless `value` is one of them."""
    choices = tuple(choices)
    if value not in choices:
        near = difflib.get_close_matches(value, map(str, choices), n=1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}{hint}")
