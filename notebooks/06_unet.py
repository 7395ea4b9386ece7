# %% [markdown]
# # 6. U-Net
#
# U-Net takes skip connections all the way. It goes down with poolings, to see far. It goes up again step by step, and at every step it lays the map from
# the way down beside its own. In the paper an image of 572 x 572 pixels goes in and labels for 388 x 388 come out. Why 388? Where is the
# rest, and who labels it? That is what this notebook is about.
#
# ([Ronneberger, Fischer, Brox 2015](https://arxiv.org/abs/1505.04597): have Fig. 1, the U, beside you.)

# %%
import copy

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from matplotlib.patches import Rectangle
from pictures import coloured, numbers, row
from torch import nn

from datamodules.brain import BrainDataModule
from lightning_modules.components.blocks import crop, mirror_pad
from lightning_modules.components.scores.boundary import boundary_f1
from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.components.scores.reductions import scores
from lightning_modules.unet import UNet, UNetModule

# %% [markdown]
# ## 572 to 388
#
# [`UNet`](../lightning_modules/unet.py#L53) with `padding="valid"` is the network of Fig. 1. We send an image through it on the device "meta", where tensors have
# a size and no numbers, and write down what every convolution returns.
#
# **Before you run the cell:** there are 23 convolutions. Four double the size on the way up. What do the sides of the maps look like, from the first to the last? And the number of channels?

# %%
with torch.device("meta"):
    unet = UNet(num_classes=2, in_channels=1, padding="valid")
    seen = []  # kind of the convolution, side and channels of its map
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda layer, _, map_: seen.append((layer, map_.shape[-1], map_.shape[1])))
    unet(torch.empty(1, 1, 572, 572))
sides, channels = [572] + [side for _, side, _ in seen], [1] + [count for *_, count in seen]

_, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True, layout="constrained")
axes[0].plot(sides, "o-")
for i in (0, 2, 10, 23):
    axes[0].annotate(str(sides[i]), (i, sides[i]), xytext=(3, 4), textcoords="offset points")
axes[0].set(ylabel="side of the map", ylim=(0, 640))
axes[1].plot(channels, "s-", color="tab:orange")
axes[1].set(yscale="log", yticks=[1, 64, 128, 256, 512, 1024], yticklabels=[1, 64, 128, 256, 512, 1024])
axes[1].set(ylabel="channels", xlabel="convolution")
axes[1].minorticks_off()

assert len(seen) == 23 and sum(p.numel() for p in unet.parameters()) == 31_030_658
assert sides[-1] == 388 and sides[1:3] == [570, 568]
assert channels[2:11:2] == [64, 128, 256, 512, 1024]  # down: doubled at each level
assert channels[13:23:3] == [512, 256, 128, 64]  # up: halved

# %% [markdown]
# The upper curve is the U. The way down is called the **contracting path**, the way up the **expanding path**. Down, each pooling halves the side and the channels double: less place, more meaning. That gathers the context. Up, it is the other way round, and
# what was found gets its place.
#
# Now the missing pixels. A 3x3 convolution without padding has no answer for the outermost row, because a part of its window would hang over the border. It takes
# one pixel on each side: 2 in all. On a deep map a pixel is large: behind four poolings, 2 pixels of the map are 32 pixels of the image.

# %%
threes = [layer for layer, *_ in seen if layer.kernel_size == (3, 3)]
levels = {id(conv): level for level, block in enumerate(unet.encoder) for conv in block.modules()}
levels |= {id(conv): 3 - level for level, block in enumerate(unet.decoder) for conv in block.modules()}
lost = [2 * 2 ** levels[id(conv)] for conv in threes]  # in pixels of the image
print(lost, "=", sum(lost))

assert len(threes) == 18 and sum(lost) == 572 - 388 == 184
assert all(conv.padding == (0, 0) for conv in threes)

# %% [markdown]
# 184 pixels, 92 on each side. The authors could have padded with zeros. They did not: an answer near a border of zeros is an answer about an image
# that nobody took. Every pixel that U-Net labels was computed from real pixels only.
#
# ## Large images, tile by tile
#
# So how do the outer pixels of an image get a label? The image is continued beyond its border, by its mirror image. And a large image,
# which does not fit into memory, is cut: **overlap-tile strategy** (Sec. 2 and Fig. 2). The *outputs* of the tiles lie side by side. Their *inputs* overlap,
# for every output needs its 92 pixels around it.
#
# **Before you run the cell:** a network with 2 poolings and tiles of 68 x 68 labels. The white frame is the image; orange is what a tile answers, blue what it reads (two of the four tiles
# are drawn). Where do the blue squares overlap, and what do they show outside of the white frame?

