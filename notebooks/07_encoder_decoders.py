# %% [markdown]
# # 7. Encoders and decoders: SegNet and DeconvNet
#
# An **encoder** trades place for meaning: its maps get smaller and know more. A **decoder** brings the place back, step by step, until every pixel has a label.
# But the place is *gone*: pooling threw it away. So a decoder has to be told. U-Net hands it whole maps. SegNet and DeconvNet hand it something much
# smaller: a note of where each maximum was.
#
# This notebook follows that note.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from pictures import coloured, numbers, photograph, row
from skimage.filters import sobel
from torch import nn

from datamodules.brain import BrainDataModule
from lightning_modules.components.blocks import crop
from lightning_modules.components.scores.boundary import boundary_f1
from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.components.scores.reductions import scores
from lightning_modules.components.upsampling import pool, unpool
from lightning_modules.deconvnet import DeconvNet
from lightning_modules.segnet import SegNet
from lightning_modules.unet import UNet

# %% [markdown]
# ## Down and up again
#
# Three networks: [`SegNet`](../lightning_modules/segnet.py#L79) ([Badrinarayanan et al. 2015](https://arxiv.org/abs/1511.00561), Fig. 2),
# [`DeconvNet`](../lightning_modules/deconvnet.py#L38) ([Noh et al. 2015](https://arxiv.org/abs/1505.04366), Fig. 2) and, to compare, U-Net. We send an image of 224 x 224 through each, on the
# device "meta", where maps have a size and no numbers, and write down what every convolution returns.
#
# **Before you run the cell:** SegNet's encoder has the 13 convolutions of VGG16. Its decoder mirrors them. What does the curve of sides look like? And DeconvNet has two fully connected layers in its middle:
# what is the side of the map there?

# %%
with torch.device("meta"):
    networks = {
        "SegNet": SegNet(num_classes=11),
        "DeconvNet": DeconvNet(num_classes=21),
        "U-Net": UNet(num_classes=2, in_channels=3),
    }


def traced(network):
    """Sides and channels of what the convolutions return, in their order."""
    seen = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, inputs, map_: seen.append((map_.shape[-1], map_.shape[1])))
    network.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return [side for side, _ in seen], [count for _, count in seen]


traces = {name: traced(network) for name, network in networks.items()}
_, axes = plt.subplots(2, 3, figsize=(8, 3.6), sharex="col", layout="constrained")
for (above, below), (name, (sides, channels)) in zip(axes.T, traces.items(), strict=True):
    above.plot(sides, "o-", markersize=3)
    above.set(title=name, ylim=(-10, 240))
    below.plot(channels, "s-", markersize=3, color="tab:orange")
    below.set(yscale="log", ylim=(1.5, 8000), xlabel="convolution")
axes[0, 0].set_ylabel("side of the map")
axes[1, 0].set_ylabel("channels")

segnet, deconvnet = traces["SegNet"], traces["DeconvNet"]
assert len(segnet[0]) == 13 + 13 and segnet[0] == segnet[0][::-1]  # a mirror stands in the middle
assert min(segnet[0]) == 14 and min(deconvnet[0]) == 1  # fc6 sees all of its 7 x 7: a single place is left
assert max(segnet[1]) == 512 and max(deconvnet[1]) == 4096

# %% [markdown]
# The left half of each is an encoder, the right half a decoder. DeconvNet goes down to a single place with 4,096 channels: whatever it knows of *where* must come from somewhere else.
#
# ## The note that pooling leaves
#
# Max-pooling takes the largest of each 2x2 window and forgets which of the four it was. [`pool`](../lightning_modules/components/upsampling.py#L94) does not forget: it returns the maxima *and* their
# positions. **Unpooling** ([`unpool`](../lightning_modules/components/upsampling.py#L103)) puts each value back where the maximum was, and zeros everywhere else.
#
# **Before you run the cell:** a line goes from the lower left to the upper right. What is left of it after pooling and doubling? And after unpooling?

