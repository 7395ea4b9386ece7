# %% [markdown]
# # 3. Making a small map large
#
# The score map is 32 times too small ([notebook 2](02_coarse_score_maps.ipynb)). To answer for every pixel it has to grow. There are
# three ways, and each is one layer of the library:
#
# - **unpooling** puts each value back where max-pooling had found it, and zeros elsewhere ([notebook 7](07_encoder_decoders.ipynb));
# - **transposed convolution** learns how a value spreads over its surroundings;
# - **resize and convolve** makes the map larger by a fixed rule first, and learns afterwards.
#
# This notebook is about the second and the third, and about a famous ornament: the checkerboard. The part of a network that makes the
# map larger again is its **decoder**.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from pictures import numbers, row

from lightning_modules.components.scores.checkerboard import checkerboard_energy
from lightning_modules.components.upsampling import bilinear_kernel, upsampling
from lightning_modules.unet import UNet

torch.manual_seed(0)

# %% [markdown]
# ## What is transposed? A matrix
#
# A convolution is linear: each output is a weighted sum of inputs. So it is a matrix. Take a line of 7 numbers, a kernel of 3 and a
# stride of 2. Column i of the matrix is what the convolution makes of a line that is 1 at place i and 0 elsewhere.
#
# **Before you run the cell:** how many rows and columns does the matrix have, and how many of its numbers are not zero?

# %%
kernel = torch.tensor([[[1.0, 2.0, 3.0]]])
matrix = torch.cat([F.conv1d(one[None, None], kernel, stride=2)[0] for one in torch.eye(7)]).T
numbers(matrix, matrix.T, titles=["convolution: 7 to 3", "transposed: 3 to 7"])

line, short = torch.randn(7), torch.randn(3)
assert matrix.shape == (3, 7) and int((matrix != 0).sum()) == 9
assert torch.allclose(matrix @ line, F.conv1d(line[None, None], kernel, stride=2)[0, 0], atol=1e-6)
assert torch.allclose(matrix.T @ short, F.conv_transpose1d(short[None, None], kernel, stride=2)[0, 0], atol=1e-6)

# %% [markdown]
# The convolution takes 7 numbers to 3. The same matrix, **transposed**, takes 3 to 7: that is all the name says. The connections are
# the same and so are the weights; only the direction is turned round.
#
# It does *not* undo the convolution. Going there and back changes the line:

# %%
back = matrix.T @ (matrix @ line)
print("line:         ", [round(v, 2) for v in line.tolist()])
print("there and back", [round(v, 2) for v in back.tolist()])

assert not torch.allclose(back, line, atol=0.1)

# %% [markdown]
# ## The backward pass of a convolution
#
# You have run transposed convolutions ever since you trained your first network. In the **backward pass** the gradient comes in at the
# output of a layer and goes out at its input. For the matrix M the forward pass is `M x`, and the gradient goes back through `Mᵀ`.
#
# **Before you run the cell:** a convolution maps 64 x 64 pixels to 31 x 31. Which size does the gradient have that leaves it at the other
# end, and which layer computes it?

# %%
weights = torch.randn(5, 2, 3, 3)  # 2 channels to 5, kernel 3
image = torch.randn(1, 2, 64, 64, requires_grad=True)
small = F.conv2d(image, weights, stride=2)
gradient = torch.randn_like(small)

(of_image,) = torch.autograd.grad(small, image, gradient)
forward = F.conv_transpose2d(gradient, weights, stride=2, output_padding=1)

assert small.shape[2:] == (31, 31) and of_image.shape == image.shape
assert torch.allclose(of_image, forward, atol=1e-4)  # backward of the one is forward of the other

up = torch.randn(1, 5, 31, 31, requires_grad=True)
large = F.conv_transpose2d(up, weights, stride=2, output_padding=1)
(of_up,) = torch.autograd.grad(large, up, image)
assert torch.allclose(of_up, F.conv2d(image, weights, stride=2), atol=1e-4)  # and the other way round

row(of_image[0, 0], forward[0, 0], titles=["gradient at the image", "transposed convolution"], height=2.2)

