# %% [markdown]
# # 11. DeepLab v3+, put together
#
# You have all the parts: dilation that keeps the map fine ([8](08_dilated_convolution.ipynb)), a pyramid that sees at several distances ([9](09_pyramid_pooling.ipynb)), convolutions at a
# sixth of the price ([10](10_separable_convolution.ipynb)), and skips that bring back the border ([4](04_skip_connections.ipynb), [6](06_unet.ipynb)).
# **DeepLab v3+** is these four ([Chen et al. 2018](https://arxiv.org/abs/1802.02611), Fig. 2). Here we build it by hand, and compare bit for bit.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from pictures import coloured, photograph, row

from datamodules.brain import BrainDataModule
from lightning_modules.components.blocks import resize
from lightning_modules.components.scores.boundary import boundary_f1
from lightning_modules.deeplabv3plus import DeepLabV3Plus
from lightning_modules.papers import PAPERS

torch.manual_seed(0)

# %% [markdown]
# ## Three parts
#
# - The **encoder** goes down to output stride 16, with dilation in its last stage. In the paper it is Xception: separable convolutions throughout.
# - **ASPP** looks around at three rates and over the whole image. Its 3 x 3 convolutions are separable *and* atrous: that is all the S in ASSPP says.
# - The **decoder** enlarges by 4, lays a fine map of the encoder beside it, and refines with two separable convolutions.
#
# **Before you run the cell:** which part has most of the 41 million parameters?

# %%
with torch.device("meta"):  # shapes alone
    full = DeepLabV3Plus(21, encoder="xception65")
parts = {
    "encoder": full.encoder,
    "ASPP": full.aspp,
    "decoder": torch.nn.ModuleList([full.low_level, full.decoder]),
    "classifier": full.head,
}
counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
plt.figure(figsize=(5, 1.5))
plt.barh(list(counts), [n / 1e6 for n in counts.values()])
plt.xlabel("millions of parameters")
print({name: f"{n:,}" for name, n in counts.items()})

assert (
    sum(counts.values())
    == sum(p.numel() for p in full.parameters())
    == PAPERS["deeplabv3plus"].parameters
    == 41_049_269
)
assert counts["encoder"] > 0.9 * sum(counts.values())

# %% [markdown]
# ## By hand
#
# Now a narrow one, with random weights, on a photograph of 257 x 385 pixels.
#
# **Before you run the cell:** what are the sizes of the deepest map (stride 16) and of the fine map (stride 4)?

# %%
network = DeepLabV3Plus(5, encoder="xception65", encoder_width=0.125, decoder_width=32, low_level_width=12).eval()
image = resize(photograph("coffee")[None], (257, 385))

with torch.no_grad():
    maps = network.encoder(image)
    deep, fine = maps[-1], maps[2]
    context = network.aspp(deep)  # rates 6, 12, 18 and the whole image
    beside = network.low_level(fine)  # 1 x 1, to few channels
    joined = torch.cat([beside, resize(context, fine.shape[-2:])], dim=1)  # the skip
    refined = network.decoder(joined)
    logits = network.head(refined)
    scores = resize(logits, image.shape[-2:])  # four times bilinear, nothing learned
    at_once = network(image)

for name, x in {
    "fine": fine,
    "deep": deep,
    "context": context,
    "joined": joined,
    "refined": refined,
    "scores": scores,
}.items():
    print(f"{name:8} {x.shape[1]:4} channels, {x.shape[2]:3} x {x.shape[3]}")
row(image[0], fine[0].mean(0), deep[0].mean(0), context[0].mean(0), refined[0].mean(0), height=1.6,
    titles=["image", "fine, stride 4", "deep, stride 16", "behind ASPP", "behind the decoder"])  # fmt: skip

assert torch.equal(scores, at_once)  # bit for bit
assert deep.shape[2:] == (17, 25) and fine.shape[2:] == (65, 97)
assert joined.shape[1] == 12 + 32

# %% [markdown]
# Why reduce the fine map to few channels (48 in the paper, Table 1)? Beside 256 channels that know *what*, hundreds that know *where* would outvote them.
#
# Sizes of 16 n + 1 are no accident: then the maps of all strides have a pixel at both ends, and nothing is cut.
#
# ## What the decoder is for
#
# DeepLab v3 has none: it classifies behind ASPP and enlarges 16 times. The decoder of v3+ is a U-Net of a single step.
#
# **Before you run the cell:** both are trained for some seconds on slices of a brain. Which pixels will differ?

# %%
data = BrainDataModule(scale=0.5)
train, test = data.dataset("train"), data.dataset("test")
images, masks = (torch.stack(x) for x in zip(*[train[i] for i in range(0, len(train), 3)], strict=True))
test_images, test_masks = (torch.stack(x) for x in zip(*[test[i] for i in range(0, len(test), 2)], strict=True))


