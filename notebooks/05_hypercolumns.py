# %% [markdown]
# # 5. Hypercolumns: ask every layer about one pixel
#
# FCN adds the *scores* of three layers ([notebook 4](04_skip_connections.ipynb)). Another group had the same thought that year, and went further: take one pixel, and write down
# what *all* the layers say of it. That stack of numbers is its **hypercolumn** ([Hariharan et al. 2015](https://arxiv.org/abs/1411.5752)).

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from pictures import photograph, row
from scipy import ndimage
from skimage.filters import sobel
from skimage.segmentation import watershed

from lightning_modules.components.boxes import boxes_of_mask, jittered, overlap_of
from lightning_modules.components.encoders import build_encoder
from lightning_modules.hypercolumn import Hypercolumn
from lightning_modules.hypercolumn_boxes import HypercolumnBoxes, HypercolumnBoxesModule

torch.manual_seed(0)

# %% [markdown]
# ## One pixel, all layers
#
# The maps of an encoder have strides 2, 4, 8, 16 and 32. Enlarge them all to the size of the image and lay them on each other; a needle through the stack at one pixel is its hypercolumn.
# The encoder here has learned to classify photographs.
#
# **Before you run the cell:** the maps have 16, 24, 40, 112 and 320 channels. How long is a hypercolumn?

# %%
encoder = build_encoder("tu-tf_efficientnet_lite0", 3, depth=5, weights="package").eval()  # installed with pip
image = photograph("chelsea", 224)[None, :, :, 40:296]
mean, std = (torch.tensor(values)[None, :, None, None] for values in (encoder.mean, encoder.std))
with torch.no_grad():
    maps = encoder((image - mean) / std)[1:]
enlarged = [F.interpolate(m, image.shape[2:], mode="bilinear") for m in maps]
hypercolumns = torch.cat(enlarged, dim=1)  # of all pixels

i, j = 88, 75  # in an eye
axes = row(
    image[0],
    *[m[0, :3].mean(0) for m in enlarged],
    height=1.9,
    titles=["image", *[f"stride {2**k}" for k in range(1, 6)]],
)
for axis in axes:
    axis.plot(j, i, "r+", markersize=10)

column = hypercolumns[0, :, i, j]
print(f"the hypercolumn of the cross: {len(column)} numbers")
assert len(column) == sum(m.shape[1] for m in maps) == 16 + 24 + 40 + 112 + 320
assert torch.equal(column[:16], enlarged[0][0, :, i, j])  # its first part is of the finest map

# %% [markdown]
# ## Which layer knows what?
#
# Compare the cross with every other pixel: how similar are their hypercolumns? Once with the two finest maps alone, once with the two coarsest, once with all.
#
# **Before you run the cell:** which of the three draws the sharpest picture? Which finds the eyes rather than dark pixels anywhere?


# %%
def similar(parts):
    """Cosine between the part of each pixel's hypercolumn and that of the cross; each map counts alike."""
    parts = [F.normalize(p - p.mean((2, 3), keepdim=True), dim=1) for p in parts]
    stack = torch.cat(parts, dim=1)
    return F.cosine_similarity(stack, stack[:, :, i : i + 1, j : j + 1], dim=1)[0]


fine, coarse, every = similar(enlarged[:2]), similar(enlarged[3:]), similar(enlarged)
row(image[0], fine, coarse, every, titles=["image", "finest two", "coarsest two", "all five"], cmap="magma", height=2.4)


def grain(x):
    """How much changes from one pixel to the next."""
    return float(x.diff(dim=0).abs().mean() + x.diff(dim=1).abs().mean())


print(f"grain: fine {grain(fine):.3f}, coarse {grain(coarse):.3f}, all {grain(every):.3f}")
assert grain(fine) > grain(every) > grain(coarse)
near = torch.zeros_like(every, dtype=torch.bool)
near[i - 25 : i + 25, j - 25 : j + 25] = True
assert coarse[near].mean() > 0.5 > fine[near].mean()  # coarse maps know the region, fine ones the single pixel
assert coarse[90:115, 180:205].max() > 2 * coarse.clamp(min=0).mean()  # and they have found the other eye

# %% [markdown]
# The fine maps are sharp and find whatever is bright or dark in the same way. The coarse ones know *what* is there (they find the other eye as well), and are vague about *where*. A hypercolumn
# has both.
#
# ## A classifier of hypercolumns, for the price of three
#
# A linear classifier of 512 numbers at each of 50,000 pixels looks dear: every map has to be enlarged first. But a weighted sum can be split. The weights for the coarse map can be applied *before* it is enlarged,
# when it has a thousandth of the pixels.
#
# **Before you run the cell:** why may the order be swapped?

