# %% [markdown]
# # 8. Dilated convolution: see far and stay fine
#
# A network needs a large receptive field, to know what it looks at, and a fine map, to know where.
# Strides buy the first with the second ([notebook 2](02_coarse_score_maps.ipynb)). **Dilated convolution** gives both, and is paid in work.
# The French name of the idea is *à trous*, with holes; DeepLab calls it **atrous** convolution. It is the same thing.

# %%
import torch
import torch.nn.functional as F
from exercises import check
from pictures import numbers, row
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.analysis.receptive_field import receptive_field
from lightning_modules.components.encoders import build_encoder

torch.manual_seed(0)

# %% [markdown]
# ## A kernel with holes
#
# The **rate** (or dilation factor) r says how far apart the weights of a kernel stand. At rate 1 they are neighbours, as always. At rate 2
# one pixel is left out between them.
#
# **Before you run the cell:** a 3 x 3 kernel at rate 4 covers how many pixels from one end to the other? How many weights does it have?


# %%
def inflated(weights, rate):
    """The kernel (k, k) with rate - 1 zeros between its weights."""
    size = rate * (len(weights) - 1) + 1
    large = torch.zeros(size, size)
    large[::rate, ::rate] = weights
    return large


weights = torch.arange(1.0, 10).view(3, 3)
numbers(*[inflated(weights, rate) for rate in (1, 2, 4)], titles=["rate 1", "rate 2", "rate 4"], cell=0.36)

image = torch.randn(1, 1, 20, 20)
for rate in (1, 2, 4):
    dilated = F.conv2d(image, weights[None, None], dilation=rate)
    full = F.conv2d(image, inflated(weights, rate)[None, None])
    assert torch.allclose(dilated, full, atol=1e-4)  # the same numbers, without the products with zero
    assert int((inflated(weights, rate) != 0).sum()) == 9
assert len(inflated(weights, 4)) == 9

# %% [markdown]
# Rate 4 covers 9 pixels with the nine weights of a 3 x 3 kernel. In general a kernel of k covers k + (k - 1)(r - 1).
#
# ## 3, 7, 15, 31
#
# Put four such layers behind each other and double the rate each time: 1, 2, 4, 8.
#
# **Before you run the cell:** how many pixels does one output see, after each layer? And with four ordinary layers?


# %%
def tower(rates):
    """Convolutions of 3 x 3, one channel, that keep the size; their weights are ones."""
    layers = [torch.nn.Conv2d(1, 1, 3, padding=rate, dilation=rate, bias=False) for rate in rates]
    for layer in layers:
        torch.nn.init.ones_(layer.weight)
    return torch.nn.Sequential(*layers)