# %%
line = torch.tensor([[0, 1, 0, 7], [0, 0, 9, 0], [1, 8, 2, 0], [6, 0, 0, 3]])[None, None].float()
maxima, positions = pool(line)
doubled = F.interpolate(maxima, scale_factor=2, mode="nearest-exact")
put_back = unpool(maxima, positions, (4, 4))
numbers(line[0], maxima[0], doubled[0], put_back[0], titles=["map", "pooled", "doubled", "unpooled"])

there = put_back > 0
assert torch.equal(put_back[there], line[there])  # each maximum is where it was
assert int(there.sum()) == maxima.numel() == line.numel() / 4
assert torch.equal(pool(put_back)[0], maxima)  # pooled again, nothing is lost

# %% [markdown]
# Doubled, the largest value of a window fills all its four pixels: it is somewhere there. Unpooled, it stands where it was. The smaller values are lost in both.
#
# Do it three times to a larger map, as an encoder would. We take a map that a shallow layer might make: the edges of coins.
#
# **Before you run the cell:** three poolings keep one pixel of 64. Will you still see the rims of the coins on the right?

# %%
coins = photograph("coins")[0, 40:232, 20:276]
edges = torch.from_numpy(sobel(coins.numpy()))[None, None].float()
x, notes = edges, []
for _ in range(3):
    size = x.shape[2:]
    x, where = pool(x)
    notes.append((where, size))
small = x
for where, size in reversed(notes):
    x = unpool(x, where, size)
drawn = F.max_pool2d(x, 3, stride=1, padding=1)  # the points are drawn larger, or one could not see them
row(edges[0], F.interpolate(small, scale_factor=8, mode="nearest-exact")[0], drawn[0], height=2.9,
    titles=["edges of coins", "doubled 3 times", "unpooled 3 times"])  # fmt: skip

kept = x > 0
assert kept.sum() == small.numel() == edges.numel() / 64
assert torch.equal(x[kept], edges[kept])  # to the pixel

# %% [markdown]
# Points only, but each in its very place on a rim. The doubled map has blocks of 8 x 8 instead.
#
# ## What the note costs
#
# A window has four pixels, so its note is a number from 0 to 3: **2 bits** (SegNet, Sec. 3). U-Net keeps the whole map: four numbers of 32 bits for each window. Let us count both for the encoder
# of SegNet and an image of 360 x 480 pixels, as the paper has them.
#
# **Before you run the cell:** how many times more does U-Net's way keep?

# %%
with torch.no_grad():
    *maps, _ = networks["SegNet"].encoder(torch.empty(1, 3, 360, 480, device="meta"))
