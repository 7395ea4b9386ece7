"""What is said of a field of a stored file that is not what it must be."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails, PydanticCustomError


def refuse(reason: str) -> None:
    """Raises, within a validator, for fields that do not agree; `reason` is the rest of the sentence."""
    raise PydanticCustomError("agree", "{reason}", {"reason": reason})


BY = r"[\w-]+ [\w.+-]+"


def check_energy(entry: dict[str, Any]) -> dict[str, Any]:
    """The `energy` of a result.json as it is: joules by part, and of each part what is in it."""
    joules, counted = entry.get("joules"), entry.get("counted")
    fine = isinstance(joules, Mapping) and isinstance(counted, Mapping) and joules and joules.keys() == counted.keys()
    numbers = [*joules.values()] if isinstance(joules, Mapping) else []
    if not fine or not all(type(one) in (int, float) and 0 <= one <= 1e15 for one in numbers):
        raise PydanticCustomError("energy", "must have joules of at least 0, and what is counted, of the same parts")
    # A report prints these, and a bracket would begin a citation.
    if not all(re.fullmatch("[a-z]+", part) for part in joules or ()) or not re.fullmatch(BY, str(entry.get("by"))):
        raise PydanticCustomError("energy", "must have parts in small letters, and by a package with its version")
    return entry


def said(error: ErrorDetails) -> str:
    """pydantic's first error, in the words of this project."""
    field = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "missing":
        return f"lacks {field}"
    if not field:  # of a whole object: says itself what it means
        return error["msg"]
    wanted = error["msg"].removeprefix("Input should ")
    wanted = wanted if wanted.startswith("must ") else f"must {wanted[0].lower()}{wanted[1:]}"
    return f"{short(field)} {wanted}, got {got(error['input'])}"


def got(value: Any) -> str:
    """What came, in at most 80 characters."""
    if isinstance(value, Mapping):
        return f"an object with {short(', '.join(map(str, value)))}" if value else "an empty object"
    return short(repr(value))


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