def trained(decoder, seed=0, steps=70):
    torch.manual_seed(seed)
    network = DeepLabV3Plus(
        4,
        1,
        encoder="resnet18",
        encoder_width=0.25,
        decoder_width=32,
        low_level_width=12,
        decoder=decoder,
        batch_norm_decay=0.9,
    )
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(images), (6,), generator=generator)
        loss = F.cross_entropy(network(images[batch]), masks[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return network.eval()(test_images).argmax(1)


labels = {name: trained(decoder) for name, decoder in (("without", False), ("with decoder", True))}
border = {name: float(boundary_f1(found, test_masks, 4, 255).mean()) for name, found in labels.items()}
row(test_images[2], coloured(test_masks[2], data.palette), *[coloured(found[2], data.palette) for found in labels.values()],
    titles=["image", "truth", *[f"{name}: F1 {border[name]:.0%}" for name in labels]], height=2.4)  # fmt: skip

assert border["with decoder"] > border["without"] + 0.05

# %% [markdown]
# Those at borders, and whatever is thin. The number is the boundary F1: how much of the borders lies within a pixel or so of the true ones
# ([`boundary_f1`](../lightning_modules/components/scores/boundary.py#L12)). Without a decoder a label can hardly be thinner than the 16 pixels of a step. This is one seed and a toy: a demonstration, not evidence. With seeds and intervals:
# `python -m experiments.ablate_decoder` ([report](../experiments/results/ablate_decoder.md)) and `python -m experiments.ablate_separable` ([report](../experiments/results/ablate_separable.md)).
#
# ## The family
#
# **Before you run the cell:** which of the ideas do all four have?

# %%
family = {
    "v1, 2015": {"dilation", "CRF"},
    "v2, 2016": {"dilation", "CRF", "ASPP"},
    "v3, 2017": {"dilation", "ASPP", "image pooling"},
    "v3+, 2018": {"dilation", "ASPP", "image pooling", "separable", "decoder"},
}
ideas = ["dilation", "CRF", "ASPP", "image pooling", "separable", "decoder"]
plt.figure(figsize=(6, 2.4))
has_it = [[idea in has for idea in ideas] for has in family.values()]
plt.pcolormesh(ideas, list(family), has_it, cmap="Greens", vmax=1.5, edgecolors="white", linewidth=2)
plt.gca().invert_yaxis()
plt.xticks(rotation=20, ha="right")

with torch.device("meta"):
    from lightning_modules.deeplabv1 import DeepLabV1
    from lightning_modules.deeplabv3 import DeepLabV3

    rates = {
        "v1": max(m.dilation[0] for m in DeepLabV1(21).modules() if isinstance(m, torch.nn.Conv2d)),
        "v3": max(m.dilation[0] for m in DeepLabV3(21).modules() if isinstance(m, torch.nn.Conv2d)),
        "v3+": max(m.dilation[0] for m in full.modules() if isinstance(m, torch.nn.Conv2d)),
    }
print("largest rate:", rates)
assert all("dilation" in has for has in family.values()) and min(rates.values()) >= 12
grouped = [m.groups > 1 for m in full.aspp.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
assert len(grouped) == 3 and all(grouped)  # the 3x3 convolutions of ASPP are depthwise

# %% [markdown]
# Dilation alone. The CRF came and went: with a decoder, the network draws its own borders.
#
# ## Exercises
#
# **a.** The image has 513 x 513 pixels. What is the side of the deepest map, and of the fine one? Write (deep, fine).

# %%
answer = None
check("deeplabv3plus.a", answer)

# %% [markdown]
# **b.** In the paper's network, how many channels does the first convolution of the decoder see?

# %%
answer = None
check("deeplabv3plus.b", answer)

# %% [markdown]
# **c.** At output stride 8 instead of 16: which of these grow? Write a set of letters. (A) the number of weights, (B) the side of the deepest map, (C) the rates of ASPP, (D) the time.

# %%
answer = None
check("deeplabv3plus.c", answer)

# %% [markdown]
# **Next:** [the CRF, which came and went](12_crf.ipynb).
#
# **Read on:** [Chen et al. 2018](https://arxiv.org/abs/1802.02611), Fig. 2, Sec. 3, Tables 1 and 2; [Chollet 2017](https://arxiv.org/abs/1610.02357) (Xception). In the library:
# [`DeepLabV3Plus`](../lightning_modules/deeplabv3plus.py#L34), [`Xception`](../lightning_modules/components/encoders/xception.py#L53).
