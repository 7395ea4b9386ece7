"""How many seeds a width or a difference needs, by hand and by tables."""

import numpy as np
import pytest

from experiments.evidence.intervals import WeightedScore
from experiments.evidence.power import Needed, needed_for_width, needed_to_detect


def test_seeds_for_a_width_by_hand() -> None:
    # Deviation 0.02. t is 2.1199 with 16 degrees of freedom and 2.1098 with 17: 0.01028 with 17 seeds, 0.00995 with 18.
    contrast = WeightedScore(np.array([0.48, 0.5, 0.52]))
    found = needed_for_width(contrast, 0.01)
    assert (found.of, found.known, found.n) == ("seeds", 3, 18)
    assert found.low is not None and found.high is not None and found.low < 18 < found.high
    assert str(found).startswith("18 seeds (") and "by what 3 seeds tell" in str(found)
    assert str(needed_for_width(contrast, 0.01, kind="images")) == "no scores of single images"
    assert str(needed_for_width(WeightedScore(np.array([0.5])), 0.01)) == "needs 2 seeds, got 1"


def test_seeds_to_detect_a_difference_as_in_tables_of_the_paired_t_test() -> None:
    # Power 80 % at 5 %: 10 pairs for a difference of one deviation, 34 for half of one (Cohen 1988).
    contrast = WeightedScore(np.array([-0.01, 0.0, 0.01]))
    assert [needed_to_detect(contrast, difference).n for difference in (0.01, 0.005)] == [10, 34]
    several = needed_to_detect(contrast, 0.005, comparisons=7).n
    assert several is not None and several > 34


def test_more_seeds_do_not_replace_images() -> None:
    values = np.array([-0.01, 0.0, 0.01])
    contrast = WeightedScore(values, 100, 0.01**2, 0.01**2, reason="")  # the images alone leave 1.98 * 0.01
    assert "more than the 100 images as well" in str(needed_for_width(contrast, 0.019, kind="both"))
    found = needed_for_width(contrast, 0.02, kind="both").n
    assert found is not None and found > 20
    assert needed_for_width(contrast, 0.01, kind="images").n == pytest.approx(390, abs=10)  # 100 * (1.97 / 1)^2
    assert isinstance(needed_for_width(contrast, 0.03, kind="both", of="images"), Needed)
    with pytest.raises(ValueError, match="does not depend on the number of images"):
        needed_for_width(contrast, 0.01, of="images")