def paths(network, size=41):
    """In how many ways each pixel reaches the output in the middle; 0 where it does not."""
    image = torch.zeros(1, 1, size, size, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, 0, size // 2, size // 2], image)
    return gradient[0, 0]


fields = [receptive_field(tower([1, 2, 4, 8][:n]), 1).size[0] for n in (1, 2, 3, 4)]
ordinary = [receptive_field(tower([1] * n), 1).size[0] for n in (1, 2, 3, 4)]
print("rates 1, 2, 4, 8:", fields, "   rates 1, 1, 1, 1:", ordinary)
row(
    *[(paths(tower([1, 2, 4, 8][:n])) > 0).float() for n in (1, 2, 3, 4)],
    titles=[f"after {n}: {field} x {field}" for n, field in enumerate(fields, 1)],
    height=2.2,
)

assert fields == [3, 7, 15, 31]
assert ordinary == [3, 5, 7, 9]
assert sum(p.numel() for p in tower([1, 2, 4, 8]).parameters()) == 4 * 9
for n, field in enumerate(fields, 1):  # the gradient agrees with the arithmetic
    assert int((paths(tower([1, 2, 4, 8][:n])).sum(0) > 0).sum()) == field

# %% [markdown]
# Each layer doubles the field and costs nine weights: the field grows **exponentially**, the cost **linearly**
# ([Yu, Koltun 2016](https://arxiv.org/abs/1511.07122), Sec. 2). One ordinary kernel as large as that would have 31 x 31 = 961 weights. And the
# map has kept every pixel: nothing was strided.
#
# ## The trap: a grid
#
# It is tempting to take rate 2 three times.
#
# **Before you run the cell:** the field of rates 2, 2, 2 is 13 pixels wide. Does the output see every pixel in it?

# %%
with_holes, without = paths(tower([2, 2, 2]), 19), paths(tower([1, 2, 5]), 19)
row(with_holes, without, titles=["rates 2, 2, 2", "rates 1, 2, 5"], cmap="viridis", height=3)


def seen(ways):
    """The share of the pixels of the field that reach the output."""
    inside = ways[ways.sum(1) > 0][:, ways.sum(0) > 0]
    rows, columns = (ways.sum(1) > 0).nonzero(), (ways.sum(0) > 0).nonzero()
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    return float((inside > 0).sum() / area)


print(f"seen of the field: {seen(with_holes):.0%} and {seen(without):.0%}")
assert receptive_field(tower([2, 2, 2]), 1).size == (13, 13)
assert receptive_field(tower([1, 2, 5]), 1).size == (17, 17)
assert int((with_holes > 0).sum()) == 49 and 13 * 13 == 169
assert seen(without) == 1

# %% [markdown]
# (The brighter a pixel, the more ways lead from it to the output.) With 2, 2, 2 all steps are even. An output sees only pixels an even number of rows and columns away: a **grid**, 49 pixels of 169.
# Its neighbour sees another grid, and the two know nothing of each other, so neighbouring labels can disagree. Rates without a common
# divisor, such as 1, 2, 5, leave no hole ([Wang et al. 2018](https://arxiv.org/abs/1702.08502), Sec. 3.2 call it hybrid dilated convolution).
#
# ## From a strided network to a dense one
#
# Here is what DeepLab made of it. Take a trained network. Remove a stride of 2, so that the map stays fine. The layers behind it now
# meet a map twice as large, and their kernels would look at half of what they were trained for. Give them rate 2, and they look at the
# old places again.
#
# **Before you run the cell:** the dense network gives four times as many outputs. What do you expect of every second one?

# %%
first, second = torch.randn(4, 1, 3, 3), torch.randn(2, 4, 3, 3)
image = torch.randn(1, 1, 33, 33)
strided = F.conv2d(F.conv2d(image, first, stride=2), second)
dense = F.conv2d(F.conv2d(image, first), second, dilation=2)
row(
    strided[0, 0],
    dense[0, 0],
    dense[0, 0, ::2, ::2],
    titles=["stride 2", "rate 2 instead", "every second of it"],
    cmap="viridis",
)

assert torch.allclose(dense[..., ::2, ::2], strided, atol=1e-4)

# %% [markdown]
# They are the old outputs. The others lie between them: no weight was changed or added, and the network
# answers at four times as many places.
#
# ## Output stride
#
# The **output stride** is the step in pixels from one place of the deepest map to the next. A ResNet has 32; with the last one or two strides replaced by
# rates it has 16 or 8. The weights are the same in number and shape, so pretrained ones fit.
#
# **Before you run the cell:** what does the step from 32 to 8 cost in multiply-adds? Remember that the first stages stay as they are.

# %%
costs, maps, shapes = {}, {}, {}
for stride in (32, 16, 8):
    encoder = build_encoder("resnet50", 3, output_stride=stride, width=0.125).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        maps[stride] = encoder(torch.rand(1, 3, 256, 256))[-1]
    costs[stride] = counter.get_total_flops() / 2
    shapes[stride] = [p.shape for p in encoder.parameters()]
    rates = sorted({m.dilation[0] for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)})
    print(
        f"output stride {stride:2}: map {tuple(maps[stride].shape[2:])}, rates {rates}, {costs[stride] / costs[32]:.2f} times the multiply-adds"
    )

row(
    *[maps[s][0].mean(0) for s in (32, 16, 8)],
    titles=[f"output stride {s}" for s in (32, 16, 8)],
    cmap="viridis",
    height=2,
)
assert shapes[32] == shapes[16] == shapes[8]  # the same weights, whatever the stride
assert [maps[s].shape[2] for s in (32, 16, 8)] == [8, 16, 32]
assert costs[32] < costs[16] < costs[8] and costs[8] > 3 * costs[32]

# %% [markdown]
# Four times the work (4.7 times for a ResNet-50 of full width), and no weight. Which output stride is worth it is a question for an experiment:
# `python -m experiments.ablate_output_stride`, and [its report](../experiments/results/ablate_output_stride.md).
#
# ## Exercises
#
# **a.** Rates 1, 2, 4, 8 see 31 pixels. Which one further rate makes it 63?

# %%
answer = None
check("dilation.a", answer)

# %% [markdown]
# **b.** Write `field(rates)`: how many pixels one output sees along a line behind layers of kernel 3 with these rates.


# %%
def field(rates):
    return None


check("dilation.b", field)

# %% [markdown]
# **c.** Which of these leave holes: `(1, 2, 3)`, `(2, 4, 8)`, `(1, 2, 4)`, `(3, 3)`, `(1, 1, 6)`? Write a set of them. (Use `paths`, or think of the
# sums that three steps can make.)

# %%
answer = None
check("dilation.c", answer)

# %% [markdown]
# **Next:** [several rates side by side](09_pyramid_pooling.ipynb).
#
# **Read on:** [Yu, Koltun 2016](https://arxiv.org/abs/1511.07122), Fig. 1 and Sec. 2; [Chen et al. 2018](https://arxiv.org/abs/1606.00915), Sec. 3.1;
# [Wang et al. 2018](https://arxiv.org/abs/1702.08502) on the grid. In the library: [`ResNet`](../lightning_modules/components/encoders/resnet.py#L99), which sets its rates;
# [`receptive_field`](../lightning_modules/analysis/receptive_field.py#L69).
