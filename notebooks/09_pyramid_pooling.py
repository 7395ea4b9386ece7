# %% [markdown]
# # 9. Pyramids: the near, the far and the whole at once
#
# A car fills the image, or ten pixels of it. One field of view does not fit both. The remedy is old: look at several scales at once.
# PSPNet does it by **pooling**, DeepLab by **dilation**. This notebook takes both apart.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from pictures import photograph, row

from lightning_modules.components.pyramid import ASPP, PyramidPooling, atrous_rates, pool_to_bins

torch.manual_seed(0)

# %% [markdown]
# ## Pooling into bins
#
# **Pyramid pooling** ([Zhao et al. 2017](https://arxiv.org/abs/1612.01105), Sec. 3.2) divides the map into 1, 2 x 2, 3 x 3 and 6 x 6 **bins** and takes the mean of each. The map is of
# features, but a photograph shows what is left of it.
#
# **Before you run the cell:** the first level has a single bin. What does it know about the image, and what has it forgotten?

# %%
image = photograph("coffee", 120)[None]
levels = {bins: pool_to_bins(image, bins) for bins in (1, 2, 3, 6)}
spread = [F.interpolate(level, image.shape[2:], mode="bilinear") for level in levels.values()]
row(image[0], *[level[0] for level in spread], titles=["map", *[f"{n} x {n} bins" for n in levels]], height=1.8)

assert torch.allclose(levels[1][0, :, 0, 0], image[0].mean((1, 2)), atol=1e-6)  # the mean of the whole map
assert all(level.shape[2:] == (bins, bins) for bins, level in levels.items())

# %% [markdown]
# It knows what is in the image and nothing of where. 6 x 6 bins know roughly where. Each level is reduced to fewer channels by a 1 x 1 convolution, spread to the size of
# the map, and laid beside it: every pixel now also carries the view of its bin at each of the four levels, the whole image included.
#
# **Before you run the cell:** a map of 2,048 channels and four levels. How many channels come out, if the levels together shall have as many as the map?

# %%
with torch.device("meta"):
    pyramid = PyramidPooling(2048).eval()
    out = pyramid(torch.empty(1, 2048, 60, 60))
print(f"{pyramid.out_channels} channels; each level: {pyramid.levels[0].block[0]}")

assert out.shape == (1, 4096, 60, 60)
assert pyramid.levels[0].block[0].out_channels == 2048 // 4

# %% [markdown]
# ## Several rates side by side
#
# **ASPP**, atrous spatial pyramid pooling, asks differently ([Chen et al. 2017](https://arxiv.org/abs/1706.05587), Fig. 5): not "what is in my bin?" but "what is so far from *me*?" It lets convolutions of several
# rates look at the same map, [notebook 8](08_dilated_convolution.ipynb) side by side instead of in a row.
#
# **Before you run the cell:** at output stride 16 the rates are 6, 12 and 18. How many places of the map does each branch reach, from one end to the other?

# %%
aspp = ASPP(4, 4, atrous_rates(16), dropout=0.0).eval()
names = ["1 x 1", *[f"rate {rate}" for rate in atrous_rates(16)], "image pooling"]
seen = []
for branch in aspp.branches:
    grid = torch.rand(1, 4, 41, 41, requires_grad=True)
    conv = (
        branch
        if not hasattr(branch, "block")
        else (lambda x, b=branch: b.block[0](pool_to_bins(x, 1)).expand(-1, -1, 41, 41))
    )
    linear = conv[0](grid) if isinstance(conv, torch.nn.Sequential) else conv(grid)  # before norm and ReLU
    (gradient,) = torch.autograd.grad(linear[0, 0, 20, 20], grid)
    seen.append((gradient[0].abs().sum(0) > 0).float())
row(*[F.max_pool2d(s[None], 3, 1, 1)[0] for s in seen], titles=names, height=1.8, vmin=0, vmax=1, cmap="viridis")

reach = [int((s.sum(0) > 0).nonzero().max() - (s.sum(0) > 0).nonzero().min() + 1) for s in seen]
print(dict(zip(names, reach, strict=True)))
assert reach == [1, 13, 25, 37, 41]
assert [int(s.sum()) for s in seen] == [1, 9, 9, 9, 41 * 41]  # few places each, but in all directions

# %% [markdown]
# (The dots are drawn larger than they are.) Nine places each, at three distances, and the mean of everything. Their outputs are laid side by side, and a 1 x 1 convolution mixes them.
#
# At output stride 8 the map is twice as fine. To reach as far *in the image*, the rates have to double:

# %%
print({stride: atrous_rates(stride) for stride in (16, 8)})
assert [r * 16 for r in atrous_rates(16)] == [r * 8 for r in atrous_rates(8)]  # the same pixels

