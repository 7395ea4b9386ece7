# %% [markdown]
# # 12. Conditional random fields: let pixels agree
#
# The scores of a network are coarse: they know that there is a coin, and roughly where. The photograph itself shows exactly where its
# border runs. A **conditional random field** (CRF) brings the two together, after the network and without training.
#
# DeepLab v1 and v2 ended with one. It is still the clearest example of what networks do badly and images know.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from pictures import photograph, row
from scipy import ndimage
from skimage.filters import sobel
from skimage.segmentation import watershed

from lightning_modules.refinement.conv_crf import conv_crf
from lightning_modules.refinement.dense_crf import dense_crf

torch.manual_seed(0)

# %% [markdown]
# ## A coarse score map
#
# Our image is the tray of coins of [notebook 1](01_what_is_segmentation.ipynb). As a stand-in for a network we take the true labels at a sixteenth of their
# size, add noise, and enlarge them: coarse and a bit wrong, as scores are.
#
# Two words, for two classes *coin* and *table*:
#
# - the **score map** is what the network says, *before* the softmax: any number, high for coin, low for table;
# - the **belief map** is what it believes, *after* the softmax: a probability between 0 and 1.
#
# **Before you run the cell:** the belief map will look sharper. Does it put the border of a coin in a better place?

# %%
coins = photograph("coins")
markers = (coins[0] > 0.59).int() * 2 + (coins[0] < 0.12).int()
truth = torch.from_numpy(ndimage.binary_fill_holes(watershed(sobel(coins[0].numpy()), markers.numpy()) == 2))

small = F.adaptive_avg_pool2d(truth[None, None].float(), (19, 24)) * 6 - 3  # one number for 16 x 16 pixels
small = small + 0.5 * torch.randn_like(small)
score = F.interpolate(small, truth.shape, mode="bilinear")[0, 0]
unsure = torch.stack([torch.zeros_like(score), score])[None]  # scores of table and of coin
belief = unsure.softmax(1)


def iou(belief):
    """Of the coins, where a pixel is one if that is more probable."""
    labels = belief[0, 1] > 0.5
    return float((labels & truth).sum() / (labels | truth).sum())


row(
    coins,
    score,
    belief[0, 1],
    truth,
    titles=["image", "score map", "belief map", f"truth (IoU of the belief: {iou(belief):.2f})"],
)
assert torch.allclose(belief[0, 1], score.sigmoid())  # two classes: the softmax is the sigmoid of the difference
assert torch.equal(belief[0, 1] > 0.5, score > 0)  # the border is where it was
assert score.min() < -1 and score.max() > 1 and 0 <= belief.min() and belief.max() <= 1

# %% [markdown]
# No. The softmax drives the numbers apart, towards 0 and 1, but one half is where the scores were equal. It does not know the image.
#
# ## The energy of a labelling
#
# A CRF gives every labelling of the whole image a number, its **energy**; low is good ([Krähenbühl, Koltun 2011](https://arxiv.org/abs/1210.5644), Eq. 1 to 3). It has two parts:
#
# - **unary**: a pixel pays when its label is not what the network believes;
# - **pairwise**: *two* pixels pay when their labels differ, and they pay more the more alike they are. Alike means near **and** of similar
#   colour (the appearance kernel), or merely near (the smoothness kernel).
#
# In a **dense** CRF every pixel is paired with every other one. How alike is each pixel to one chosen pixel?
#
# **Before you run the cell:** which pixels will be bright for a pixel in the middle of a coin?

# %%
parameters = {
    "w_appearance": 8.0,  # how much alike pixels want the same label
    "theta_alpha": 20.0,  # how near is near, in pixels
    "theta_beta": 12.0,  # how similar is similar, in grey levels
    "w_smoothness": 1.0,
    "theta_gamma": 2.0,
    "engine": "torch",
}
rows, columns = torch.meshgrid(*(torch.arange(side) for side in truth.shape), indexing="ij")


def alike(i, j):
    """The appearance kernel of pixel (i, j) with all the others."""
    near = ((rows - i) ** 2 + (columns - j) ** 2) / (2 * parameters["theta_alpha"] ** 2)
    colour = (255 * (coins[0] - coins[0, i, j])) ** 2 / (2 * parameters["theta_beta"] ** 2)
    return torch.exp(-near - colour)


