"""Settings whose value another cell of the same seed has yet to find."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Found(NamedTuple):
    """The value `key` of what the step of the cell `of` finds."""

    of: str
    key: str

    def __str__(self) -> str:
        return f"{self.key} of {self.of}"


def found(of: str, key: str) -> dict[str, Any]:
    """A setting's value until the step of the variant or stage `of` has found it, as plain data."""
    return {"found": [of, key]}


def wanted(value: Any) -> Found | None:
    """What a value of `found` stands for; None for any other value."""
    if isinstance(value, Mapping) and value.keys() == {"found"}:
        return Found(*value["found"])
    return None