# %%
data = BrainDataModule()
image = data.dataset("test")[4][0][:, 40:176, 29:165]  # 2 x 2 tiles of 68
torch.manual_seed(0)
module = UNetModule(2, 255, in_channels=1, padding="valid", width=4, depth=2, tile=68).eval()
reads, answers = module.network.valid_input_size(68)
border = (reads - answers) // 2
extended = mirror_pad(image[None], *[border] * 4)[0]

axis = row(extended, height=3.6)[0]
axis.add_patch(Rectangle((border, border), 136, 136, fill=False, edgecolor="white", linewidth=2))
for place in (0, 1):
    left = place * answers
    for start, side, colour in ((left, reads, "tab:blue"), (left + border, answers, "tab:orange")):
        axis.add_patch(Rectangle((start, start), side, side, fill=False, edgecolor=colour, linewidth=3))

assert unet.valid_input_size(388) == (572, 388)  # the paper's tile
assert (reads, answers, border) == (108, 68, 20)
assert torch.equal(extended[:, :border, border:-border].flip(1), image[:, 1 : border + 1])  # mirrored

# %% [markdown]
# They overlap in a band of 40 pixels, twice the border, and outside they show the mirror image. Does the cutting change the answer? [`UNetModule`](../lightning_modules/unet.py#L239) has it as an option, `tile`. We predict the image at once and in tiles. Beside it stands what one would do
# without thinking: a network *with* padding, and the image cut into tiles that do not overlap.
#
# **Before you run the cell:** where will the second way go wrong?

# %%
padded = UNetModule(2, 255, in_channels=1, padding="same", width=4, depth=2).eval()
padded.network.load_state_dict(module.network.state_dict())
with torch.no_grad():
    in_tiles = module.predict(image[None])
    module.tile = None
    at_once = module.predict(image[None])
    whole = padded.predict(image[None])
    bands = [[padded.predict(piece) for piece in band.split(68, 3)] for band in image[None].split(68, 2)]
    cut = torch.cat([torch.cat(band, 3) for band in bands], 2)
errors = [(one - two).abs().amax((0, 1)) for one, two in ((in_tiles, at_once), (cut, whole))]
scale = float(at_once.std())
row(*errors, height=3, vmin=0, vmax=scale, cmap="magma", titles=["tiles that overlap: error", "cut: error"])

middles = torch.zeros(136, 136, dtype=torch.bool)
for i in (0, 68):
    for j in (0, 68):
        middles[i + 24 : i + 68 - 24, j + 24 : j + 68 - 24] = True
assert errors[0].max() < 1e-4 * scale  # overlapping tiles: the same numbers
assert errors[1].max() > scale  # cut: at the seams the errors are as large as the scores
assert errors[1][middles].max() < 1e-4 * scale  # far enough from every seam all is well

# %% [markdown]
# With overlap, the tiles and the whole are the same numbers. Without it, the padding between the tiles shows as seams: each tile
# believes that the world ends at its border. The dark middles are the pixels that do not see the seam.
#
# ## Why the sides must be even
#
# A 2x2 pooling takes pixels in pairs. Of an odd row the last pixel finds no partner and is dropped. On the way up its place is missing: half of 5 is 2, and twice 2 is 4.
#
# **Before you run the cell:** which numbers of the 5 x 5 map will never be looked at?

# %%
odd = torch.arange(25.0).view(1, 1, 5, 5)
pooled = F.max_pool2d(odd, 2)
doubled = F.interpolate(pooled, scale_factor=2)
numbers(odd[0], pooled[0], doubled[0], titles=["5 x 5", "pooled: 2 x 2", "doubled: 4 x 4"])

changed = odd.clone()
changed[..., 4, :] = changed[..., :, 4] = 1000
assert torch.equal(F.max_pool2d(changed, 2), pooled)  # nobody saw it
assert doubled.shape[-1] == 4 != odd.shape[-1]  # and the copy from the way down does not fit beside it

# %% [markdown]
# The paper asks for 'an even x- and y-size' before every pooling (Fig. 1). Which sizes does that leave? The library refuses all others, with a sentence that says what to do.

