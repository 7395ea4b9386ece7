"""What is refused by more than one file: an argument that is none of its choices."""

from collections.abc import Iterable


def one_of(name: str, value: object, choices: Iterable[object]) -> None:
    """ValueError that names the argument and lists its `choices` unless `value` is one of them."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