# %%
network = Hypercolumn(4, encoder_width=0.0625, levels=(2, 3, 5)).eval()
for classifier in network.classifiers:
    torch.nn.init.normal_(classifier.weight)
with torch.no_grad():
    fast = network(image)  # classify each map, enlarge the scores, add them up
    of_network = [network.encoder(image)[level] for level in network.levels]
    finest = of_network[0].shape[2:]
    stack = torch.cat([F.interpolate(m, finest, mode="bilinear") for m in of_network], dim=1)
    weight = torch.cat([classifier.weight for classifier in network.classifiers], dim=1)
    bias = sum(classifier.bias for classifier in network.classifiers)
    slow = F.interpolate(F.conv2d(stack, weight, bias), image.shape[2:], mode="bilinear")  # stack, then classify
row(fast[0, 0], slow[0, 0], titles=["classify, then enlarge", "enlarge, then classify"], height=2)

assert torch.allclose(fast, slow, rtol=1e-3, atol=1e-3)

# %% [markdown]
# Because both are linear: enlarging mixes places, classifying mixes channels, and neither cares for the other. This is [`Hypercolumn`](../lightning_modules/hypercolumn.py#L27), and very nearly FCN-8s: two roads to one network.
#
# ## The figure in a box
#
# The paper asks for more than a label map. It starts from **boxes**: somebody says "there is a coin in this rectangle", and the network says which of its pixels are the coin. In a box, *place means something*: the middle is mostly
# figure, the corners are mostly ground.
#
# **Before you run the cell:** take the boxes of all 24 coins and average what is in them. What will the mean look like?

# %%
coins = photograph("coins")
markers = (coins[0] > 0.59).int() * 2 + (coins[0] < 0.12).int()
is_coin = ndimage.binary_fill_holes(watershed(sobel(coins[0].numpy()), markers.numpy()) == 2)
truth = torch.from_numpy(ndimage.binary_opening(is_coin, iterations=2)).long()
boxes = boxes_of_mask(truth, ignored=[0], least_pixels=100, most=30)  # left, top, right, bottom, class

inside = [F.interpolate(truth[None, None, t:b, l:r].float(), (50, 50))[0, 0] for l, t, r, b, _ in boxes.tolist()]
average = torch.stack(inside).mean(0)
axes = row(coins, average, titles=[f"{len(boxes)} boxes", "mean of what is in them"], height=2.6)
for left, top, right, bottom, _ in boxes.tolist():
    axes[0].add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="yellow"))

assert len(boxes) == 24
assert average[20:30, 20:30].min() > 0.95 and average[:3, :3].max() < 0.2

# %% [markdown]
# A disc. So one classifier for the whole box would waste what is known. The paper lays a **grid** of 5 x 5 classifiers over the box; between their centres a pixel's answer is the mean of its neighbours' answers, weighed by
# distance. Before it has seen anything else, such a grid can say "disc".
#
# **Before you run the cell:** three of the 25 weight maps are drawn. What do all 25 sum to at each pixel?

# %%
head = HypercolumnBoxes(num_classes=20)
blend = head.blend_weights
row(
    blend[0],
    blend[7],
    blend[12],
    blend.sum(0),
    titles=["classifier 0", "classifier 7", "classifier 12", "sum of all"],
    vmin=0,
    vmax=1,
    height=1.8,
    cmap="viridis",
)

assert blend.shape == (25, 50, 50)
assert torch.allclose(blend.sum(0), torch.ones(50, 50), atol=1e-5)
assert sum(p.numel() for p in head.parameters()) == 3_457_500  # the head of the paper, with 20 categories

# %% [markdown]
# ## Training it, with boxes that are a bit wrong
#
# No program that finds boxes finds them exactly. So the true boxes are moved at random, but not too far: their overlap with the true one (IoU, of rectangles) stays at 0.7 or more.
#
# **Before you run the cell:** a coin fills about three quarters of its box. A lazy answer says "all of the box is coin". Which IoU does it reach, about? And a network that has looked at other coins for some seconds?

# %%
moved = jittered(boxes, 0.7, truth.shape, torch.Generator().manual_seed(1))
assert (overlap_of(moved[:, :4], boxes[:, :4]) >= 0.7).all() and not torch.equal(moved, boxes)

images, masks = coins[None], truth[None]
train, test = slice(0, 256), slice(256, 384)  # columns of the photograph: it has never seen the coins on the right
module = HypercolumnBoxesModule(
    2, 255, in_channels=1, encoder="resnet18", encoder_width=0.25, fc_width=32, grid=5, size=32, background=0, loss="ce"
)
optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
for step in range(40):
    shift = 16 * (step % 4)  # other parts of it
    loss = module.loss(images[..., train][..., shift:], masks[..., train][..., shift:])  # makes and moves the boxes
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

