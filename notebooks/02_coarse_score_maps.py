# %% [markdown]
# # 2. Why score maps are coarse
#
# A classification network that is rewritten as convolutions answers with a map. The map is small: an image of 224 x 224 pixels
# becomes 7 x 7 answers. This notebook asks where the pixels went, and why nobody leaves out the layers that take them.
#
# The answer in one sentence: those layers are what lets one answer see *much* of the image for *little* work.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from exercises import check
from matplotlib.patches import Rectangle
from pictures import coloured, photograph, row
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datamodules.brain import BrainDataModule
from lightning_modules.analysis.effective_field import effective_field, held
from lightning_modules.analysis.receptive_field import receptive_field, receptive_fields
from lightning_modules.components.blocks import conv_norm_relu, resize
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.scores.boundary import boundary_f1
from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.components.scores.reductions import scores

# %% [markdown]
# ## Strides multiply
#
# The **stride** of a layer is the step from one of its windows to the next. A 2x2 pooling has a stride of 2: its map has half
# as many rows and half as many columns. The stride of a *map* is the step in pixels of the image from one of its
# numbers to the next. It is the product of all the strides before it.
#
# [`VGG16`](../lightning_modules/components/encoders/vgg.py#L33) has five poolings. We follow an image through it. No
# weight is needed to know a size, so the network lives on PyTorch's device "meta", where tensors have a shape and no numbers.
#
# **Before you run the cell:** how many pixels of the cat does one number of the last map stand for?

# %%
with torch.device("meta"):
    vgg = build_encoder("vgg16")
    maps = vgg(torch.empty(1, 3, 224, 224))
sides = [map_.shape[-1] for map_ in maps]
strides = [224 // side for side in sides]
print("sides  ", sides)
print("strides", strides)

cat = photograph("chelsea", 224)[:, :, 60:284]
for axis, stride in zip(row(cat, cat, cat, titles=["stride 8", "stride 16", "stride 32"]), strides[3:], strict=True):
    axis.set(xticks=np.arange(-0.5, 224, stride), yticks=np.arange(-0.5, 224, stride), xticklabels=[], yticklabels=[])
    axis.grid(color="white", linewidth=1)

assert strides == [1, 2, 4, 8, 16, 2 * 2 * 2 * 2 * 2]
assert sides[-1] == 7  # one number for a square of 32 x 32 pixels

# %% [markdown]
# One number for 1,024 pixels. Each square of the right picture gets a single label, and an eye of the cat has to share its
# square with fur. Why would anybody want this?
#
# ## What a number can see
#
# The **receptive field** of a number in a map is the part of the image that it depends on. A 3x3 convolution sees 3 x 3 pixels. A second one on top
# sees 5 x 5: one more pixel on each side, so 2 more in all. That is true while the step between neighbours is one pixel. Behind a
# pooling the neighbours are 2 pixels apart, and the next 3x3 layer reaches 2 pixels further on each side.
#
# So two numbers go through the network: the field and the step. A layer with a kernel of `k` adds `k - 1` steps to the field; a layer with
# a stride multiplies the step.
#
# **Before you run the cell:** VGG16 has 13 convolutions of 3x3. How far does the last one see? And how far without the poolings?

# %%
field, step, with_strides = 1, 1, []
for layer in vgg.features:
    if isinstance(layer, nn.Conv2d):
        field += (3 - 1) * step
        with_strides.append(field)
    if isinstance(layer, nn.MaxPool2d):
        field += (2 - 1) * step
        step *= 2
without_strides = [1 + 2 * layers for layers in range(1, 14)]

convolutions = [f"features.{i}" for i, layer in enumerate(vgg.features) if isinstance(layer, nn.Conv2d)]
by_library = receptive_fields(vgg, 3, convolutions)
no_pooling = nn.Sequential(*[layer for layer in vgg.features if not isinstance(layer, nn.MaxPool2d)])

plt.figure(figsize=(5, 2.6))
plt.plot(range(1, 14), with_strides, "o-", label="with the poolings")
plt.plot(range(1, 14), without_strides, "s-", label="without")
plt.xlabel("3x3 convolutions of VGG16")
plt.ylabel("receptive field, pixels")
plt.legend()

assert [by_library[name].size for name in convolutions] == [(side, side) for side in with_strides]
assert with_strides[-1] == 196
assert receptive_field(no_pooling, 3).size == (27, 27) == (without_strides[-1], without_strides[-1])

# %% [markdown]
# 196 pixels against 27. The poolings did it. The rule is in the loop above; the library
# ([`receptive_field`](../lightning_modules/analysis/receptive_field.py#L69)) has one for every kind of layer, skips and all, and the assertions say
# that both agree.
#
# Do not believe rules, though: ask the network. If an answer depends on a pixel, the **gradient** of the answer with respect to that pixel
# is not zero. Here is a small network with three poolings, and the same network without them.


# %%
def small_network(poolings, seed=0, width=8, classes=3):
    torch.manual_seed(seed)
    layers, channels = [], 1
    for pooled in (False, True, True, True, False, False):  # behind this convolution
        layers.append(conv_norm_relu(channels, width))
        channels = width
        if pooled and poolings:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Conv2d(width, classes, kernel_size=1))
    return nn.Sequential(*layers)


