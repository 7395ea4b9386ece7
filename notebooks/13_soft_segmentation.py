# %% [markdown]
# # 13. Soft segmentation: how much of a pixel belongs to what
#
# Where cup and table meet, a pixel of the photograph sees a bit of both. A label has to choose. A **soft segmentation** does not: it says
# *30 % cup, 70 % table*. Whoever cuts a thing out of a photograph needs exactly that.
#
# **Semantic soft segmentation** ([Aksoy et al. 2018](https://doi.org/10.1145/3197517.3201275)) gets it from two witnesses: colours, which know fine borders, and the features of a network, which know
# what belongs together. Nothing is trained.

# %%
import numpy as np
import torch
import torch.nn.functional as F
from exercises import check
from pictures import photograph, row
from scipy import ndimage
from skimage import data as photographs

from lightning_modules.components.blocks import pad_to_multiple
from lightning_modules.components.encoders import build_encoder
from lightning_modules.refinement.laplacian import matting_laplacian
from lightning_modules.refinement.soft_segmentation import soft_segmentation

# %% [markdown]
# ## A pixel that is two things
#
# The motorcycle of [notebook 1](01_what_is_segmentation.ipynb) has a sharp outline: every pixel is near or far. Now let the camera have fewer pixels: each new one is the mean of 10 x 10 old ones.
# The share of them that was near is called **alpha**.
#
# **Before you run the cell:** how many of the new pixels are neither quite near nor quite far?

# %%
_, _, disparity = photographs.stereo_motorcycle()
near = torch.from_numpy(ndimage.median_filter(disparity, 9)).nan_to_num(posinf=0) > 42
alpha = F.avg_pool2d(near[None].float(), 10)[0]
row(
    near[:, :400],
    alpha[:, :40],
    ((alpha > 0) & (alpha < 1))[:, :40],
    titles=["near, a part", "alpha, 10 times smaller", "neither 0 nor 1"],
)

mixed = [
    float(((a > 0) & (a < 1)).float().mean()) for a in (F.avg_pool2d(near[None].float(), n) for n in (2, 5, 10, 20))
]
print("share of mixed pixels:", [f"{share:.0%}" for share in mixed])
assert mixed == sorted(mixed) and mixed[-1] > 0.2

# %% [markdown]
# What colour has such a pixel? If the thing has the colour F (foreground) and the rest the colour B (background), it is the mixture
#
# **C = alpha F + (1 - alpha) B**
#
# That is no model that one may believe or not; it is what the mean of the small pixels *is*:

# %%
foreground, background = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.8])
sharp = torch.where(near[..., None], foreground, background).movedim(-1, 0)
seen = F.avg_pool2d(sharp, 10)
mixture = alpha * foreground[:, None, None] + (1 - alpha) * background[:, None, None]
chosen = torch.where(alpha > 0.5, foreground[:, None, None], background[:, None, None])

assert torch.allclose(seen, mixture, atol=1e-5)
assert (seen - chosen).abs().max() > 0.3  # a label instead of alpha is far off, at the border

# %% [markdown]
# The hard part is the way back: a photograph shows C alone. Seven unknowns (F, B, alpha), three numbers.
#
# ## What colours can say
#
# Suppose that in a window of 3 x 3 pixels both F and B lie on a line of colours each. Then alpha is a linear function of the colour *in that window*: `alpha = a . C + b`. The
# **matting Laplacian** adds up, over all windows, how badly an alpha map violates that ([`matting_laplacian`](../lightning_modules/refinement/laplacian.py#L69)).
# A small number is good.
#
# **Before you run the cell:** which of these has no violation at all: a constant, the red channel of the image, a vertical edge that is not in the image?

# %%
image = photograph("coffee", 120).movedim(0, -1).double().numpy()
height, width, _ = image.shape
laplacian = matting_laplacian(image)


def violation(alpha):
    return float(alpha.ravel() @ (laplacian @ alpha.ravel()))


