# %% [markdown]
# # 14. Is the difference real?
#
# An **ablation** trains a network with a part and without it, and compares. "With the part 81.2, without it 80.4": does it help? The network
# without is the **baseline**, each change of it a **variant**.
# This notebook shows four ways to be fooled by two such numbers, and how a report protects you. You need no statistics for it.
#
# The trick of the notebook is that we *know the truth*: most scores here are drawn at random around a value that we choose. Only *A real
# report* reads an experiment.

# %%
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from exercises import check

from experiments.evidence.family import judge_scores
from experiments.evidence.power import chance_of_star

SD = 1.64  # points of mIoU between seeds, as measured for the U-Nets of `make ablation`


def trained(truths, seeds, rng, of_seed=0.0):
    """Scores (variant, seed) as trainings would give them: the truth, what the seed does to all alike, and luck."""
    common = rng.normal(0, of_seed, seeds)
    return {(v, s): t + common[s] + rng.normal(0, SD) for v, t in truths.items() for s in range(seeds)}


def against(scores, baseline="baseline", draws=2000):
    """Every variant beside the baseline, judged as the reports do."""
    names = dict.fromkeys(v for v, _ in scores if v != baseline)
    return judge_scores(scores, {v: {v: 1.0, baseline: -1.0} for v in names}, draws=draws)


# %% [markdown]
# ## Fooled by one seed
#
# Training is a lottery: the first weights, the order of the images and the crops come from a random **seed**. Train the same network again with
# another seed and it scores a bit more or less.
#
# Take two networks that are *exactly* equal, train each once, and note the difference. Do that 2,000 times.
#
# **Before you run the cell:** how often will one of them look better by more than one point?

# %%
rng = np.random.default_rng(0)
one_seed = np.array([rng.normal(80, SD) - rng.normal(80, SD) for _ in range(2000)])
plt.figure(figsize=(5, 2))
plt.hist(one_seed, 40)
plt.axvline(0, color="black")
plt.xlabel("difference of two equal networks, one seed each (points)")

wrong = np.mean(np.abs(one_seed) > 1)
print(f"more than a point apart: {wrong:.0%} of the time")
assert wrong > 0.5

# %% [markdown]
# Two times out of three. A table with one seed for each row mostly prints luck.
#
# ## More seeds, and an interval
#
# With several seeds you see how far trainings scatter. From the scatter an **interval** follows: "the true difference lies between here and there",
# computed so that it is right in 95 of 100 reports. The **true difference** is what ever more seeds would end at.
#
# **Before you run the cell:** the part really brings 2 points. How wide is the interval with 3, 6 and 24 seeds? Which of them leave out zero?

# %%
truth = {"baseline": 80.0, "with part": 82.0}
figure, axis = plt.subplots(figsize=(5, 1.8))
widths, stars = {}, {}
for place, seeds in enumerate((3, 6, 24)):
    found = against(trained(truth, seeds, np.random.default_rng(6))).rows["with part"]
    widths[seeds], stars[seeds] = found.high - found.low, found.star
    axis.plot([found.low, found.high], [place, place], linewidth=3)
    axis.plot(found.estimate, place, "ko")
    print(f"{seeds:2} seeds: {found.estimate:+.2f} [{found.low:.2f}, {found.high:.2f}]{found.mark}")
axis.axvline(0, color="black", linewidth=1)
axis.axvline(2, color="gray", linestyle="--", linewidth=1)
axis.set_yticks(range(3), ["3 seeds", "6 seeds", "24 seeds"])
axis.set_xlabel("difference (points); dashed: the truth")

assert widths[3] > widths[6] > widths[24] and list(stars.values()) == [False, False, True]
held = [against(trained(truth, 3, np.random.default_rng(i))).rows["with part"] for i in range(300)]
share = np.mean([row.low <= 2 <= row.high for row in held])
print(f"of 300 such reports {share:.0%} have an interval that holds the truth")
assert 0.91 < share < 0.99