i, j = 55, 330  # on the large coin at the upper right
kernel = alike(i, j)
axes = row(coins[:, 0:130, 250:], kernel[0:130, 250:], titles=["the cross is the pixel", "how alike the others are"])
axes[0].plot(j - 250, i, "r+", markersize=12)

assert truth[i, j] and kernel[truth].sum() > 5 * kernel[~truth].sum()  # its friends are on coins

# %% [markdown]
# Those of its own coin that have its grey. The table beside it is just as near, but of another grey: to differ from it costs nothing.
#
# ## Mean field: everybody listens to everybody
#
# There are 2 to the power of 116,352 labellings, so nobody tries them all. **Mean field** is an approximation: each pixel keeps a belief of its own, and in each **iteration**
# all pixels do the same two things at once:
#
# 1. listen: take the mean of the others' beliefs, weighed by how alike they are;
# 2. answer: add what they heard to their own score, and take the softmax again.
#
# Below is the figure of the lecture: the score map above, the belief map under it, over the iterations.
#
# **Before you run the cell:** where will the belief change first, and will it go on changing?

# %%
image = 255 * coins[None]  # the CRF takes grey levels from 0 to 255
steps = (0, 1, 2, 5, 10)
beliefs = {n: dense_crf(belief, image, iterations=n, **parameters) for n in steps}
scores = {n: (q[0, 1].log() - q[0, 0].log()).clamp(-12, 12) for n, q in beliefs.items()}

view = slice(180, 303), slice(0, 200)
row(
    *[s[view] for s in scores.values()],
    titles=[f"score map, iteration {n}" for n in steps],
    height=1.5,
    vmin=-12,
    vmax=12,
)
row(
    *[q[0, 1][view] for q in beliefs.values()],
    titles=[f"belief map, IoU {iou(q):.2f}" for q in beliefs.values()],
    height=1.5,
)

assert torch.allclose(beliefs[0], belief, atol=1e-6)  # no iteration, no change
assert iou(beliefs[10]) > iou(belief) + 0.05
changes = [(beliefs[b] - beliefs[a]).abs().mean().item() for a, b in ((0, 1), (5, 10))]
assert changes[1] < changes[0]  # it settles

# %% [markdown]
# The border moves to the edge of the coin. Most happens in the first iterations. Look at the black dots in the coins, too: dark pixels that
# look like table and became it. The CRF follows the image, even where it should not.
#
# **Before you run the cell:** we turn the score of one pixel in fifty upside down. What becomes of these lone pixels?

# %%
lone = torch.rand(score.shape) < 0.02
noisy = torch.stack([torch.zeros_like(score), score.where(~lone, -score)])[None].softmax(1)
cleaned = dense_crf(noisy, image, iterations=10, **parameters)
row(noisy[0, 1][view], cleaned[0, 1][view], titles=["belief with noise", "after 10 iterations"], height=1.5)

same = (cleaned[0, 1] > 0.5) == (beliefs[10][0, 1] > 0.5)  # as if there had been no noise
assert same[lone].float().mean() > 0.95

# %% [markdown]
# Their neighbours outvote them.
#
# ## Does the energy fall?
#
# Mean field makes the **free energy** small: the energy that is expected under the beliefs, less a reward for not being sure.
#
# **Before you run the cell:** must it fall in every single iteration?

# %%
_, energies = dense_crf(belief, image, iterations=10, return_energy=True, **parameters)
plt.figure(figsize=(4.5, 2))
plt.plot(energies[0], "o-")
plt.xlabel("iteration")
plt.ylabel("free energy")

assert energies.shape == (1, 11)
assert energies[0, -1] < energies[0, 0]

# %% [markdown]
# Here it falls. It *need* not: all pixels answer at the same moment, each to what the others believed a moment ago. Two who
# differ can each give in to the other, and so swap for ever. That is why the library does not promise it ([`dense_crf`](../lightning_modules/refinement/dense_crf.py#L149)), and why the cell compares only the first with the last.
#
# ## What it cannot do
#
# The CRF believes the network. Let the network miss a coin altogether.
#
# **Before you run the cell:** the coin is plainly visible in the image. Will the CRF find it?