# %% [markdown]
# Forward and backward are swapped. That is why some call the layer *backwards convolution*; *deconvolution*, which you will read as well,
# promises an inverse and is the wrong word ([Dumoulin, Visin 2016](https://arxiv.org/abs/1603.07285), Ch. 4).
#
# ## An ordinary convolution between zeros
#
# There is a third way to see it. Put zeros between the values, pad, and convolve with the kernel turned by 180 degrees.
#
# **Before you run the cell:** 2 x 2 values, stride 2, kernel 3. How large is the map with its zeros, and how large is the result?

# %%
values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 4
between = torch.zeros(3, 3)
between[::2, ::2] = values  # stride - 1 zeros between neighbours
padded = F.pad(between, (2, 2, 2, 2))  # kernel - 1
by_zeros = F.conv2d(padded[None, None], kernel.flip(0, 1)[None, None])[0, 0]
numbers(values, padded, by_zeros, titles=["values", "with zeros, padded", "convolved"])

transposed = F.conv_transpose2d(values[None, None], kernel[None, None], stride=2)[0, 0]
assert padded.shape == (7, 7) and by_zeros.shape == (5, 5)
assert torch.allclose(by_zeros, transposed)

# %% [markdown]
# Nobody computes it like this, since most products are with zero. But it shows where trouble comes from: the kernel slides over a
# *grid with holes*. At some places it covers four values, at others two or one.
#
# ## The checkerboard, in one dimension
#
# Each value lays the whole kernel down, a stride further on. A weight of the kernel that comes to lie on a place is a **tap**; how many
# taps meet there is the **overlap**. To count them, fill the kernel with ones and give it a line of ones.
#
# **Before you run the cell:** for stride 2, which of the kernels 2, 3, 4 and 5 gives every place the same number?


# %%
def overlap(kernel_size, stride, length=12):
    """How many taps meet in each place of a line, away from its ends."""
    count = F.conv_transpose1d(torch.ones(1, 1, length), torch.ones(1, 1, kernel_size), stride=stride)[0, 0]
    return count[kernel_size:-kernel_size].int()


figure, axes = plt.subplots(1, 4, figsize=(10, 1.6), layout="constrained", sharey=True)
for axis, size in zip(axes, (2, 3, 4, 5), strict=True):
    count = overlap(size, 2)[:12]
    axis.bar(range(len(count)), count)
    axis.set_title(f"kernel {size}, stride 2")

for size in range(1, 9):
    for stride in range(1, 5):
        if stride <= size:
            assert (len(overlap(size, stride).unique()) == 1) == (size % stride == 0)

# %% [markdown]
# The rule: the overlap is even **exactly where the stride divides the kernel**. Where it does not, some places add up more than
# others, whatever the weights.
#
# ## In two dimensions
#
# An image has two directions, and the counts multiply. The library's layers carry their kernel in the name: `transposed-3` is a
# transposed convolution of kernel 3. All double the map. `nearest` resizes, and an ordinary 3x3 convolution follows.
#
# **Before you run the cell:** kernel 3 and stride 2 gave 1 and 2 along a line. Which numbers appear in the plane?


# %%
def taps(kind):
    """How many products meet in each pixel behind one of the library's layers."""
    layer = upsampling(kind, 1, 1)
    for name, parameter in layer.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    with torch.no_grad():
        return layer(torch.ones(1, 1, 8, 8))[0, 0, 2:-2, 2:-2]  # away from the border


kinds = ("transposed-2", "transposed-3", "transposed-4", "nearest")
counts = {kind: taps(kind) for kind in kinds}
titles = [f"{kind}: {sorted({int(n) for n in count.unique()})}" for kind, count in counts.items()]
row(*counts.values(), titles=titles, height=2.2, vmin=0, vmax=9, cmap="viridis")

assert set(counts["transposed-2"].unique().tolist()) == {1}
assert set(counts["transposed-3"].unique().tolist()) == {1, 2, 4}
assert set(counts["transposed-4"].unique().tolist()) == {4}
assert set(counts["nearest"].unique().tolist()) == {9}
assert torch.equal(counts["transposed-3"], torch.outer(*[counts["transposed-3"].amax(d) for d in (1, 0)]) / 4)