# %%
taken, refused = [], ""
for side in range(540, 610):
    try:
        unet(torch.empty(1, 1, side, side, device="meta"))
        taken.append(side)
    except ValueError as error:
        refused = str(error)
print("taken:", taken)
print("the others:", refused)

assert taken == [540, 556, 572, 588, 604]  # 16 apart, since four poolings halve four times
assert 512 not in taken and 571 not in taken

with torch.no_grad():  # padding="same" is for those who want their own size back
    assert UNet(2, 1, width=4, padding="same")(torch.zeros(1, 1, 75, 101)).shape == (1, 2, 75, 101)

# %% [markdown]
# Not even 512 is welcome: (512 - 4) / 2 = 254, (254 - 4) / 2 = 125, and that is odd. With `padding="same"` the library mirrors the image up to the next multiple of 16 and cuts the answer back.
#
# ## Up: 2x2 with a stride of 2
#
# On the way up, a transposed convolution with a kernel of 2x2 and a stride of 2 doubles the map (the *up-convolution* of Fig. 1). Each number paints a square of 2x2; the next one begins
# where it ends. Nothing overlaps, so there is no [checkerboard](03_upsampling.ipynb) from uneven sums.
#
# **Before you run the cell:** all inputs and weights are 1. What would a kernel of 3x3 paint?

# %%
ones = torch.ones(1, 1, 3, 3)
painted = {k: F.conv_transpose2d(ones, torch.ones(1, 1, k, k), stride=2)[0] for k in (2, 3)}
numbers(*painted.values(), titles=["2x2, stride 2", "3x3, stride 2"])

assert all(up.kernel_size == up.stride == (2, 2) for up in unet.up)
assert painted[2].unique().tolist() == [1] and painted[3].unique().tolist() == [1, 2, 4]

# %% [markdown]
# ## Copy and crop: the skip
#
# FCN *adds* scores. U-Net **concatenates** features: it lays the map from the way down beside the map from below, channel by channel, and lets the next
# convolution decide. At the top, the map of the way down has 568 pixels, the one of the way up 392. So 88 pixels are cut on each side.