windows = [map_.shape[1] * -(-map_.shape[2] // 2) * -(-map_.shape[3] // 2) for map_ in maps]
megabytes = {
    "positions, 2 bits a window": sum(windows) * 2 / 8e6,
    "whole maps, 32 bits a number": sum(map_.numel() for map_ in maps) * 32 / 8e6,
}
plt.figure(figsize=(5, 1.2))
plt.barh([*megabytes], [*megabytes.values()])
plt.xlabel("megabytes for one image")
print({name: f"{value:.1f} MB" for name, value in megabytes.items()})

few, many = megabytes.values()
code = positions // 4 % 2 * 2 + positions % 2  # of the small map above: row and column within the window
assert code.min() >= 0 and code.max() <= 3
assert 60 < many / few < 64.5  # 4 x 32 bits against 2; not quite, for the side of 45 is odd

# %% [markdown]
# 64 times. That was SegNet's point: it was made for scenes of a road, in a car, where memory is short. (It is a fair count only for *prediction*. In training all maps are kept anyway, for the backward pass. And PyTorch writes the position down as
# a whole number of 64 bits, so who wants the 2 bits has to pack them.)
#
# ## From points to areas
#
# After unpooling three numbers of four are zero. No label map looks like that. So every unpooling is followed by convolutions, which are learned: they spread the points
# into areas.
#
# **Before you run the cell:** one 3x3 convolution after one unpooling. Which share of the map will still be zero?

# %%
torch.manual_seed(0)
once, where = pool(edges)
sparse = unpool(once, where, edges.shape[2:])
blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).view(1, 1, 3, 3) / 4
dense = F.conv2d(sparse, blur, padding=1)
zeros = [float((map_ == 0).float().mean()) for map_ in (sparse, dense)]
row(sparse[0], dense[0], titles=[f"unpooled: {zeros[0]:.0%} zeros", f"and convolved: {zeros[1]:.0%}"], height=2.9)

assert abs(zeros[0] - 0.75) < 0.01 and zeros[1] < 0.05

# %% [markdown]
# SegNet calls these layers convolutions. DeconvNet calls them **deconvolutions**: they are [transposed convolutions](03_upsampling.ipynb) with a stride of 1. Is there a difference?
#
# At stride 1 a transposed convolution does not enlarge. It is a convolution whose kernel is turned by 180 degrees, with inputs and outputs swapped. As the weights are
# learned, both can learn the same.

# %%
deconvolution = nn.ConvTranspose2d(3, 5, kernel_size=3, padding=1)
turned = deconvolution.weight.flip(2, 3).transpose(0, 1)
some = torch.randn(1, 3, 8, 9)
assert torch.allclose(deconvolution(some), F.conv2d(some, turned, deconvolution.bias, padding=1), atol=1e-5)

strides = {layer.stride for layer in networks["DeconvNet"].decoder.modules() if isinstance(layer, nn.ConvTranspose2d)}
assert strides == {(1, 1)}  # in DeconvNet's decoder, unpooling alone enlarges

# %% [markdown]
# ## 29 million and 252 million
#
# SegNet and DeconvNet share the encoder and the unpooling, and one has more than eight times as many parameters.
#
# **Before you run the cell:** which two layers make the difference? (Fig. 2 of DeconvNet, in the middle.)

# %%
parts = {}
for name in ("SegNet", "DeconvNet"):
    for part, module in networks[name].named_children():
        parts[f"{name}: {part}"] = sum(p.numel() for p in module.parameters())
parts = {name: count for name, count in parts.items() if count > 1e5}
plt.figure(figsize=(5.5, 2.2))
plt.barh([*parts][::-1], [count / 1e6 for count in parts.values()][::-1])
plt.xlabel("million parameters")

total = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
fc6, mirror = parts["DeconvNet: fc6"], parts["DeconvNet: fc6_deconv"]
assert total["SegNet"] == 29_449_355 and total["DeconvNet"] == 251_805_653
assert fc6 == 512 * 7 * 7 * 4096 + 4096  # every channel and place of 7 x 7, to 4,096 numbers
assert (fc6 + mirror) / total["DeconvNet"] > 0.8

# %% [markdown]
# fc6 looks at a window of 7 x 7 places at once, and its mirror paints one: four fifths of all weights for two layers. SegNet leaves the fully connected layers out (Sec. 3).
#
# ## What is the note worth?
#
# What the encoder tells the decoder about places is called a **prior**: something known before the decoder begins. We train three networks that differ in that alone, on pieces of brain slices,
# for a few seconds each. All three are narrow U-Nets with three poolings.
#
# - *nothing*: no skips; on the way up, each pixel is doubled;
# - *positions*: no skips; values are unpooled to where the maxima were, as in SegNet;
# - *whole maps*: skips, as in U-Net.
#
# The first two have exactly as many weights.
#
# **Before you run the cell:** in which order will they come in? And what will *nothing* do to the folds?

# %%
data = BrainDataModule(scale=0.5)
x, y = (torch.stack(pair) for pair in zip(*data.dataset("train"), strict=True))
x_test, y_test = (torch.stack(pair) for pair in zip(*data.dataset("test"), strict=True))
x, x_test = ((images - x.mean()) / x.std() for images in (x, x_test))
priors = {
    "nothing": {"skips": "none", "upsample": "nearest"},
    "positions": {"skips": "none", "upsample": "unpool"},
    "whole maps": {"skips": "concat", "upsample": "nearest"},
}


def train(prior, seed=0, steps=64):
    torch.manual_seed(seed)
    network = UNet(4, 1, width=8, depth=3, norm="batch", **prior)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for _ in range(steps):
        batch, top, left = torch.randint(len(x), (4,)), int(torch.randint(53, ())), int(torch.randint(35, ()))
        images, truth = (crop(whole[batch], 64, 64, top=top, left=left) for whole in (x, y))
        loss = F.cross_entropy(network(images), truth, weight=torch.tensor([0.5, 3, 1, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


trained = {name: train(prior) for name, prior in priors.items()}
with torch.no_grad():
    said = {name: network(x_test).argmax(1) for name, network in trained.items()}
miou = {n: float(scores(confusion_matrix(p, y_test, 4, 255).sum(0).numpy())["miou"]) for n, p in said.items()}
outlines = {name: float(boundary_f1(p, y_test, 4, 255).nanmean()) for name, p in said.items()}
row(coloured(y_test[12], data.palette), *(coloured(p[12], data.palette) for p in said.values()), height=2.4,
    titles=["truth", *(f"{name}: mIoU {miou[name]:.0%}" for name in said)])  # fmt: skip
print({name: f"boundary F1 {f1:.0%}" for name, f1 in outlines.items()})

sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in trained.items()}
assert sizes["nothing"] == sizes["positions"]
assert outlines["nothing"] + 0.05 < outlines["positions"] < outlines["whole maps"]
assert miou["nothing"] < miou["whole maps"] - 0.1

# %% [markdown]
# One seed and a few seconds: a *demonstration*, not evidence. [The ablation](../experiments/results/ablate_decoder.md) trains the eight decoders of SegNet's Table 1, with five seeds each. Against a decoder that is given the
# positions, one that only resizes lies 19.8 points of mIoU lower on the brain (95 % interval 17.3 to 22.2), and one that also gets the pooled maps 9.4 points higher (6.9 to 11.8). Read there, too, what such intervals cannot say.
#
# So: nothing < where the maxima were < whole maps. And the memory for them grows in the same order.
#
# ## Exercises
#
# **a.** The first map of SegNet's encoder has 64 channels and, for a street scene, 360 x 480 pixels. It is pooled by 2x2. How many *bytes* do the positions of its maxima take, at 2 bits each?

# %%
answer = None
check("encoder_decoders.a", answer)

# %% [markdown]
# **b.** You replace the 7x7 kernels of DeconvNet's fc6 and of its mirror by 1x1 kernels. How many parameters has the network then?

# %%
answer = None
check("encoder_decoders.b", answer)

# %% [markdown]
# **c.** Two bits are enough. Write a function `put_back(maxima, code)`: both are maps (h, w); `code` says which pixel of its 2x2 window held the maximum (0 upper left, 1 upper right, 2 lower left,
# 3 lower right). Return the unpooled map (2h, 2w).


# %%
def put_back(maxima, code):
    return None


tried = put_back(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long))
check("encoder_decoders.c", put_back)

# %% [markdown]
# **Next:** or do not lose the place to begin with: [dilated convolution](08_dilated_convolution.ipynb).
#
# **Read on:** [Badrinarayanan, Kendall, Cipolla 2015](https://arxiv.org/abs/1511.00561), Sec. 3.1 and Table 1: which decoder for which memory.
# [Noh, Hong, Han 2015](https://arxiv.org/abs/1505.04366), Fig. 4, shows what each layer of the decoder paints. All of Table 1 is in
# [`SegNetBasic`](../lightning_modules/segnet.py#L136).