# %%
numbered, count = ndimage.label(truth.numpy())
missed = torch.from_numpy(numbered == numbered[i, j])
around = torch.from_numpy(ndimage.binary_dilation(missed.numpy(), iterations=12))
blind = score.where(~around, torch.tensor(-2.5))
refined = dense_crf(torch.stack([torch.zeros_like(blind), blind])[None].softmax(1), image, iterations=10, **parameters)
row(
    coins[:, :, 200:],
    blind[:, 200:],
    refined[0, 1][:, 200:],
    titles=["image", "scores: one missed", "belief at last"],
)

found = float((refined[0, 1][missed] > 0.5).float().mean())
print(f"{found:.0%} of the missed coin is found")
assert found < 0.2

# %% [markdown]
# Nobody in that coin says *coin*, so nobody can be convinced. A CRF moves borders and removes noise; it does not see things.
#
# ## Near is enough: the convolutional CRF
#
# Every pixel with every other one is a lot: 116,352 pixels make seven billion pairs. (A trick, the permutohedral lattice, does it nonetheless in time that grows with the
# number of pixels: that is what ran above.) A **convolutional CRF** lets pixels further apart than a window ignore each other
# ([Teichmann, Cipolla 2018](https://arxiv.org/abs/1805.04777)). Then step 1 is a sum over a window, like a convolution.
#
# **Before you run the cell:** how does the result differ from the dense CRF when the window is as large as twice the image?

# %%
cut = (slice(None), slice(None), slice(20, 50), slice(20, 60))
patch, patch_belief = image[cut], belief[cut]
exact = dense_crf(patch_belief, patch, iterations=5, method="exact", **parameters)
windows = (3, 7, 15, 31, 79)
by_window = [conv_crf(patch_belief, patch, iterations=5, window=w, shape="square", **parameters) for w in windows]
distance = [float((q - exact).abs().max()) for q in by_window]

row(
    exact[0, 1],
    *[q[0, 1] for q in by_window],
    titles=["dense", *[f"window {w}" for w in windows]],
    height=1.6,
    vmin=0,
    vmax=1,
)
print("largest difference:", [f"{d:.1g}" for d in distance])

assert distance[-1] < 1e-4  # the window covers the image from every pixel: the same sums
assert distance[0] > 0.1

# %% [markdown]
# None: then the two are the same sum. With a small window something is lost, and time is gained.
#
# Is a CRF worth it behind a *trained* network? `python -m experiments.ablate_crf`; [its report](../experiments/results/ablate_crf.md), and [how long the engines take](../experiments/results/benchmark_crf.md).
#
# ## Exercises
#
# **a.** Two classes, scores 0 and 2. What is the belief in the second class, to two places?

# %%
answer = None
check("crf.a", answer)

# %% [markdown]
# **b.** Two pixels stand 20 pixels apart and differ by 24 grey levels; theta_alpha is 20 and theta_beta is 12, as above. How alike are they, that is: what does the appearance kernel
# say, without its weight? To three places.

# %%
answer = None
check("crf.b", answer)

# %% [markdown]
# **c.** Which of these change *nothing* about the result? Write a set of letters. (A) `iterations=0`. (B) both weights are 0. (C) the image is one
# single grey. (D) every score of *both* classes is larger by 5.

# %%
answer = None
check("crf.c", answer)

# %% [markdown]
# **Next:** [soft segmentation: how much of a pixel belongs to what](13_soft_segmentation.ipynb).
#
# **Read on:** [Krähenbühl, Koltun 2011](https://arxiv.org/abs/1210.5644), Sec. 2 and 3; [Chen et al. 2015](https://arxiv.org/abs/1412.7062), Fig. 2, DeepLab's score and belief maps; [Zheng et al. 2015](https://arxiv.org/abs/1502.03240),
# a CRF whose iterations are layers that train: [`CRFasRNN`](../lightning_modules/crf_as_rnn.py#L48). [`ConvCRF`](../lightning_modules/refinement/conv_crf.py#L110).