module.eval()
seen = boxes_of_mask(truth[:, test], ignored=[0], least_pixels=100, most=30)
asked = jittered(seen, 0.7, truth[:, test].shape, torch.Generator().manual_seed(2))
with torch.no_grad():
    figure = module(images[..., test], asked[None]).argmax(1)[0]


def in_boxes(answer):
    """Mean IoU of the figures within their boxes."""
    scores = []
    for left, top, right, bottom, _ in asked.tolist():
        a, t = answer[top:bottom, left:right] == 1, truth[:, test][top:bottom, left:right] == 1
        scores.append(float((a & t).sum() / (a | t).sum()))
    return sum(scores) / len(scores)


lazy, learned = in_boxes(torch.ones_like(figure)), in_boxes(figure)
axes = row(coins[..., test], truth[:, test], figure, titles=["moved boxes", "truth", "figures found"], height=2.8)
for left, top, right, bottom, _ in asked.tolist():
    axes[0].add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="yellow"))
print(f"all of the box: {lazy:.2f}; learned: {learned:.2f}")

assert 0.5 < lazy < 0.85
assert learned > lazy + 0.05

# %% [markdown]
# (One photograph, one seed: a demonstration. [`HypercolumnBoxesModule`](../lightning_modules/hypercolumn_boxes.py#L211) was also trained on [street scenes](../experiments/results/architectures.md).)
#
# ## Why this is not end to end
#
# Where do the boxes come from? From *another program*: in the paper, from a detector that was trained before, on its own. Training is **end to end** when the error at the very end moves everything that had a share in it.
#
# **Before you run the cell:** we shift the boxes by half their width, and ask again. What does the network do, and which weight of it could learn to put the box right?

# %%
wrong = asked.clone()
wrong[:, [0, 2]] += (wrong[:, 2:3] - wrong[:, 0:1]) // 2
wrong[:, [0, 2]] = wrong[:, [0, 2]].clamp(max=truth[:, test].shape[1])
wrong = wrong[wrong[:, 2] - wrong[:, 0] > 8]
seen_image = images[..., test].clone().requires_grad_()
logits = module(seen_image, wrong[None])
axes = row(coins[..., test], logits[0].argmax(0), titles=["shifted boxes", "figures found"], height=2.8)
for left, top, right, bottom, _ in wrong.tolist():
    axes[0].add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="red"))

found = logits[0].argmax(0) == 1
outside = torch.ones_like(found)
for left, top, right, bottom, _ in wrong.tolist():
    outside[top:bottom, left:right] = False
assert not found[outside].any()  # beyond the boxes nothing can be found
logits.clamp(min=-19).sum().backward()  # outside of all boxes the scores are -20, a constant
assert seen_image.grad.abs().sum() > 0  # the error reaches the image and every weight on the way
assert not wrong.requires_grad and not wrong.is_floating_point()  # and cannot reach the box: it is four whole numbers

# %% [markdown]
# Half of each coin lies outside of its box and is lost. The gradient of the error arrives at every weight, but the box is input, not output: nothing here could move it. FCN needs no boxes, and that is what its authors meant
# by the first end-to-end network for segmentation. (On the other hand, boxes tell two coins apart. Labels do not.)
#
# ## Exercises
#
# **a.** VGG16, maps conv3_3, conv4_3 and pool5, with 256, 512 and 512 channels: how long is a hypercolumn?

# %%
answer = None
check("hypercolumns.a", answer)

# %% [markdown]
# **b.** A box of 100 x 100 pixels is moved 20 pixels to the right. What is its overlap (IoU) with where it was? To two places.

# %%
answer = None
check("hypercolumns.b", answer)

# %% [markdown]
# **c.** Write `hypercolumn(maps, i, j, size)`: maps are a list of (1, C, h, w), size is (H, W) of the image. It returns the hypercolumn of pixel (i, j), bilinear, as one vector.


# %%
def hypercolumn(maps, i, j, size):
    return None


check("hypercolumns.c", hypercolumn)

# %% [markdown]
# **Next:** [U-Net, which lays whole maps side by side](06_unet.ipynb).
#
# **Read on:** [Hariharan et al. 2015](https://arxiv.org/abs/1411.5752), Sec. 3 and Fig. 3. On images and boxes of your own: [boxes](../docs/data.md). In the library: [`HypercolumnBoxes`](../lightning_modules/hypercolumn_boxes.py#L59),
# [`boxes_of_mask`](../lightning_modules/components/boxes.py#L47).