coarse, fine = small_network(poolings=True), small_network(poolings=False)


def seen_by_the_middle(network, side=96):
    """Which pixels of random images move the number in the middle of the network's map."""
    images = torch.rand(16, 1, side, side, dtype=torch.float64, requires_grad=True)
    scores_ = network.double().eval()(images)
    middle = scores_.shape[-1] // 2
    scores_[:, :, middle, middle].sum().backward()
    return images.grad.abs().amax((0, 1)) > 0, middle


# %% [markdown]
# **Before you run the cell:** the small network has 6 convolutions of 3x3. What is its field without poolings?

# %%
seen = {}
for name, network in (("no pooling", fine), ("three poolings", coarse)):
    told = receptive_field(network, 1)
    pixels, middle = seen_by_the_middle(network)
    rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
    centre = told.offset[0] + told.stride[0] * middle  # where the library says that the field lies
    assert rows.min() == columns.min() == centre - (told.size[0] - 1) / 2
    assert rows.max() == columns.max() == centre + (told.size[0] - 1) / 2
    seen[f"{name}: {told.size[0]} pixels"] = pixels
    network.float()
row(*seen.values(), titles=[*seen])

assert receptive_field(fine, 1).size == (1 + 6 * 2, 1 + 6 * 2)
assert receptive_field(coarse, 1).size == (56, 56)
assert sum(p.numel() for p in fine.parameters()) == sum(p.numel() for p in coarse.parameters())

# %% [markdown]
# White pixels move the answer in the middle, black ones do not. They end exactly where the library says. And both networks have
# equally many weights: seeing further cost none.
#
# ## What it costs to leave the strides out
#
# Without strides every map keeps all its pixels. You would get a score for each pixel, with nothing lost. But a convolution does its work
# once for every pixel of its map. So each stride that is gone makes all the layers behind it four times as dear: twice the rows, twice
# the columns. Work is counted in **multiply-adds**: one weight times one value, added to a sum.
#
# **Before you run the cell:** the last three convolutions of VGG16 lie behind four poolings. How many times dearer do they get?


