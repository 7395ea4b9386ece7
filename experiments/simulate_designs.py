"""How often the stars of a report err, and how often all its intervals hold, by simulated reports.

    python -m experiments.simulate_designs --quick          # a few cells of each kind, a minute or two
    python -m experiments.simulate_designs --out DIR        # all of docs/statistics.md, hours; started again it goes on

A simulated report is a crossed design of variants, each trained from the same seeds and scored on images in groups of
unequal size; no variant differs from another. Its stars and intervals come from the code that a report's come from.
A cell of the screen that errs more than chance allows is drawn again, ten times as often, and judged by that alone.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from experiments.evidence.blocks import LEVEL, Blocks, Errors, Floats, Pairs, effective, least_p, level_of
from experiments.evidence.power import seeds_for
from experiments.evidence.sums import MIN_EFFECTIVE, MIN_GROUPS
from experiments.shell.command import command, console
from experiments.shell.files import read_json, write_json
from experiments.shell.flags import Parser

SCREEN, REPEAT = 2_000, 20_000  # simulated reports of a cell
MOST_FALSE = 0.055  # of the reports of a repeated cell
STAGES = (100, 900, 4_000)  # draws of a family's smallest p, until a report is decided
BLOCK = 2**21  # numbers in the largest array of simulated reports
DOMINANT = {"seeds": 0.1, "both": 1.0, "images": 10.0}  # variance of a variant's mean by images over that by seeds
SHARE = 0.5  # of a single image's variance that its group has in common
UNEQUAL, ALIKE = math.exp(2.0), 2.0  # times as many images in the largest group as in the smallest
NOISY = ("one variant", "half of them", "baseline")  # that have twice the standard deviation over seeds of the others
DIVERGING = "a variant diverges"  # one of its networks in LOST_ONE loses LOST standard deviations
LOST_ONE, LOST = 10, 10.0
SAID = {spread: f"{spread}: twice that of the others" for spread in NOISY} | {"equal": "equal", DIVERGING: DIVERGING}
LEVELS = {2: (2,), 8: (4, 2), 24: (4, 3, 2)}  # of the crossed factors, by the number of variants


@dataclass(frozen=True)
class Setting:
    """A kind of report: variants, seeds, groups and images, and what its scores vary by."""

    variants: int
    seeds: int
    groups: int
    images: int
    dominant: str = "both"  # of DOMINANT
    spread: str = "equal"  # or one of NOISY, or DIVERGING
    separate: bool = False  # variances
    ratio: float = UNEQUAL  # of the largest group to the smallest

    @property
    def sizes(self) -> Floats:
        """Images of each group, unequal, at least one."""
        shares = self.ratio ** np.linspace(0, 1, self.groups)
        sizes = 1 + np.floor((self.images - self.groups) * shares / shares.sum())
        sizes[::-1][: int(self.images - sizes.sum())] += 1
        return np.asarray(sizes)

    @property
    def images_only(self) -> bool:
        """Whether there are too few groups to speak of other images: the truth is then of the images at hand."""
        return self.groups < MIN_GROUPS or effective(self.sizes) < MIN_EFFECTIVE

    def design(self) -> Blocks | Pairs:
        cells = tuple(product(range(self.variants), range(self.seeds)))
        return (Pairs if self.separate else Blocks)(cells, contrasts(LEVELS[self.variants]))


def contrasts(levels: Sequence[int]) -> Floats:
    """Weights (K, V) of the variants of a crossed design in each contrast that a report judges: comparisons with the
    first variant and, of several factors, main effects and interactions of two."""
    places = np.array(list(product(*map(range, levels))))
    rows = [np.eye(len(places))[variant] - np.eye(len(places))[0] for variant in range(1, len(places))]
    if len(levels) == 1:
        return np.array(rows)
    signs = {
        (factor, level): (places[:, factor] == level) * 1.0 - (places[:, factor] == 0)
        for factor, count in enumerate(levels)
        for level in range(1, count)
    }
    rows += [sign * levels[factor] / len(places) for (factor, _), sign in signs.items()]
    for one, other in combinations(signs, 2):
        if one[0] != other[0]:
            rows.append(signs[one] * signs[other] * levels[one[0]] * levels[other[0]] / len(places))
    return np.array(rows)


def simulate(setting: Setting, reports: int, generator: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    """Scores (R, N) of reports in which no variants differ, and the same without each group of images (R, N, G).

    In units of the residual standard deviation of a network over seeds, a tenth of whose square comes from images that
    move one network unlike another.
    """
    count, seeds, sizes, images = setting.variants, setting.seeds, setting.sizes, setting.images
    deviation = np.ones(count)
    noisy = {"one variant": [count - 1], "half of them": [*range(count // 2, count)], "baseline": [0]}
    deviation[noisy.get(setting.spread, [])] = 2
    of_image = SHARE * (sizes**2).sum() / images**2 + (1 - SHARE) / images  # variance of a mean, of one of a unit
    of_images = 0.0 if setting.images_only else DOMINANT[setting.dominant] / seeds / of_image
    step = max(1, BLOCK // (count * seeds * setting.groups))
    for first in range(0, reports, step):
        rows = min(step, reports - first)
        trained = deviation[:, None] * generator.standard_normal((rows, count, seeds))
        trained += generator.standard_normal((rows, 1, seeds))
        if setting.spread == DIVERGING:
            trained[:, -1] += LOST / LOST_ONE - LOST * (generator.random((rows, seeds)) < 1 / LOST_ONE)
        shape = (rows, count, setting.groups)
        common = np.sqrt(SHARE) * sizes * generator.standard_normal(shape)
        common += np.sqrt((1 - SHARE) * sizes) * generator.standard_normal(shape)
        sums = np.sqrt(0.1 * images * sizes) * generator.standard_normal((rows, count, seeds, setting.groups))
        sums *= deviation[:, None, None]
        sums += np.sqrt(0.9) * trained[..., None] * sizes + np.sqrt(of_images) * common[:, :, None]
        total = sums.sum(-1, keepdims=True)
        left_out = (total - sums) / (images - sizes)
        yield (total[..., 0] / images).reshape(rows, -1), left_out.reshape(rows, count * seeds, -1)


def wrong(setting: Setting, scores: Floats, left_out: Floats, generator: np.random.Generator) -> int:
    """How many of the reports have a false star, which is how many have an interval that misses the truth, 0."""
    design, sizes = setting.design(), None if setting.images_only else setting.sizes
    covariance = None if sizes is None else design.images(left_out)
    if isinstance(design, Pairs):
        p = design.errors(scores, covariance, sizes).p(scores @ design.weights.T)
        return int((p.min(axis=1) < LEVEL / len(design.contrasts)).sum())
    variance = design.variance(scores)
    p = design.errors(variance, design.df, covariance, sizes).p(scores @ design.weights.T).min(axis=1)
    if covariance is None:
        return int((p < _level(setting.variants, setting.seeds)).sum())
    return sum(
        _has_star(design, float(variance[report]), covariance[report], sizes, float(p[report]), generator)
        for report in range(len(scores))
    )


def share_wrong(setting: Setting, reports: int, seed: int) -> float:
    """Of so many simulated reports."""
    generator = np.random.default_rng(seed)
    return sum(wrong(setting, *drawn, generator) for drawn in simulate(setting, reports, generator)) / reports


@cache
def _level(variants: int, seeds: int) -> float:
    """Below which p has a star where the images stay the same: of the design alone."""
    design = Setting(variants, seeds, 1, 1).design()
    assert isinstance(design, Blocks)
    return level_of(least_p(design, 1.0, design.df, draws=100_000))


def _has_star(
    design: Blocks,
    variance: float,
    images: Floats,
    sizes: Floats | None,
    smallest: float,
    generator: np.random.Generator,
) -> bool:
    """Whether the smallest p of a report has a star, by as many draws as make that clear."""
    below = count = 0
    for draws in STAGES:
        drawn = least_p(design, variance, design.df, images, sizes, draws=draws, seed=generator)
        below, count = below + int((drawn <= smallest).sum()), count + draws
        share = (1 + below) / (1 + count)
        if abs(share - LEVEL) > 4 * math.sqrt(LEVEL * (1 - LEVEL) / count):
            break
    return share < LEVEL and smallest < LEVEL


def share_stopping(variants: int, seeds: tuple[int, int], reports: int, seed: int) -> float:
    """Of reports that are looked at with the first number of seeds, and after each further one until a star shows or
    the last number is reached: how many end with a false star."""
    generator, found = np.random.default_rng(seed), np.zeros(reports, dtype=bool)
    scores = generator.standard_normal((reports, variants, seeds[1])) + generator.standard_normal(
        (reports, 1, seeds[1])
    )
    for count in range(seeds[0], seeds[1] + 1):
        design, values = Setting(variants, count, 1, 1).design(), scores[..., :count].reshape(reports, -1)
        assert isinstance(design, Blocks)
        errors = design.errors(design.variance(values), design.df)
        found |= errors.p(values @ design.weights.T).min(axis=1) < _level(variants, count)
    return float(found.mean())


def share_until(variants: int, half_width: float, reports: int, seed: int) -> tuple[float, float]:
    """Of reports in Stein's two stages, from 3 seeds until the intervals of single differences are this narrow (in
    standard deviations over seeds): how many are wrong, and the mean number of seeds."""
    generator, wrong_ones, needed = np.random.default_rng(seed), 0, np.empty(reports)
    first = Setting(variants, 3, 1, 1).design()
    assert isinstance(first, Blocks)
    level = _level(variants, 3)
    for report in range(reports):
        scores = generator.standard_normal((variants, 3))
        variance = float(first.variance(scores.ravel()))
        needed[report] = seeds_for(half_width, math.sqrt(variance), first.df, level)
        more = generator.standard_normal((variants, int(needed[report]) - 3))
        means = np.concatenate([scores, more], axis=1).mean(axis=1)
        squares = variance * (first.contrasts**2).sum(axis=1) / needed[report]
        p = Errors(squares, np.zeros_like(squares), first.df, 1).p(first.contrasts @ means)
        wrong_ones += int(p.min() < level)
    return wrong_ones / reports, float(needed.mean())


def screen() -> list[Setting]:
    """Every cell of docs/statistics.md."""
    groups = [(6, 16), (8, 100), (12, 24), (12, 100), (24, 500), (60, 500)]
    cells = [
        Setting(variants, seeds, of_groups, images, dominant)
        for (variants, of_seeds), (of_groups, images), dominant in product(
            ((8, (3, 5, 10)), (24, (3, 10)), (2, (3,))), groups, DOMINANT
        )
        for seeds in of_seeds
    ]
    cells += [
        Setting(variants, seeds, of_groups, 100, dominant, ratio=ALIKE)
        for variants, seeds, of_groups, dominant in product((8, 24), (3, 10), (6, 8), DOMINANT)
    ]
    cells += [
        Setting(variants, seeds, of_groups, images, "seeds", spread, separate)
        for (variants, seeds, of_groups, images), spread, separate in product(
            ((8, 3, 2, 16), (8, 10, 2, 16), (24, 3, 2, 16), (24, 10, 2, 16), (8, 3, 12, 100)),
            ("equal", *NOISY, DIVERGING),
            (False, True),
        )
        if separate or spread != "equal"
    ]
    # Where images stay the same, they dominate nothing.
    return list(dict.fromkeys(replace(one, dominant="seeds") if one.images_only else one for one in cells))


QUICK = [
    Setting(8, 3, 2, 16),
    *(Setting(8, 3, 12, 100, dominant) for dominant in DOMINANT),
    Setting(2, 3, 12, 100),
    *(Setting(8, 3, 2, 16, "seeds", spread) for spread in (*NOISY, DIVERGING)),
    Setting(8, 3, 2, 16, "seeds", "baseline", separate=True),
]


def suspect(share: float, reports: int) -> bool:
    """Whether more reports are wrong than chance allows in a screen."""
    return share > LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / reports)


@command("the same command continues")
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cells, none repeated, printed alone")
    parser.add_argument("--out", type=Path, help="folder of designs.json, which holds what is simulated already")
    args = parser.parse_args()
    path = args.out / "designs.json" if args.out else None
    stored = read_json(path)["cells"] if path and path.is_file() else []
    done = {Setting(**row["setting"]): row for row in stored}
    cells = QUICK if args.quick else screen()
    for setting in track(cells, description="cells", console=console()):
        if setting in done:
            continue
        seed = zlib.crc32(repr(setting).encode())
        share = share_wrong(setting, SCREEN, seed)
        row = {"setting": asdict(setting), "reports": SCREEN, "wrong": share}
        if not args.quick and setting.spread == "equal" and suspect(share, SCREEN):
            row |= {"screened": share, "reports": REPEAT, "wrong": share_wrong(setting, REPEAT, seed + 1)}
        done[setting] = row
        if path:
            write_json(path, {"cells": list(done.values())})
    for setting, row in done.items():
        if setting in cells:
            console().print(describe(setting, row["wrong"], row["reports"]))
    if not args.quick:
        added()


def added() -> None:
    """Prints what seeds that are added do, until a star shows and in Stein's two stages."""
    for variants, last in product((8, 24), (6, 10)):
        share = share_stopping(variants, (3, last), REPEAT, 0)
        console().print(
            f"{variants} variants, 3 seeds and more until a star shows, up to {last}: {100 * share:.1f} % wrong"
        )
    for variants, half_width in product((8, 24), (1.0, 1.5)):
        share, seeds = share_until(variants, half_width, REPEAT, 0)
        console().print(
            f"{variants} variants, from 3 seeds until ± {half_width:g} standard deviations, {seeds:.1f} seeds: "
            f"{100 * share:.1f} % wrong"
        )


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The tables of docs/statistics.md, in percent of the reports: of equal spreads, and of unequal ones."""
    known = {Setting(**row["setting"]): 100 * float(row["wrong"]) for row in rows}
    kinds = dict.fromkeys((s.groups, s.images, s.ratio) for s in known if s.spread == "equal" and not s.separate)
    kinds = dict.fromkeys(sorted(kinds, key=lambda kind: (kind[0] > 2, kind[2], kind[0], kind[1])))
    titles = []
    for groups, images, ratio in kinds:
        few = " (these images only)" if Setting(8, 3, groups, images, ratio=ratio).images_only else ""
        titles.append(f"{groups} groups of {images}{', 2 : 1' if ratio == ALIKE else ''}{few}")
    lines = [f"| variants | seeds | {' | '.join(titles)} |", f"|---:|---:|{'---:|' * len(titles)}"]
    for variants, seeds in sorted({(s.variants, s.seeds) for s in known if s.spread == "equal" and not s.separate}):
        cells = []
        for groups, images, ratio in kinds:
            setting = Setting(variants, seeds, groups, images, ratio=ratio)
            settings = [replace(setting, dominant=one) for one in (["seeds"] if setting.images_only else DOMINANT)]
            cells.append(" / ".join(f"{known[one]:.1f}" for one in settings if one in known) or "-")
        lines.append(f"| {variants} | {seeds} | {' | '.join(cells)} |")
    unlike = [s for s in known if s.spread != "equal" or s.separate]
    kinds_too = dict.fromkeys((s.variants, s.seeds, s.groups, s.images) for s in unlike)
    titles = [
        f"{variants} variants, {seeds} seeds{f', {g} groups' if g > 2 else ''}" for variants, seeds, g, _ in kinds_too
    ]
    other = [f"| spread | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for spread in ("equal", *NOISY, DIVERGING):
        cells = []
        for variants, seeds, groups, images in kinds_too:
            pair = [Setting(variants, seeds, groups, images, "seeds", spread, separate) for separate in (False, True)]
            cells.append(" / ".join(f"{known[one]:.1f}" if one in known else "5" for one in pair))
        other.append(f"| {SAID[spread]} | {' | '.join(cells)} |")
    return "\n".join(lines), "\n".join(other)


def describe(setting: Setting, share: float, reports: int) -> str:
    """A line of the terminal."""
    truth = "these images only" if setting.images_only else f"{setting.dominant} dominate"
    kind = ", separate variances" if setting.separate else ""
    what = f"{setting.variants} variants, {setting.seeds} seeds, {setting.groups} groups of {setting.images} images"
    return f"{what}, {truth}, spread: {setting.spread}{kind}: {100 * share:.1f} % wrong of {reports:,} reports"


if __name__ == "__main__":
    main()
