"""Estimates worked out by hand. Student's t at 97.5 % is 12.7062 with 1 degree of freedom and 4.3027 with 2."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t, wilcoxon

from experiments.evidence.cell import sum_up
from experiments.evidence.experiment import flatten
from experiments.evidence.factorial import factorial_effects
from experiments.evidence.intervals import (
    KINDS,
    TESTS,
    Spread,
    WeightedScore,
    compare,
    effect_size,
    estimate,
    holm,
    make_contrasts,
    paired_difference,
    signed_rank_test,
)
from experiments.evidence.resampling import addends, bootstrap_roots, evaluate, influence, swap_p
from lightning_modules.components.scores.reductions import scores


def test_mean_deviation_and_interval_of_three_seeds() -> None:
    found = estimate([0.80, 0.82, 0.84])
    assert found.n == 3
    assert (found.mean, found.std) == pytest.approx((0.82, 0.02))
    half = 4.302653 * 0.02 / math.sqrt(3)  # 0.04968
    assert (found.low, found.high) == pytest.approx((0.82 - half, 0.82 + half), abs=1e-7)


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    found = estimate([0.7])
    assert (found.n, found.mean) == (1, 0.7)
    assert math.isnan(found.std) and math.isnan(found.low) and math.isnan(found.high)


def test_undefined_values_are_left_out() -> None:
    assert estimate([0.5, math.nan, 0.7]).n == 2
    assert estimate([math.nan]).n == 0 and math.isnan(estimate([]).mean)


def test_another_unit_scales_the_interval_too() -> None:
    found = estimate([0.80, 0.82, 0.84]).times(100)
    assert (found.n, found.mean, found.std) == pytest.approx((3, 82.0, 2.0))
    assert (found.low, found.high) == pytest.approx((77.0317, 86.9683), abs=1e-4)


def test_difference_pairs_the_seeds_that_both_have() -> None:
    found = paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.55, 3: 0.9})  # 0.10 and 0.05
    assert (found.n, found.mean, found.std) == pytest.approx((2, 0.075, 0.0353553), abs=1e-7)
    half = 12.706205 * 0.0353553 / math.sqrt(2)
    assert (found.low, found.high) == pytest.approx((0.075 - half, 0.075 + half), abs=1e-6)


def test_what_the_seeds_share_cancels_in_the_difference() -> None:
    found = paired_difference({0: 0.1, 1: 0.5, 2: 0.9}, {0: 0.0, 1: 0.4, 2: 0.8})
    assert (found.mean, found.std) == pytest.approx((0.1, 0.0), abs=1e-12)


def draw_matrices(images: int, right: float = 3.0, seed: int = 0) -> NDArray[np.int64]:
    """(images, 3, 3), every class in every image."""
    means = 10 * (np.ones((3, 3)) + right * np.eye(3))
    return 1 + np.random.default_rng(seed).poisson(means, (images, 3, 3))


@pytest.mark.parametrize("score", ["miou", "mdice", "macc", "fwiou", "pixel_acc", "iou/1", "dice/0", "acc/2"])
def test_sums_of_addends_give_the_scores_of_the_summed_matrices(score: str) -> None:
    matrices = draw_matrices(7)
    matrices[:, 2] = 0  # a class that is only predicted
    name, _, label = score.partition("/")
    expected = scores(matrices.sum(0))[name]
    found, _ = evaluate(addends(matrices, score).sum(0), score)
    np.testing.assert_allclose(found, expected[int(label)] if label else expected, rtol=1e-12)


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    matrices = draw_matrices(5)
    matrices[:, 2] = matrices[:, :, 2] = 0
    found, slope = evaluate(addends(matrices, "miou").sum(0), "miou")
    assert found == pytest.approx(float(scores(matrices.sum(0))["miou"])) and np.isfinite(slope).all()


@pytest.mark.parametrize("score", ["miou", "fwiou", "pixel_acc"])
def test_influence_is_the_derivative_by_an_images_weight(score: str) -> None:
    summands, step = addends(draw_matrices(5), score), 1e-6
    _, moved = influence(summands[None], score)
    weighted = summands.sum(0) + step * summands  # one image at a time counts a little more
    found = (evaluate(weighted, score)[0] - evaluate(summands.sum(0), score)[0]) / step
    np.testing.assert_allclose(moved[0], found, atol=1e-6)
    assert moved.sum() == pytest.approx(0, abs=1e-12)


def test_counts_give_to_the_bit_what_their_matrices_give(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    matrices = generator.poisson(generator.exponential(5, (4, 3, 30, 5, 5)) * (1 + 9 * np.eye(5)))
    matrices[:, :, 3] = 0  # an image without a label
    cells = {f"v{v}": dict(enumerate(of_one)) for v, of_one in enumerate(matrices)}
    counts = {
        v: {s: sum_up([(0, one[:11]), (11, one[11:])], 30, 5)[0] for s, one in of_one.items()}
        for v, of_one in cells.items()
    }
    levels = {f"v{v}": {"a": str(v // 2), "b": str(v % 2)} for v in range(4)}

    def found(of_cells: Any, score: str) -> str:
        options: Any = {"resamples": 300}
        effects = factorial_effects(of_cells, levels, levels["v0"], score, **options)
        return repr((compare(of_cells, "v0", score, **options), effects))

    for score in ("miou", "fwiou", "pixel_acc", "iou/2"):
        whole = found(cells, score)
        assert "nan" not in whole.partition("scores")[2][:200]
        assert found(counts, score) == whole
        with monkeypatch.context() as patch:
            patch.setattr("experiments.evidence.resampling.MOST_KEPT", 0)  # nothing is kept between blocks of resamples
            assert found(counts, score) == whole


def test_a_wrong_score_is_refused_with_those_there_are() -> None:
    for score in ("iou", "miou/1", "iou/3", "mIoU"):
        with pytest.raises(ValueError, match=r"one of miou.* or iou/k.* below 3, got"):
            addends(draw_matrices(2), score)


def test_bootstrap_roots_are_those_of_every_resample() -> None:
    # Three images of one pixel, right, right, wrong: a resample with k right has the accuracy k / 3, and its images
    # differ from it by 1 - k / 3 (k times) and k / 3, which makes a variance of k / 3 (1 - k / 3) / 3 of their mean.
    expected = {}
    for k in range(4):
        variance = k / 3 * (1 - k / 3) / 3
        expected[k] = abs(k / 3 - 2 / 3) / math.sqrt(variance) if variance else math.inf
    cells = np.array([[[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]])
    found = bootstrap_roots(cells, np.ones((1, 1)), "mean", resamples=20_000, seed=0)[0]
    for k, root in expected.items():
        share = math.comb(3, k) * (2 / 3) ** k * (1 / 3) ** (3 - k)
        same = [root == other or abs(root - other) < 1e-9 for other in expected.values()]
        shares = [math.comb(3, j) * (2 / 3) ** j * (1 / 3) ** (3 - j) for j in range(4)]
        share = sum(one for one, equal in zip(shares, same, strict=True) if equal)
        assert np.isclose(found, root).mean() == pytest.approx(share, abs=0.015)


def test_the_interval_over_images_is_students_t_for_a_mean_of_normal_values() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, 200)
    found = make_contrasts({"a": {0: values}}, {"": {"a": 1.0}}, "mean", seed=3)[""].estimate("images")
    half = t.isf(0.025, 199) * values.std(ddof=1) / math.sqrt(200)
    assert (found.n, found.images, found.mean) == (1, 200, pytest.approx(values.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.02)
    assert found.meaning == "95 % interval for other images, the same trained networks, from 200 images"


def test_the_two_levels_add_what_images_do_to_all_seeds_alike() -> None:
    # Scores a + b of 3 seeds and 4 images: the covariance of two seeds is that of b, whatever a.
    by_image = np.random.default_rng(0).normal(0.5, 0.1, 200)
    cells = {"a": {seed: by_image + 0.01 * seed for seed in range(3)}}
    found = make_contrasts(cells, {"": {"a": 1.0}}, "mean")[""]
    assert found.in_common == pytest.approx(found.over_images)
    spread = found.spread("both")
    assert spread.over_seeds == pytest.approx(0.01**2 / 3)
    assert spread.error**2 == pytest.approx(0.01**2 / 3 + found.over_images)


def test_degrees_of_freedom_count_the_seeds_three_times() -> None:
    assert Spread(0.0, 3, 0.5, 101).df == 100 and Spread(0.5, 3, 0.0, 101).df == 2
    assert Spread(1.0, 3, 1.0, 101).df == pytest.approx((3 + 1) ** 2 / (9 / 2 + 1 / 100))
    assert Spread(1.0, 3, 3.0, 101).half_width() == pytest.approx(2 * t.isf(0.025, 36 / (9 / 2 + 9 / 100)))


def test_what_a_design_cannot_give_is_refused_with_the_reason() -> None:
    def contrast(seeds: int, images: int, score: str = "miou", rare: int = 0) -> WeightedScore:
        cells = {seed: draw_matrices(images, seed=seed) for seed in range(seeds)}
        for matrices in cells.values():
            if rare:
                matrices[rare:, 2] = matrices[rare:, :, 2] = 0
        names = ["sky", "road", "pole"]
        return make_contrasts({"a": cells}, {"": {"a": 1.0}}, score, resamples=99, class_names=names)[""]

    assert contrast(2, 9).estimate("both").reason == "needs 3 seeds, got 2"
    assert contrast(1, 9).estimate("seeds").reason == "needs 2 seeds, got 1"
    assert contrast(3, 5).estimate("images").reason == "needs 6 images, got 5"
    assert contrast(3, 9, rare=4).estimate("both").reason == "classes in fewer than 6 images: pole in 4"
    assert contrast(3, 9, "iou/2", rare=4).estimate("both").reason == "needs 6 images, got 4"
    assert not contrast(3, 9, "fwiou", rare=4).estimate("both").reason
    assert not contrast(3, 9, "iou/1", rare=4).estimate("both").reason
    assert not estimate([0.5, 0.6]).reason and estimate([0.5]).reason
    for kind in KINDS:
        refused = contrast(1, 5).estimate(kind)
        assert refused.reason and math.isnan(refused.low) and math.isnan(refused.high) and 0 < refused.mean < 1
        assert math.isnan(contrast(1, 5).test(kind).p) and contrast(1, 5).test(kind).mark == ""


def test_one_class_in_twenty_may_be_rare() -> None:
    def reason(classes: int) -> str:
        matrices = np.broadcast_to(np.eye(classes, dtype=np.int64), (10, classes, classes)).copy()
        matrices[2:, -1, -1] = 0
        matrices += np.random.default_rng(0).integers(0, 2, (10, 1, 1)) * np.eye(classes, k=1, dtype=np.int64)
        matrices[2:, :, -1] = 0
        return make_contrasts({"a": {0: matrices}}, {"": {"a": 1.0}}, resamples=99)[""].reason

    assert reason(20) == "" and reason(19) == "classes in fewer than 6 images: class 18 in 2"


def test_variants_that_do_not_differ_have_no_interval_and_no_p() -> None:
    cells = {variant: {seed: draw_matrices(9, seed=seed) for seed in range(3)} for variant in "ab"}
    found = compare(cells, "a", resamples=99).differences["b"]
    assert found.contrast.estimate("images").reason == "too few images differ"
    assert found.contrast.test("seeds").reason == "the values do not vary"
    assert found.effect.reason == "the differences do not vary" and found.effect.meaning == found.effect.reason
    assert not any(test.mark for test in found.tests.values())


def test_differences_are_of_the_seeds_that_both_variants_have() -> None:
    cells = {"a": {0: draw_matrices(9), 1: draw_matrices(9, seed=1)}, "b": {1: draw_matrices(9, 4.0, 2)}, "c": {}}
    found = compare(cells, "a", resamples=99)
    miou = {v: {s: float(scores(m.sum(0))["miou"]) for s, m in of_seeds.items()} for v, of_seeds in cells.items()}
    assert found.differences["b"].contrast.values == pytest.approx([miou["b"][1] - miou["a"][1]])
    assert found.scores["a"].values == pytest.approx(list(miou["a"].values()))
    assert found.scores["c"].estimate("images").reason == "needs 1 seed, got 0"
    assert math.isnan(found.differences["c"].contrast.mean)


def test_images_without_a_score_count_nowhere() -> None:
    values = np.array([0.2, math.nan, 0.4, 0.9, 0.5, 0.6, 0.7])
    found = make_contrasts({"a": {0: values}}, {"": {"a": 1.0}}, "mean", resamples=99)[""]
    assert (found.images, found.mean) == (6, pytest.approx(0.55))
    nothing = make_contrasts({"a": {0: np.full(7, math.nan)}}, {"": {"a": 1.0}}, "mean")[""]
    assert math.isnan(nothing.mean) and nothing.estimate("images").reason


def test_cells_of_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare({"a": {0: draw_matrices(9)}, "b": {0: draw_matrices(8)}}, "a")
    with pytest.raises(ValueError, match="baseline must be one of the variants a, b, got 'c'"):
        compare({"a": {0: draw_matrices(9)}, "b": {0: draw_matrices(9)}}, "c")


def test_a_clear_difference_is_found_by_every_test_and_the_same_seed_gives_the_same_numbers() -> None:
    cells = {
        variant: {seed: draw_matrices(40, right, 10 * seed + index) for seed in range(8)}
        for index, (variant, right) in enumerate({"a": 3.0, "b": 3.5, "c": 3.0}.items())
    }
    found, again = (compare(cells, "a", resamples=999, seed=4) for _ in range(2))
    better, alike = (found.differences[variant] for variant in "bc")
    assert [test.mark for test in better.tests.values()] == ["*"] * 3
    assert [test.mark for test in alike.tests.values()] == [""] * 3
    assert better.tests.keys() == TESTS.keys() and all(test.adjusted >= test.p for test in better.tests.values())
    for kind in KINDS:
        assert better.contrast.estimate(kind) == again.differences["b"].contrast.estimate(kind)
        assert better.contrast.estimate(kind).low > 0 > alike.contrast.estimate(kind).low
    assert {n: test.p for n, test in better.tests.items()} == {
        n: test.p for n, test in again.differences["b"].tests.items()
    }


def test_p_is_five_percent_where_the_interval_ends_at_zero() -> None:
    half = t.isf(0.025, 2) * 0.02 / math.sqrt(3)
    assert WeightedScore(np.array([-0.02, 0.0, 0.02]) + half).test("seeds").p == pytest.approx(0.05)


def test_swapping_images_is_tried_out_in_full_where_they_are_few() -> None:
    # 2, 1 and 3 pixels more right on the three images: of the 8 ways to swap, none and all are as far from zero.
    baseline = np.array([[[5.0, 10.0], [5.0, 10.0], [5.0, 10.0]]])
    variant = baseline + np.array([[[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]]])
    assert swap_p(variant, baseline, "pixel_acc", resamples=8, seed=0) == pytest.approx(2 / 8)
    one_less = baseline + np.array([[[2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]]])  # |sum| >= 4: 2+3-1, 2+3+1, and mirrored
    assert swap_p(one_less, baseline, "pixel_acc", resamples=8, seed=0) == pytest.approx(4 / 8)
    drawn = swap_p(one_less, baseline, "pixel_acc", resamples=7, seed=0)
    assert drawn in [(1 + k) / 8 for k in range(8)]


def test_swaps_go_for_all_seeds_at_once() -> None:
    # Seeds that agree are no further evidence: as many swaps are as far as with one of them.
    baseline = np.tile([5.0, 10.0], (1, 6, 1))
    variant = baseline + np.array([2.0, 0.0])
    one = swap_p(variant, baseline, "pixel_acc", resamples=64, seed=0)
    three = swap_p(np.repeat(variant, 3, 0), np.repeat(baseline, 3, 0), "pixel_acc", resamples=64, seed=0)
    assert one == three == 2 / 64


def test_a_rank_test_refuses_too_few_seeds() -> None:
    five = signed_rank_test([1, 2, 3, 4, 5])
    assert math.isnan(five.p) and five.reason == "not enough seeds: 5 give p = 0.062 at best, 6 are needed"
    assert signed_rank_test([1, 2, 3, 4, 5, 6]).p == 2 / 64
    seven = signed_rank_test([1, 2, 3, 4, 5, 6], comparisons=7)  # 7 * 2 / 64 = 0.22; 7 * 2 / 512 = 0.027
    assert seven.reason == "not enough seeds: 6 give p = 0.22 at best over 7 comparisons, 9 are needed"
    assert signed_rank_test(list(range(1, 10)), comparisons=7).p == 2 / 512


def test_the_rank_test_is_wilcoxons() -> None:
    generator = np.random.default_rng(0)
    for n in (6, 9, 14):
        differences = generator.normal(0.4, 1, n)
        assert signed_rank_test(differences).p == pytest.approx(wilcoxon(differences, method="exact").pvalue)


def test_ties_share_their_ranks() -> None:
    # Ranks 1.5, 1.5, 3, 4, 5, 6 of which one 1.5 is negative: of 64 signs, 3 sum to that or less, and 3 to as much.
    assert signed_rank_test([1, -1, 2, 3, 4, 5]).p == pytest.approx(6 / 64)
    assert math.isnan(signed_rank_test([1, 2, 3, 4, 5, 0]).p)  # a zero says nothing


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and none less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    found = holm([0.02, math.nan, 0.03])  # two in the family
    assert found[0] == pytest.approx(0.04) and math.isnan(found[1]) and found[2] == pytest.approx(0.04)


def test_effect_size_by_hand() -> None:
    # Mean 2, deviation 1. Hedges' factor for 2 degrees of freedom: Gamma(1) / Gamma(1/2) = 1 / sqrt(pi).
    found = effect_size([1.0, 2.0, 3.0])
    assert (found.n, found.d) == (3, pytest.approx(2 / math.sqrt(math.pi)))
    # Of all samples of three with these true values, 97.5 % and 2.5 % have a smaller t than 2 sqrt(3).
    generator = np.random.default_rng(0)
    normal, deviation = generator.standard_normal(400_000), np.sqrt(generator.chisquare(2, 400_000) / 2)
    for true, share in ((found.low, 0.975), (found.high, 0.025)):
        assert np.mean((normal + math.sqrt(3) * true) / deviation < 2 * math.sqrt(3)) == pytest.approx(share, abs=0.001)
    assert "1.13 standard deviations" in found.meaning and "about 87 of 100 seeds" in found.meaning
    mirrored = effect_size([-1.0, -2.0, -3.0])
    assert (mirrored.d, mirrored.low, mirrored.high) == pytest.approx((-found.d, -found.high, -found.low))
    assert effect_size([1.0, 2.0]).reason == "needs 3 seeds, got 2"


def test_settings_are_compared_by_dotted_names() -> None:
    assert flatten({"data": {"zoom": [0.5, 2.0]}, "seed": 1, "module": "UNet"}) == {
        "data.zoom": "[0.5, 2.0]",
        "seed": "1",
        "module": "UNet",
    }
    assert flatten({"data.zoom": (0.5, 2.0)}) == {"data.zoom": "[0.5, 2.0]"}
