# %% [markdown]
# # 10. Separable convolution: the same shape for a sixth of the price
#
# A convolution does two things at once. It looks around (along rows and columns), and it mixes channels. A **depthwise separable**
# convolution does one after the other. This notebook counts what that saves, and shows what it gives up.

# %%
import matplotlib.pyplot as plt
import torch
from exercises import check
from pictures import photograph, row
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.components.blocks import separable_conv
from lightning_modules.components.encoders import build_encoder
from lightning_modules.deeplabv3plus import DeepLabV3Plus

torch.manual_seed(0)


def weights_of(module):
    """The weights of its convolutions, biases and norms left out."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, torch.nn.Conv2d))


def multiply_adds(module, *size):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.eval()(torch.rand(1, *size))
    return counter.get_total_flops() // 2


# %% [markdown]
# ## 432 against 75
#
# An image of 8 x 8 pixels and 3 channels shall become 16 channels, by kernels of 3 x 3.
#
# - The **full** convolution has for each of the 16 outputs a kernel of 3 x 3 on all 3 channels.
# - The **depthwise** convolution has one kernel of 3 x 3 for each *input* channel, and does not mix them. The **pointwise** convolution behind it is
#   1 x 1, from 3 channels to 16, and does nothing else than mix.
#
# **Before you run the cell:** count the weights of both, on paper.

# %%
full = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
separable = separable_conv(3, 16, 3, norm="none", relu=False)
print(separable)

cat = photograph("chelsea", 100)[None]
with torch.no_grad():
    looked = separable.depthwise(cat)
    mixed = separable.pointwise(looked)
row(
    cat[0],
    *looked[0],
    *mixed[0, :2],
    height=1.5,
    titles=["image", *["depthwise: red", "green", "blue"], "pointwise 0", "pointwise 1"],
)

assert weights_of(full) == 3 * 3 * 3 * 16 == 432
assert weights_of(separable) == 3 * 3 * 3 + 3 * 16 == 27 + 48 == 75
assert full(cat).shape == mixed.shape  # the same shape comes out

# %% [markdown]
# 75 instead of 432: a sixth. (The idea: [Howard et al. 2017](https://arxiv.org/abs/1704.04861), Sec. 3.1, where the letters below come from.)
#
# ## The rule
#
# Let the kernel have the side K, the map the side F, and let M channels become N. A **multiply-add** is one product that is added to a sum.
# Every weight is used once at every place of the map, so
#
# | | weights | multiply-adds |
# |---|---|---|
# | full | K² M N | K² M N F² |
# | depthwise | K² M | K² M F² |
# | pointwise | M N | M N F² |
#
# The share is (K² M + M N) / (K² M N) = **1/N + 1/K²**.
#
# **Before you run the cell:** for 3 x 3 and many channels, towards which share does it go? Which of the two parts does nearly all the work then?

# %%
F_, K, M = 16, 3, 32
counts = [4, 8, 16, 32, 64, 128, 256]
measured, depthwise_part = [], []
for N in counts:
    full = torch.nn.Conv2d(M, N, K, padding=1, bias=False)
    separable = separable_conv(M, N, K, norm="none", relu=False)
    of_full, of_separable = multiply_adds(full, M, F_, F_), multiply_adds(separable, M, F_, F_)
    assert of_full == K**2 * M * N * F_**2  # the formulas, by a counter that knows nothing of them
    assert of_separable == K**2 * M * F_**2 + M * N * F_**2
    assert abs(of_separable / of_full - (1 / N + 1 / K**2)) < 1e-9
    measured.append(of_separable / of_full)
    depthwise_part.append(multiply_adds(separable.depthwise, M, F_, F_) / of_separable)

plt.figure(figsize=(5, 2.4))
plt.semilogx(counts, measured, "o-", base=2, label="separable / full, measured")
plt.semilogx(counts, depthwise_part, "s--", base=2, label="depthwise part of the separable")
plt.axhline(1 / 9, color="gray", linewidth=1)
plt.text(counts[0], 1 / 9 + 0.02, "1/9")
plt.xlabel("output channels N")
plt.legend()

assert 1 / 9 < measured[-1] < 0.12
assert depthwise_part[-1] < 0.05

# %% [markdown]
# It tends to 1/9. With many channels nearly everything is spent on mixing, and looking around is almost free. That is why it pays to
# look around *further* there: a depthwise kernel of 5 x 5 costs little more.
#
# Multiply-adds are not seconds. A depthwise convolution does little with each number that it fetches, so memory can be what it waits
# for. Measure on the machine that you mean.
#
# ## What is given up
#
# Everything has its price. Written as a full convolution, a separable one has for input channel m and output channel n the kernel
# `pointwise[n, m] * depthwise[m]`. For one input channel, all N kernels are multiples of *one* pattern.
#
# **Before you run the cell:** put the 16 kernels that look at the red channel into a matrix of 16 x 9. What is its rank?

# %%
full, separable = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False), separable_conv(3, 16, 3, norm="none", relu=False)
with torch.no_grad():
    depthwise, pointwise = separable.depthwise.weight[:, 0], separable.pointwise.weight[:, :, 0, 0]
    as_full = pointwise[:, :, None, None] * depthwise[None]  # (16, 3, 3, 3)
    same = torch.nn.functional.conv2d(cat, as_full, separable.pointwise.bias, padding=1)
    # A bias of the depthwise part adds the same number everywhere.
    same = same + (pointwise @ separable.depthwise.bias)[None, :, None, None]

ranks = [torch.linalg.matrix_rank(kernels[:, 0].flatten(1)).item() for kernels in (full.weight, as_full)]
row(
    *[k for k in full.weight[:4, 0]],
    *[k for k in as_full[:4, 0]],
    height=1.1,
    titles=[*["full"] * 4, *["separable"] * 4],
)
print(f"rank of the kernels for one input channel: full {ranks[0]}, separable {ranks[1]}")

assert torch.allclose(same, separable(cat), atol=1e-5)
assert ranks == [9, 1]

# %% [markdown]
# Rank one: the four pictures on the right are one pattern, lighter, darker or inverted. No output can look at red for a vertical edge
# while another looks at red for a horizontal one. How bad is that? The best separable stand-in for a *random* full convolution can be computed
# (it is the first singular vector), and it loses most of the **power**, the sum of the squared weights:

# %%
lost = []
for m in range(3):
    u, s, v = torch.linalg.svd(full.weight[:, m].detach().flatten(1), full_matrices=False)
    lost.append(1 - s[0] ** 2 / (s**2).sum())
share_lost = torch.stack(lost).mean().item()
print(f"{share_lost:.0%} of the power of the kernels is lost")

assert 0.5 < share_lost < 0.95

# %% [markdown]
# But a network is not a random convolution. It *learns* with the layers that it is given, and can take more channels for the weights it
# saves. Whether it is worse then is an experiment: `python -m experiments.ablate_separable`, and [its report](../experiments/results/ablate_separable.md).
#
# ## In real networks
#
# **Xception** is an encoder built of separable convolutions, **MobileNet** a smaller one. **DeepLab v3+** has them in its pyramid and in its decoder, too.
#
# **Before you run the cell:** ASPP and decoder of DeepLab v3+ with and without: guess the ratio of their weights. And which of four encoders is the largest?

# %%
with torch.device("meta"):  # shapes alone: nothing is allocated
    heads = {}
    for separable_head in (False, True):
        network = DeepLabV3Plus(21, encoder="xception65", separable=separable_head)
        heads[separable_head] = weights_of(network) - weights_of(network.encoder)
    encoders = {
        name: weights_of(build_encoder(name, 3)) for name in ("vgg16", "resnet50", "xception65", "mobilenet_v1")
    }

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2), layout="constrained")
left.barh(["full", "separable"], [heads[False] / 1e6, heads[True] / 1e6])
left.set_title("ASPP and decoder of DeepLab v3+\nmillions of weights")
right.barh(list(encoders), [n / 1e6 for n in encoders.values()])
right.set_title("encoders, millions of weights")
print(f"ASPP and decoder: {heads[True] / heads[False]:.2f} of the weights")

assert heads[True] < 0.45 * heads[False]  # the 1x1 convolutions between them stay as they are
assert encoders["mobilenet_v1"] < encoders["vgg16"] / 4
assert max(encoders, key=encoders.get) == "xception65"

# %% [markdown]
# A fifth. And the largest encoder is Xception: separable does not mean small. It spends what it saves on more layers and more channels. MobileNet keeps the money.
# (VGG16 is counted without its fully connected layers.)
#
# ## Exercises
#
# **a.** A 5 x 5 convolution from 64 channels to 128. How many weights has the separable one? (No bias, no norm.)

# %%
answer = None
check("separable.a", answer)

# %% [markdown]
# **b.** Write `share(k, n)`: multiply-adds of the separable convolution over those of the full one, for a kernel of k x k and n output channels.


# %%
def share(k, n):
    return None


check("separable.b", share)

# %% [markdown]
# **c.** For which of these is the separable form *more* expensive than the full one: a 1 x 1 convolution to 64 channels, a 3 x 3 to one channel, a 3 x 3 to two?
# Write a set of `(k, n)`.

# %%
answer = None
check("separable.c", answer)

# %% [markdown]
# **Next:** [DeepLab v3+, put together from these parts](11_deeplabv3plus.ipynb).
#
# **Read on:** [Howard et al. 2017](https://arxiv.org/abs/1704.04861), Sec. 3.1; [Chollet 2017](https://arxiv.org/abs/1610.02357) (Xception). In the library:
# [`separable_conv`](../lightning_modules/components/blocks.py#L48), [`ASPP`](../lightning_modules/components/pyramid.py#L68).
