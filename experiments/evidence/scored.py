"""What a report says of data without a test split, whose scores are of validation images."""

import re
from collections.abc import Mapping
from typing import Any

FLATTERS = "these data have no test split: choosing settings by these scores flatters them"
WARNING = f"Scored on val: {FLATTERS}."


def scored(plan: Mapping[str, Any]) -> str:
    """The split that the scores of an experiment are of: "test", or "val" of data without a test split."""
    return str(plan.get("scored", "test"))


def without_test(plan: Mapping[str, Any]) -> str:
    """What a caption adds behind the name of the data."""
    return "" if scored(plan) == "test" else f" (as {FLATTERS})"


def as_scored(text: str, plan: Mapping[str, Any]) -> str:
    """A sentence about "test images" or the "test split" in the words of the split that was scored.

    One place for all of a report: where each table and caption named the split, one of them would be forgotten.
    """
    if scored(plan) == "test":
        return text
    text = re.sub(r"(?<!no )\btest split\b", f"{scored(plan)} split", text)
    return re.sub(
        r"\b([Tt])est (?=images?\b|pixels\b|set\b|scores\b|mIoU\b)", lambda match: _validation(match[1]), text
    )


def _validation(first: str) -> str:
    return "Validation " if first == "T" else "validation "