# %% [markdown]
# 1, 2 and 4: a checkerboard, drawn by arithmetic alone ([Odena et al. 2016](https://doi.org/10.23915/distill.00003)).
# The last line of the cell says that the plane is the product of two lines.
#
# ## Layer upon layer
#
# A decoder has several such layers in a row. The next one does not even out the pattern of the one before; it lays its own over it, twice
# as fine.
#
# **Before you run the cell:** one layer has its largest count 4 times above its smallest. And three?


# %%
def stacked(kind, layers):
    """The taps behind several layers of ones, as a multiple of their smallest number, away from the border."""
    x = torch.ones(1, 1, 12, 12)
    for _ in range(layers):
        layer = upsampling(kind, 1, 1)
        for name, parameter in layer.named_parameters():
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        with torch.no_grad():
            x = layer(x)
    middle = x[0, 0, x.shape[2] // 3 : -x.shape[2] // 3, x.shape[3] // 3 : -x.shape[3] // 3]
    return middle / middle.min()


towers = [stacked("transposed-3", layers) for layers in (1, 2, 3)]
row(*towers, titles=[f"layers: {n}, up to {t.max():.3g} times" for n, t in enumerate(towers, 1)], cmap="viridis")

ratios = [tower.max().item() for tower in towers]
assert ratios == [2 * 2, 3 * 3, 5 * 5]
assert all(stacked(kind, 3).max() == 1 for kind in ("transposed-2", "transposed-4", "nearest"))

# %% [markdown]
# 25 times: less than 4 x 4 x 4, for sums of neighbours even a little out, and far more than one layer. An even layer stays even.
#
# ## Is an even overlap enough?
#
# `transposed-2`, the up-convolution of U-Net, overlaps nowhere: 2 divides 2. But each of the four pixels of a 2 x 2 block comes from
# **weights of its own**. Before training these are four unrelated random numbers. (`subpixel` has separate weights, too: a convolution
# computes the four pixels as four channels and lays them out as a square. But [`icnr_`](../lightning_modules/components/upsampling.py#L83) makes its weights start equal.)
#
# **Before you run the cell:** which of these untrained decoders will draw a grid?


# %%
def smooth_image(size=96):
    line = torch.linspace(0, 3.14, size)
    return (torch.sin(line)[:, None] * torch.sin(2 * line)[None, :])[None, None]


def initial_logits(kind, seed=0):
    torch.manual_seed(seed)
    network = UNet(2, 1, width=8, depth=3, upsample=kind, skips="none").eval()
    with torch.no_grad():
        return network(smooth_image())


kinds = ("transposed-2", "transposed-3", "nearest", "bilinear", "subpixel")
logits = {kind: initial_logits(kind) for kind in kinds}
row(
    *[of_kind[0, 0, 30:62, 30:62] for of_kind in logits.values()],
    titles=[f"{kind}\nenergy {checkerboard_energy(of_kind).item():.0e}" for kind, of_kind in logits.items()],
    height=2,
)

energy = {k: [checkerboard_energy(initial_logits(k, seed)).item() for seed in range(5)] for k in kinds}
assert min(energy["transposed-3"]) > 10 * max(energy["nearest"] + energy["bilinear"])
assert min(energy["transposed-2"]) > 10 * max(energy["nearest"] + energy["bilinear"])  # even is not enough
assert sum(energy["subpixel"]) < 0.05 * sum(energy["transposed-2"])  # its four phases start equal

# %% [markdown]
# Both transposed ones. The **checkerboard energy** ([`checkerboard_energy`](../lightning_modules/components/scores/checkerboard.py#L9)) says how much of the variation of the logits is a pattern that
# repeats with the grid: 0 is none, 1 is all. Even overlap removes the pattern that comes whatever the weights are. It does not remove the
# one that separate weights draw.
#
# ## First resize, then convolve
#
# So do the two things one after the other: enlarge by a fixed rule, then let a convolution learn. All its pixels are treated alike.
# Three rules are common. Here they are on four numbers.
#
# **Before you run the cell:** what stands in the middle of the 4 x 4, for each rule? And can a result be larger than 4, the largest number?

# %%
four = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def resized(mode):
    options = {} if mode == "nearest-exact" else {"align_corners": False}
    return F.interpolate(four[None, None], scale_factor=2, mode=mode, **options)[0, 0]


nearest, bilinear, bicubic = resized("nearest-exact"), resized("bilinear"), resized("bicubic")
numbers(four, nearest, bilinear, bicubic, titles=["2 x 2", "nearest", "bilinear", "bicubic"], cell=0.55)

assert nearest.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
assert bilinear.min() == 1 and bilinear.max() == 4  # a mean is never outside of what it is the mean of
assert bicubic.min() < 1 and bicubic.max() > 4  # a cubic overshoots

# %% [markdown]
# **Nearest** repeats the nearest value. **Bilinear** is the weighted mean of the four nearest, once along each row and then along the
# column between the two. **Bicubic** lays a curve of third degree through four neighbours in each direction; it is smoother and can overshoot.
#
# Bilinear by hand, for row 1 and column 1 of the large map. Pixel 1 has its centre at 1.5; on the scale of the small map that is 0.75. There
# pixel 0 has its centre at 0.5 and pixel 1 at 1.5. So we stand a quarter of the way from value 0 to value 1.

# %%
t = (1 + 0.5) / 2 - (0 + 0.5)
upper = (1 - t) * four[0, 0] + t * four[0, 1]  # along the upper row
lower = (1 - t) * four[1, 0] + t * four[1, 1]  # along the lower row
between_them = (1 - t) * upper + t * lower  # down the column
print(f"t = {t}: upper {upper}, lower {lower}, the pixel {between_them}")

assert t == 0.25 and between_them == bilinear[1, 1] == 1.75

# %% [markdown]
# Bilinear resizing *is* a transposed convolution whose weights nobody has to learn: a small pyramid as the kernel. FCN starts its
# upsampling from it (Sec. 3.3), with stride 2 and kernel 4, which 2 divides.
#
# **Before you run the cell:** where will the two differ?

# %%
picture = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
pyramid = bilinear_kernel(1, stride=2)
as_layer = F.conv_transpose2d(picture, pyramid, stride=2, padding=1)
as_resize = F.interpolate(picture, scale_factor=2, mode="bilinear", align_corners=False)
row(pyramid[0, 0], as_layer[0, 0], as_resize[0, 0], (as_layer - as_resize)[0, 0].abs(), height=2, cmap="viridis",
    titles=["kernel", "transposed conv.", "bilinear", "difference"])  # fmt: skip

assert torch.allclose(as_layer[..., 1:-1, 1:-1], as_resize[..., 1:-1, 1:-1], atol=1e-6)
assert not torch.allclose(as_layer, as_resize, atol=1e-2)  # at the border: beyond it one sees zeros, one the edge again

# %% [markdown]
# ## Does training remove the grid?
#
# That is a question for an experiment, not for arithmetic: `python -m experiments.ablate_upsampling` trains U-Nets with each of these layers, and
# [its report](../experiments/results/ablate_upsampling.md) says what came out, with intervals.
#
# ## Exercises
#
# **a.** Kernel 5, stride 2: how many taps meet in a place of a line? And of the plane? Write the numbers that occur as two sets.

# %%
along_a_line, in_the_plane = None, None
check("upsampling.a", None if along_a_line is None else (along_a_line, in_the_plane))

# %% [markdown]
# **b.** A layer shall enlarge by 4 (stride 4). Which kernels from 4 to 12 have an even overlap? Write a set.

# %%
answer = None
check("upsampling.b", answer)

# %% [markdown]
# **c.** Write `with_zeros(x, stride)`: a map (H, W) with stride - 1 zeros between neighbours.


# %%
def with_zeros(x, stride):
    return None


check("upsampling.c", with_zeros)

# %% [markdown]
# **d.** A row of two pixels, 0 and 8, is resized bilinearly to four. Which four numbers come out? Write a list.

# %%
answer = None
check("upsampling.d", answer)

# %% [markdown]
# **Next:** [what shallow layers know and deep ones have forgotten](04_skip_connections.ipynb).
#
# **Read on:** [Odena, Dumoulin, Olah 2016](https://doi.org/10.23915/distill.00003) on the checkerboard, with figures to play with;
# [Dumoulin, Visin 2016](https://arxiv.org/abs/1603.07285) on the arithmetic. The layers:
# [`transposed_3`](../lightning_modules/components/upsampling.py#L30), [`nearest`](../lightning_modules/components/upsampling.py#L47), [`bilinear_kernel`](../lightning_modules/components/upsampling.py#L148).