# %% [markdown]
# ## Too far
#
# Why not a rate of 60, to see everything? Near the border some of the nine weights fall off the map and meet zeros.
#
# **Before you run the cell:** the map has 65 x 65 places. At which rate does a 3 x 3 kernel have only its middle weight left, everywhere?

# %%
side = 65
rates = list(range(1, 70, 2))
shares = {1: [], 4: [], 9: []}
for rate in rates:
    valid = F.conv2d(torch.ones(1, 1, side, side), torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)[0, 0]
    for count, share in shares.items():
        share.append(float((valid.round() == count).float().mean()))
plt.figure(figsize=(6, 2.2))
for count, share in shares.items():
    plt.plot(rates, share, label=f"{count} valid weight{'s' if count > 1 else ''}")
plt.xlabel("rate")
plt.ylabel("share of the places")
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))

assert shares[9][0] > 0.9 and shares[1][0] == 0
assert all(one == 1 for rate, one in zip(rates, shares[1], strict=True) if rate >= side)
assert max(nine for rate, nine in zip(rates, shares[9], strict=True) if rate > side // 2) == 0

# %% [markdown]
# From rate 65 on. A 3 x 3 convolution of a huge rate is a 1 x 1 convolution with eight weights for nothing (Fig. 4 of the paper). That is why ASPP sees the whole image by *pooling*: a single mean cannot fall
# off the border.
#
# ## A question that only the whole can answer
#
# Here is a small task. Somewhere on a map there is one bright place, or there is not. *Every* place shall say which.
#
# **Before you run the cell:** one ASPP has image pooling, the other has only rates 1, 2, 3. On maps that have a bright place: where will the second one
# be wrong?


# %%
def scenes(count, generator):
    maps = 0.1 * torch.randn(count, 1, 24, 24, generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    for k in range(count):
        i, j = torch.randint(24, (2,), generator=generator)
        maps[k, 0, i, j] += 12.0 * labels[k]
    return maps, labels[:, None, None].expand(-1, 24, 24)


def learned(image_pooling):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = torch.nn.Sequential(
        ASPP(1, 8, (1, 2, 3), image_pooling=image_pooling, dropout=0.0), torch.nn.Conv2d(8, 2, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        maps, labels = scenes(16, generator)
        loss = F.cross_entropy(network(maps), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    maps, labels = scenes(200, generator)
    with torch.no_grad():
        answers = network.eval()(maps)
    present = labels[:, 0, 0] == 1
    example = answers[present][0].softmax(0)[1]
    return float((answers.argmax(1) == labels)[present].float().mean()), example, maps[present][0, 0]


with_pooling, its_answer, scene = learned(True)
without, other_answer, _ = learned(False)
row(
    scene,
    its_answer,
    other_answer,
    titles=["a bright place", f"pooling: {with_pooling:.0%} right", f"without: {without:.0%} right"],
    vmin=0,
    vmax=1,
)

assert with_pooling > 0.9
assert without < 0.6

# %% [markdown]
# Nearly everywhere. It knows of the bright place only where one of its rates hits it, and elsewhere answers as if there were none. No training could change that. Real images ask such questions mildly: water makes the thing on it
# a boat rather than a car. What ASPP's parts were worth on real images is measured: `python -m experiments.ablate_aspp`, and [its report](../experiments/results/ablate_aspp.md).
#
# ## Exercises
#
# **a.** A pyramid has bins 1, 2, 3 and 6. How many means does it take, for each channel?

# %%
answer = None
check("pyramids.a", answer)

# %% [markdown]
# **b.** The map has 33 x 33 places. What is the smallest rate at which *no* place has all nine weights of a 3 x 3 kernel on the map?

# %%
answer = None
check("pyramids.b", answer)

# %% [markdown]
# **c.** ASPP has a 1 x 1 branch, three rates and image pooling, 256 channels each. How many channels enter the 1 x 1 convolution that mixes them?

# %%
answer = None
check("pyramids.c", answer)

# %% [markdown]
# **Next:** [the same convolutions for a sixth of the price](10_separable_convolution.ipynb).
#
# **Read on:** [Zhao et al. 2017](https://arxiv.org/abs/1612.01105), Fig. 3; [Chen et al. 2018](https://arxiv.org/abs/1606.00915), Fig. 4, the first ASPP; [Chen et al. 2017](https://arxiv.org/abs/1706.05587), Sec. 3.3. In the
# library: [`ASPP`](../lightning_modules/components/pyramid.py#L68), [`PyramidPooling`](../lightning_modules/components/pyramid.py#L110), [`PSPNet`](../lightning_modules/pspnet.py#L33).