# %% [markdown]
# A **star** (\*) marks an interval that leaves out zero. The promise is not "the estimate is right". It is "the interval holds
# the truth, 95 times of 100".
#
# **No star does not mean no difference.** The interval with 3 seeds holds zero *and* 2. It says what is excluded: whatever lies outside of it.
#
# ## Fooled by many variants
#
# Now there are 20 variants, and none of them does anything. One interval errs 5 times of 100. Twenty of them?
#
# **Before you run the cell:** in how many of 100 such reports has at least one useless variant a star, if each is judged by itself?

# %%
useless = {"baseline": 80.0, **{f"v{i:02}": 80.0 for i in range(20)}}
reports = [against(trained(useless, 3, np.random.default_rng(i)), draws=500) for i in range(150)]
by_itself = np.mean([any(r.own_low > 0 or r.own_high < 0 for r in report.rows.values()) for report in reports])
together = np.mean([any(r.star for r in report.rows.values()) for report in reports])
plt.figure(figsize=(5, 1.2))
plt.barh(["each by itself", "as one family"], [by_itself, together])
plt.axvline(0.05, color="black", linewidth=1)
plt.xlabel("share of reports with a false star")

print(f"by itself {by_itself:.0%}, as one family {together:.0%}")
assert by_itself > 0.3
assert together < 0.12

# %% [markdown]
# Somebody always wins a lottery. So a report judges all its comparisons as one **family**: it asks how large the *largest* difference would be by
# luck alone, and makes every interval as wide as that takes ([`judge_scores`](../experiments/evidence/family.py#L159)).
#
# ## Fooled by unequal luck
#
# Seed 3 happens to deal an easy order of images, and *all* networks like it. If every variant is trained with the same seeds, that luck is in all of them and cancels
# in the difference.
#
# **Before you run the cell:** seeds move all networks together by 5 points. Compare the interval of the same trainings, once with seeds in common and once shuffled.

# %%
scores = trained(truth, 6, np.random.default_rng(3), of_seed=5.0)
paired = against(scores).rows["with part"]
order = {"baseline": [0, 1, 2, 3, 4, 5], "with part": [3, 5, 4, 0, 2, 1]}
shuffled = {(v, order[v][s]): value for (v, s), value in scores.items()}
unpaired = against(shuffled).rows["with part"]
for name, found in (("same seeds", paired), ("other seeds", unpaired)):
    print(f"{name}: {found.estimate:+.2f} [{found.low:.2f}, {found.high:.2f}]{found.mark}")

assert abs(paired.estimate - unpaired.estimate) < 1e-9  # the same twelve numbers
assert unpaired.high - unpaired.low > 2 * (paired.high - paired.low)

# %% [markdown]
# The same twelve numbers, and an interval three times as wide. So reports compare seed by seed.
#
# ## Fooled by 200 frames
#
# Seeds are one lottery; the test images are another. Two hundred frames sound like a lot. But frames of one drive show the same street in the same
# light: where one is hard, all are. Such images form a **group**.
#
# The **standard error** of a mean says how far it would scatter from one test set to the next: the spread of the numbers, divided by the root of
# how many *independent* ones there are.
#
# **Before you run the cell:** 8 drives of 25 frames. How many times too small is it if we treat the frames as independent?

# %%
rng = np.random.default_rng(1)
drives = rng.normal(0, 3, 8)  # what the part does in each drive
frames = np.concatenate([rng.normal(1 + drive, 2, 25) for drive in drives])
group = np.repeat(np.arange(8), 25)
over_frames = frames.std(ddof=1) / np.sqrt(len(frames))
means = np.array([frames[group == g].mean() for g in range(8)])
over_groups = means.std(ddof=1) / np.sqrt(8)
plt.figure(figsize=(6, 2))
plt.scatter(np.arange(200), frames, c=group, cmap="tab10", s=8)
plt.axhline(0, color="black", linewidth=1)
plt.xlabel("frame, coloured by drive")
plt.ylabel("difference")

print(f"standard error: over frames {over_frames:.2f}, over drives {over_groups:.2f}")
assert 3.5 < over_groups / over_frames < 4.5