candidates = {
    "constant": np.full((height, width), 0.5),
    "red channel": image[..., 0],
    "an edge of its own": np.broadcast_to((np.arange(width) > width // 2).astype(float), (height, width)),
}
row(
    *candidates.values(),
    titles=[f"{name}: {violation(a):.2g}" for name, a in candidates.items()],
    vmin=0,
    vmax=1,
    height=2,
)

assert abs(violation(candidates["constant"])) < 1e-6
assert abs(violation(candidates["red channel"])) < 0.01  # what keeps the sums solvable in windows of one colour
assert violation(candidates["an edge of its own"]) > 100
assert abs(laplacian - laplacian.T).max() < 1e-9 and abs(laplacian.sum(1)).max() < 1e-6

# %% [markdown]
# Constants and colours are free; edges that the image does not have are dear. So colours know *where* a border may run. They do not know *which* borders matter: white cup and white spoon are one to them.
#
# ## What features can say
#
# Features of a network trained on ImageNet differ between cup and table, whatever the colours are. Here they are reduced to three numbers, drawn as red, green and blue.
#
# **Before you run the cell:** features come in steps of 8 pixels and more. What will their picture do well, and what badly?

# %%
encoder = build_encoder("tu-tf_efficientnet_lite0", 3, depth=5, weights="package").eval()  # installed with pip
large = photograph("coffee", 320)[None]
mean, std = (torch.tensor(values)[None, :, None, None] for values in (encoder.mean, encoder.std))
with torch.no_grad():
    maps = [m[0].double().numpy() for m in encoder(pad_to_multiple((large - mean) / std, 32))[3:]]

found = soft_segmentation(255 * image, maps, layers=4, segments=20, eigenvectors=50, superpixels=600)
row(image, found.features, titles=["photograph", "features"])

assert found.features.shape == (height, width, 3)
assert [m.shape[1] for m in maps] == [40, 20, 10]  # strides 8, 16, 32 of 320 rows

# %% [markdown]
# They tell cup, saucer and table apart, and are blurred at the borders: just what colours are good at.
#
# ## Both together: eigenvectors
#
# Neighbouring **superpixels** (small patches of one colour) whose features agree are tied together, and such that disagree are pushed apart. With the matting Laplacian this makes one matrix.
# Its **eigenvectors** with the smallest eigenvalues are maps that violate least: smooth inside of things, and free to jump where both witnesses see a border.
#
# **Before you run the cell:** will a single one of them be the cup?

# %%
row(
    *[found.eigenvectors[..., k] for k in (3, 5, 10, 12, 15)],
    titles=[f"eigenvector {k}" for k in (3, 5, 10, 12, 15)],
    cmap="RdBu",
    height=1.6,
    vmin=-3 / (height * width) ** 0.5,
    vmax=3 / (height * width) ** 0.5,  # white is 0
)

flat = found.eigenvectors.reshape(height * width, -1)
assert np.allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)  # each says something that no other says
assert (np.diff(found.eigenvalues) >= -1e-9).all()

# %% [markdown]
# No, none of them; each is a mixture of things. The last step looks for *sums* of eigenvectors whose values are nearly 0 or 1 everywhere. These are the **layers**.
#
# **Before you run the cell:** what must the layers of each pixel sum to?

# %%
alphas = found.alphas
row(
    *alphas.transpose(2, 0, 1),
    titles=[f"layer {k}: {share:.0%} of the image" for k, share in enumerate(alphas.mean((0, 1)))],
    height=1.8,
    vmin=0,
    vmax=1,
)

put_together = (alphas[..., None] * image[:, :, None, :]).sum(2)
soft = ((alphas > 0.05) & (alphas < 0.95)).any(2).mean()
print(f"{soft:.0%} of the pixels belong to more than one layer")

assert alphas.min() >= 0 and np.allclose(alphas.sum(2), 1)
assert np.allclose(put_together, image)  # nothing of the photograph is lost
assert 0.01 < soft < 0.9

# %% [markdown]
# To 1: they share the pixel among them. So the layers, laid on each other, are the photograph again.
#
# ## What it is good for
#
# Paint one layer in another colour. Once with its alpha, once with labels: each pixel to its largest layer.
#
# **Before you run the cell:** where will the two differ?

# %%
centre = alphas[height // 2 - 10 : height // 2 + 10, width // 2 - 10 : width // 2 + 10].mean((0, 1)).argmax()
green = image[..., [1, 0, 2]]
soft_edit = alphas[..., centre, None] * green + (1 - alphas[..., centre, None]) * image
hard = (alphas.argmax(2) == centre)[..., None]
hard_edit = np.where(hard, green, image)
cut = slice(30, 75), slice(60, 130)
row(soft_edit, hard_edit, np.abs(soft_edit - hard_edit).max(2), titles=["with alpha", "with labels", "difference"])
row(soft_edit[cut], hard_edit[cut], titles=["with alpha", "with labels"])

where = np.abs(soft_edit - hard_edit).max(2) > 0.05
border = ndimage.binary_dilation(hard[..., 0] ^ ndimage.binary_erosion(hard[..., 0]), iterations=6)
print(
    f"{where.mean():.0%} of the pixels differ; {where[border].mean():.0%} near the border, {where[~border].mean():.0%} elsewhere"
)
assert where[border].mean() > where[~border].mean()

# %% [markdown]
# The method takes minutes for a photograph of 600 x 400, and what the features do not tell apart, no layer tells apart: [what it can do, and what not](../experiments/results/soft_segmentation.md). On an image of your own:
# `python -m experiments.soft_segment IMAGE --out DIR`.
#
# ## Exercises
#
# **a.** A pixel is 25 % foreground of grey 200 before a background of grey 40. Which grey does the camera see?

# %%
answer = None
check("soft_segmentation.a", answer)

# %% [markdown]
# **b.** Write `alpha_of(colour, foreground, background)` for three grey levels: the alpha of the pixel.


# %%
def alpha_of(colour, foreground, background):
    return None


check("soft_segmentation.b", alpha_of)

# %% [markdown]
# **c.** Which alpha maps cost nothing by the matting Laplacian, for every image? Write a set of letters. (A) 0.3 everywhere. (B) The blue channel. (C) Twice the red channel less the green one. (D) A label map of zeros and ones.

# %%
answer = None
check("soft_segmentation.c", answer)

# %% [markdown]
# **Next:** [is the difference real? Reading an ablation](14_reading_an_ablation.ipynb).
#
# **Read on:** [Aksoy et al. 2018](https://doi.org/10.1145/3197517.3201275), Sec. 3; [Levin, Lischinski, Weiss 2008](https://doi.org/10.1109/TPAMI.2007.1177) on the matting Laplacian. In the library:
# [`soft_segmentation`](../lightning_modules/refinement/soft_segmentation.py#L65), [`semantic_laplacian`](../lightning_modules/refinement/laplacian.py#L100).
