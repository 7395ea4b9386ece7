import re

import pytest

from lightning_modules.components.choices import one_of


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("averge", "pool must be one of average, max, got 'averge'; did you mean 'average'?"),
        ("median", "pool must be one of average, max, got 'median'"),
        (["max"], "pool must be one of average, max, got ['max']"),
        (True, "pool must be one of average, max, got True"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_right_ones(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        one_of("pool", value, {"average": 1, "max": 2})


def test_a_choice_passes() -> None:
    one_of("pool", "max", ("average", "max"))
    one_of("stride", 16, (32, 16, 8))