# %% [markdown]
# Four times too small. The honest number comes from 8 drives, not from 200 frames. A data set therefore names the group of each image; where there are too few groups, a report says that its
# claim is "of these images only".
#
# ## A real report
#
# `make ablation` trains eight U-Nets, 6 seeds each, at CPU scale. Here is the table of [its report](../experiments/results/ablate_upsampling.md).
#
# **Before you run the cell:** which of the eight rows do you expect to have a star? (You know from [notebook 4](04_skip_connections.ipynb) what skips do.)

# %%
report = Path("../experiments/results/ablate_upsampling.md").read_text(encoding="utf-8")
number = r"(-?\d+\.\d+)"
found = re.findall(rf"^\| (\S+) \| [^|]+ \| {number} \[{number}, {number}\](\\\*)? \|", report, re.MULTILINE)
rows = {name: (float(d), float(low), float(high), bool(star)) for name, d, low, high, star in found}
figure, axis = plt.subplots(figsize=(6, 2.4))
for place, (difference, low, high, star) in enumerate(rows.values()):
    axis.plot([low, high], [place, place], linewidth=3, color="tab:red" if star else "gray")
    axis.plot(difference, place, "ko", markersize=4)
axis.axvline(0, color="black", linewidth=1)
axis.set_yticks(range(len(rows)), list(rows))
axis.set_xlabel("points of mIoU beside transposed-2+concat; red: a star")

assert len(rows) == 7  # and the baseline
assert all(star == (low > 0 or high < 0) for _, low, high, star in rows.values())
assert all(star == name.endswith("+none") for name, (_, _, _, star) in rows.items())

# %% [markdown]
# Without skips each of them is worse, by more than 10 points, and that is no luck. Among the layers with skips nothing is decided: `nearest+concat` may be up to 4.25
# points worse or 1.42 better.
#
# ## Before you train: what can the design see?
#
# If the part brings 2 points and the interval will be ± 4, you can save yourself the training.
#
# **Before you run the cell:** one comparison, spread 1.64 points. How many seeds give a difference of 2 points a chance of 80 % for its star?

# %%
seeds = range(3, 21)
chances = {d: [chance_of_star(d, SD, 2 * n - 2, n, 0.05) for n in seeds] for d in (1, 2, 4)}
plt.figure(figsize=(6, 2.2))
for difference, chance in chances.items():
    plt.plot(seeds, chance, label=f"{difference} point{'s' if difference > 1 else ''}")
plt.axhline(0.8, color="black", linewidth=1)
plt.xlabel("seeds")
plt.ylabel("chance of a star")
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))

enough = next(n for n, chance in zip(seeds, chances[2], strict=True) if chance >= 0.8)
print(
    f"2 points: {enough} seeds; 1 point with 20 seeds: {chances[1][-1]:.0%}; 4 points with 4 seeds: {chances[4][1]:.0%}"
)
assert enough == 12 and chances[1][-1] < 0.8

# %% [markdown]
# Twelve. `--dry-run` says this for every study before anything is trained. And `--margin 1.0` turns the question round: which variants are *as good as equal*, because their whole interval lies
# within one point?
#
# **How to read an ablation, in five questions.** How many seeds? How wide is the interval? How many comparisons were judged together? Are the test images groups, and how many? What is excluded?
#
# ## Exercises
#
# **a.** A row says `-1.41 [-4.25, 1.42]`. Which gains of the variant are excluded: those of more than how many points?

# %%
answer = None
check("ablation.a", answer)

# %% [markdown]
# **b.** 20 comparisons, independent of each other, nothing differs, each is judged by itself at 95 %. What is the probability of at least one false star? To two places.

# %%
answer = None
check("ablation.b", answer)

# %% [markdown]
# **c.** Write `verdict(low, high, margin)`: `"differs"` if the interval leaves out zero, else `"equivalent"` if it lies within ± margin, else `"open"`.


# %%
def verdict(low, high, margin):
    return None


check("ablation.c", verdict)

# %% [markdown]
# **Read on:** [how sure is a difference](../docs/statistics.md), with the simulations behind it; [Bouthillier et al. 2021](https://arxiv.org/abs/2103.03098) on what varies in a benchmark;
# [`chance_of_star`](../experiments/evidence/power.py#L98). Ask a question of your own: [ablations](../docs/ablations.md).