# %%
copied, upsampled = sides[2], sides[20]
assert (copied, upsampled, (copied - upsampled) // 2) == (568, 392, 88)
of_each = [block[0][0].in_channels for block in unet.decoder]
assert of_each == [2 * 512, 2 * 256, 2 * 128, 2 * 64]  # two maps beside each other

# %% [markdown]
# What does the skip bring? We train a narrow U-Net on pieces of brain slices at half size, for a few seconds, and a twin whose skips are cut. The twin gets wider layers,
# so that both have as many parameters: otherwise we would compare two things at once.
#
# **Before you run the cell:** both see equally far, and both have poolings down to stride 8. Where will the twin fail?

# %%
data = BrainDataModule(scale=0.5)
x, y = (torch.stack(pair) for pair in zip(*data.dataset("train"), strict=True))
x_test, y_test = (torch.stack(pair) for pair in zip(*data.dataset("test"), strict=True))
x, x_test = ((images - x.mean()) / x.std() for images in (x, x_test))


def train(skips, seed=0, steps=80):
    torch.manual_seed(seed)
    network = UNet(4, 1, width=8, depth=3, norm="batch", skips=skips, match_parameters=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for _ in range(steps):
        batch, top, left = torch.randint(len(x), (4,)), int(torch.randint(53, ())), int(torch.randint(35, ()))
        images, truth = (crop(whole[batch], 64, 64, top=top, left=left) for whole in (x, y))
        loss = F.cross_entropy(network(images), truth, weight=torch.tensor([0.5, 3, 1, 1]))  # CSF is rare
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def judged(network):
    """Labels of the test slices, mIoU and boundary F1."""
    with torch.no_grad():
        labels = network(x_test).argmax(1)
    confusion = confusion_matrix(labels, y_test, 4, 255).sum(0).numpy()
    return labels, float(scores(confusion)["miou"]), float(boundary_f1(labels, y_test, 4, 255).nanmean())


with_skips, without = train("concat"), train("none")
(said_with, miou_with, f1_with), (said_without, miou_without, f1_without) = judged(with_skips), judged(without)
row(x_test[12], *(coloured(labels[12], data.palette) for labels in (y_test, said_with, said_without)), height=2.4,
    titles=["slice", "truth", f"skips: mIoU {miou_with:.0%}", f"none: mIoU {miou_without:.0%}"])  # fmt: skip
print(f"boundary F1: {f1_with:.0%} with skips, {f1_without:.0%} without")

sizes = [sum(p.numel() for p in network.parameters()) for network in (with_skips, without)]
assert abs(sizes[1] / sizes[0] - 1) < 0.01
assert miou_with > miou_without + 0.05
assert f1_with > f1_without + 0.1

# %% [markdown]
# At everything thin. This is one seed: a *demonstration*, not evidence. [The ablation](../experiments/results/ablate_upsampling.md) has six seeds and four ways of upsampling: without skips, mIoU is 14.1 points lower
# at equal parameters, 95 % interval 12.7 to 15.6.
#
# Now look at the two maps that meet at the top, at stride 1: what the skip brings, and what comes up from below.
#
# **Before you run the cell:** which of the two knows the edges?

# %%
meeting = []
hook = with_skips.decoder[-1].register_forward_hook(lambda _, inputs, output: meeting.append(inputs[0]))
judged(with_skips)
hook.remove()
together = meeting[0][12]
skip, below = together[:8], together[8:]  # the order in which they are concatenated
liveliest = [part[part.flatten(1).std(1).argsort(descending=True)[:2]] for part in (skip, below)]
row(*liveliest[0], *liveliest[1], height=2.4, titles=["skip", "skip", "from below", "from below"])


def woven(maps):
    """How much the four places of each square of 2 x 2 differ on average, as a share of how much all pixels do."""
    places = torch.stack([maps[:, i::2, j::2].mean((1, 2)) for i in (0, 1) for j in (0, 1)])
    return float((places.std(0) / maps.flatten(1).std(1)).nanmean())


assert len(skip) == len(below) == 8
assert woven(below) > 2 * woven(skip)

# %% [markdown]
# The skip is sharp. From below come large areas, woven like cloth: the squares that the up-convolution paints. They do not overlap, but each of their four places has
# weights of its own, and these differ. The convolution behind takes the areas from one and the edges from the other.
#
# How much does it rely on the skips? We make the convolution behind each meeting deaf to the skip, by setting its weights for those channels to zero: at one stride only, then at all of
# them.
#
# **Before you run the cell:** which skip will be missed most?

# %%
deafened, miou_deaf = {}, {}
for strides in ((4,), (2,), (1,), (4, 2, 1)):
    deaf = copy.deepcopy(with_skips)
    for stride, block in zip((4, 2, 1), deaf.decoder, strict=True):
        if stride in strides:
            convolution = block[0][0]
            convolution.weight.data[:, : convolution.in_channels // 2] = 0
    labels, miou_deaf[strides], _ = judged(deaf)
    deafened[f"deaf at {', '.join(map(str, strides))}: {miou_deaf[strides]:.0%}"] = labels
row(*(coloured(labels[12], data.palette) for labels in deafened.values()), height=2.4, titles=[*deafened])

assert miou_deaf[1,] < miou_deaf[4,] - 0.2
assert miou_deaf[4, 2, 1] < miou_without - 0.1

# %% [markdown]
# The skip at stride 1: everything thin hangs on it. (After so few steps this network has hardly begun to use the others. One seed, a demonstration.)
#
# Without any skip the network is far worse than its twin that never had one, because it was trained to rely on them. So zeroing a part tells what a network *uses*, not what a network *needs*. For that
# one must train without it, as above.
#
# ## Exercises
#
# **a.** You want labels for 500 x 500 pixels in one tile of the paper's U-Net. Which side must its input have?

# %%
answer = None
check("unet.a", answer)

# %% [markdown]
# **b.** Which of these sides does the paper's U-Net take: 508, 512, 524, 570, 588, 600, 620? Write them as a list.

# %%
answer = None
check("unet.b", answer)

# %% [markdown]
# **c.** Write a function `output_side(side, depth)` for a U-Net with valid 3x3 convolutions, two at each level, and `depth` poolings: the side of its output, or `None` if it refuses the
# input. So `output_side(572, 4)` is 388.


# %%
def output_side(side, depth):
    return None


check("unet.c", output_side)

# %% [markdown]
# **Next:** must the decoder get whole maps? [SegNet and DeconvNet](07_encoder_decoders.ipynb) get by with less.
#
# **Read on:** [Ronneberger, Fischer, Brox 2015](https://arxiv.org/abs/1505.04597), Sec. 3, on a loss that cares for the gaps between touching cells and on elastic deformations.
# How the library finds the tiles: [`UNetModule.predict`](../lightning_modules/unet.py#L264).