# %%
def multiply_adds(network):
    """Of each convolution for one image of 224 x 224, in the order of the layers."""
    counts = []
    with torch.device("meta"):
        x = torch.empty(1, 3, 224, 224)
    for layer in network:
        with FlopCounterMode(display=False) as counter:
            x = layer(x)
        if isinstance(layer, nn.Conv2d):
            counts.append(counter.get_total_flops() // 2)  # a multiply-add is two operations
    return counts


usual, dear = multiply_adds(vgg.features), multiply_adds(no_pooling)
ratios = [b // a for a, b in zip(usual, dear, strict=True)]
_, axis = plt.subplots(figsize=(6, 2.6))
axis.bar(np.arange(1, 14) - 0.2, usual, 0.4, label=f"with poolings: {sum(usual) / 1e9:.0f} billion")
axis.bar(np.arange(1, 14) + 0.2, dear, 0.4, label=f"without: {sum(dear) / 1e9:.0f} billion")
axis.set(yscale="log", xlabel="3x3 convolutions of VGG16", ylabel="multiply-adds", ylim=(5e7, 1e13))
axis.legend()

assert ratios == [1, 1, 4, 4, 16, 16, 16, 64, 64, 64, 256, 256, 256]
assert 48 < sum(dear) / sum(usual) < 49

# %% [markdown]
# 4 x 4 x 4 x 4 = 256 times, and 48 times for the thirteen layers together: for a network that sees 27 pixels instead of 196. Fine maps are dear *and* short-sighted.
#
# (There is a third way: leave out the stride and pull the weights of the kernel apart instead. That is **dilation**. It keeps the field and the fine map, and it pays the
# price above. It has [a notebook of its own](08_dilated_convolution.ipynb).)
#
# ## Does it matter to see far?
#
# Let us build a task where it does. A *coin* is a small white disc, a *plate* is a large one. That is all that tells them apart. Each of our two small
# networks learns it from random pictures with one disc each. The map of the one with poolings has a stride of 8, so its scores are resized by 8,
# smoothly, before they are compared with the labels.
#
# Look at a pixel in the middle of a plate through a window of 13 x 13: all white. Look at one in the middle of a coin: all white.
#
# **Before you run the cell:** the network without poolings answers for every pixel. What will it say in the middle of the coin, and what in the middle of the
# plate? What will its outlines be like?


# %%
def discs(sizes, centres, shape):
    """Labels (H, W) of discs: 0 table, 1 coin, 2 plate."""
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    labels = torch.zeros(shape, dtype=torch.long)
    for radius, (row_, column) in zip(sizes, centres, strict=True):
        labels[(y - row_) ** 2 + (x - column) ** 2 < radius**2] = 2 if radius > 15 else 1
    return labels


def draw(generator):
    plate = torch.rand((), generator=generator) < 0.5
    radius = (20 if plate else 10) + 2 * torch.rand((), generator=generator)
    return discs([radius], [(24 + 16 * torch.rand(2, generator=generator)).tolist()], (64, 64))


def train(network, steps=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    network.train()
    for _ in range(steps):
        truth = torch.stack([draw(generator) for _ in range(4)])
        logits = resize(network((truth > 0)[:, None].float()), truth.shape[1:])
        loss = F.cross_entropy(logits, truth, weight=torch.tensor([0.3, 1.0, 1.0]))  # the table has most pixels
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


truth = discs([11, 21], [(32, 30), (32, 90)], (64, 128))
picture = (truth > 0).float()
palette = [(0, 0, 0), (230, 159, 0), (86, 180, 233)]
said = {}
for name, network in (("no pooling", fine), ("three poolings", coarse)):
    train(network)
    with torch.no_grad():
        said[name] = resize(network(picture[None, None]), truth.shape).argmax(1)[0]
row(picture, coloured(truth, palette), *(coloured(map_, palette) for map_ in said.values()), height=1.6,
    titles=["picture", "truth: coin, plate", *said])  # fmt: skip

all_white = -F.max_pool2d(-picture[None, None], 13, stride=1, padding=6)[0, 0] == 1  # the whole window of 13 x 13
middles = [all_white & (truth == c) for c in (1, 2)]
short, long = said["no pooling"], said["three poolings"]
assert all(middle.sum() > 20 for middle in middles)
assert len(short[all_white].unique()) == 1  # the same window, the same answer: on coin and plate alike
assert all((long[middle] == c).float().mean() > 0.9 for c, middle in zip((1, 2), middles, strict=True))
assert ((short > 0) == (truth > 0)).sum() > ((long > 0) == (truth > 0)).sum()  # disc or table: the fine map knows best

# %% [markdown]
# The short-sighted network draws the outline of the discs to the pixel. But in the middle it must say the same of both, because both windows are the
# same numbers. No training can help it: *the same window, the same answer* holds for any weights. The far-sighted network knows which is which, and its outlines are wobbly.
#
# (One seed of one invented task: a demonstration, no evidence. That equal windows get equal answers needs none.)
#
# This is the conflict of semantic segmentation. *What* is it? For that you must see far. *Where* does it end? For that you must see finely.
#
# ## How much does a coarse map lose?
#
# Take real labels, and a network that is never wrong. Only its map is coarse: for each square it says which share of its pixels
# belongs to which class. We resize these shares smoothly to the size of the image and take the largest one.
#
# Two scores judge it. **mIoU** is known from [the first notebook](01_what_is_segmentation.ipynb). **Boundary F1** asks whether the outlines lie where they should,
# within about two pixels ([`boundary_f1`](../lightning_modules/components/scores/boundary.py#L12)).
#
# **Before you run the cell:** the brain is folded, and its layers are a few pixels thin. At which stride will the folds be gone?

# %%
data = BrainDataModule()
slices = torch.stack([mask for _, mask in data.dataset("val")]).long()[:, 4:228, 2:194]  # sides that 32 divides
shares = F.one_hot(slices, 4).movedim(-1, 1).float()


def through(stride):
    return resize(F.avg_pool2d(shares, stride), slices.shape[1:]).argmax(1)


tried = [1, 2, 4, 8, 16, 32]
answers = [through(stride) for stride in tried]
miou = [float(scores(confusion_matrix(a, slices, 4, 255).sum(0).numpy())["miou"]) for a in answers]
outlines = [float(boundary_f1(a, slices, 4, 255).nanmean()) for a in answers]
row(*(coloured(a[4], data.palette) for a in answers), height=1.9,
    titles=["labels", *(f"stride {s}" for s in tried[1:])])  # fmt: skip

plt.figure(figsize=(4.5, 2.4))
plt.plot(tried, miou, "o-", label="mIoU")
plt.plot(tried, outlines, "s--", label="boundary F1")
plt.xscale("log", base=2)
plt.xticks(tried, tried)
plt.xlabel("stride of the map")
plt.ylim(0, 1.03)
plt.legend(loc="lower left")
print({stride: f"{value:.0%}" for stride, value in zip(tried, miou, strict=True)})

assert miou[0] == 1 and miou == sorted(miou, reverse=True)
assert miou[1] > 0.9 and miou[3] < 0.75 and miou[4] < 0.55 and miou[5] < 0.4
assert outlines[4] < 1 / 3

# %% [markdown]
# At stride 16: half of the mIoU is gone, and two thirds of the outlines. Nothing here was ever *misunderstood*: the loss is all in the step. A network that is trained through the resizing can choose its scores a little better than plain shares, so these are no strict limits. FCN's authors did the same with
# the labels of PASCAL VOC ([Long et al. 2015](https://arxiv.org/abs/1411.4038), Appendix A). They lost less: a sheep is larger than the fold of a brain.
#
# ## Can see, and does see
#
# The receptive field says which pixels *can* matter. Do they matter equally? The library measures how much each one moves the answer:
# [`effective_field`](../lightning_modules/analysis/effective_field.py#L33), after [Luo et al. 2016](https://arxiv.org/abs/1701.04128).
# A pixel in the middle has many ways to the answer, through many windows. One at the corner has a single way.
#
# **Before you run the cell:** the first network can see 27 x 27 pixels. How large is the part that holds 95 % of the influence?

# %%
torch.manual_seed(0)
deep = nn.Sequential(*(conv_norm_relu(i, 16, norm="none") for i in (1, *[16] * 12)))  # 13 layers, no stride
smooth = nn.Sequential(coarse, nn.Upsample(scale_factor=8, mode="bilinear"))  # what was trained above
noise = torch.randn(16, 1, 96, 96)
fields = {}
for name, network in (("13 layers, random weights", deep), ("three poolings, trained", smooth)):
    influence = effective_field(network, noise, (48, 48))
    can, does = receptive_field(network, 1).size[0], held(influence).side
    fields[f"{name}:\ncan {can}, does {does:.0f}"] = influence
    assert influence.sum().isclose(torch.tensor(1.0, dtype=torch.float64))
    assert does < 0.9 * can
axes = row(*(influence.sqrt() for influence in fields.values()), titles=[*fields], cmap="magma")
for axis, network in zip(axes, (deep, smooth), strict=True):
    side = receptive_field(network, 1).size[0]
    axis.add_patch(Rectangle((48 - side / 2, 48 - side / 2), side, side, fill=False, edgecolor="white"))

# %% [markdown]
# The white square is the receptive field. The light is what moves the answer: a blob in the middle. "Can" is the side of the square, "does" the side of a square
# with as many pixels as hold 95 % of the influence: 17 of 27. (The second network could see 56 pixels; resized by 8 it also reads the next number, 8 pixels away.)
# So a network needs a receptive field that is larger than what it has to see.
#
# ## Exercises
#
# **a.** A network with VGG16's five poolings sees an image of 480 x 640 pixels. How large is its last map? Write (rows, columns).

# %%
answer = None
check("score_maps.a", answer)

# %% [markdown]
# **b.** FCN's deepest layer, fc7, has a receptive field of 404 pixels. You leave out all strides. How many 3x3 convolutions do you have to stack to see at least as far?

# %%
answer = None
check("score_maps.b", answer)

# %% [markdown]
# **c.** Write a function `field(layers)`: the receptive field, in pixels, of a chain of layers. Each layer is a pair (kernel, stride). So
# `field([(3, 1), (2, 2), (3, 1)])` is 8.


# %%
def field(layers):
    return None


check("score_maps.c", field)

# %% [markdown]
# **Next:** the map is coarse, and it has to be. So it must be made larger again: [upsampling](03_upsampling.ipynb).
#
# **Read on:** [Long, Shelhamer, Darrell 2015](https://arxiv.org/abs/1411.4038), Sec. 3 and 4.2. The receptive field of every layer of any network here:
# `python -m experiments.explain --model fcn`.
