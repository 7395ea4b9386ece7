# %% [markdown]
# # 1. What is semantic segmentation?
#
# A classifier looks at a photograph and says *one* word. A **semantic segmentation** says one word for *every pixel*.
# That is all. This notebook looks at what the words are, whom they help, and how a classifier that you already know becomes
# a network that answers with a picture.
#
# Before each figure there is a question. Guess first; then run the cell. Every claim is an `assert`: change a number
# and see it break.

# %%
import matplotlib.pyplot as plt
import torch
from exercises import check
from pictures import coloured, photograph, row
from scipy import ndimage
from skimage.filters import sobel
from skimage.segmentation import watershed

from datamodules.brain import BrainDataModule
from lightning_modules.components.encoders.vgg import convolutionalise_
from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.fcn import FCN

# %% [markdown]
# ## A class for every pixel
#
# The classes of a data set are counted from 0. The answer to an image of H x W pixels is a map of H x W whole numbers, the
# **label map**. Here is a slice through a head: class 0 is what is not brain, and the others are three tissues.
#
# **Before you run the cell:** the image has one number a pixel, and so has the label map. What is different about them?

# %%
data = BrainDataModule()
image, labels = data.dataset("train")[40]
row(image, coloured(labels, data.palette), titles=["image", "label map: CSF blue,\ngrey orange, white yellow"])
print({number: name for number, name in enumerate(data.class_names)})

assert image.shape == (1, 233, 197) and labels.shape == (233, 197)
assert labels.unique().tolist() == [0, 1, 2, 3] and len(data.class_names) == 4

# %% [markdown]
# The image is a measurement: a grey value can be averaged with its neighbour. A label is a name. The mean of 1 and 3 is 2, but a
# pixel between CSF and white matter is not therefore grey matter. So images are resized smoothly, label maps by the nearest pixel ([`resize`](../datamodules/transforms.py#L14)).
#
# ## A category, not an instance
#
# There are 24 coins on this photograph. An **instance** is one of them; the **category** is *coin*.
#
# **Before you run the cell:** how many different numbers does the semantic label map of this photograph hold?

# %%
coins = photograph("coins")
sure = (coins[0] > 0.59).int() * 2 + (coins[0] < 0.12).int()  # bright: coin; dark: table; the rest grows from them
is_coin = ndimage.binary_fill_holes(watershed(sobel(coins[0].numpy()), sure.numpy()) == 2)
semantic = torch.from_numpy(is_coin).long()
numbered, count = ndimage.label(ndimage.binary_opening(is_coin, iterations=2))
colours = torch.rand(count + 1, 3, generator=torch.Generator().manual_seed(3)).index_fill(0, torch.tensor(0), 0)
row(
    coins,
    semantic,
    colours[numbered].numpy(),
    titles=["photograph", "semantic: 2 numbers", f"instances: {count + 1} numbers"],
)

assert semantic.unique().tolist() == [0, 1]
assert count == 24  # and the semantic map has one number for all of them

# %% [markdown]
# Two numbers: *coin* and *not a coin*. Semantic segmentation does not care which coin it is. If two coins touch, their
# pixels become one region and nobody can count them any more. That is no fault; it is the task. The same holds for people
# in a street: each of their pixels is *person*, and who is who is not said.
#
# ## Who needs it?
#
# **Medicine.** The slice above: how much grey matter is there, and where? For radiographs, cells and organs it is the same.
#
# **Driving.** Where is road, where pavement, where people? CamVid is a film from a driving car with 11 classes. Its
# terms do not let us show it here. If you have a copy, set the environment variable `CAMVID` to its folder, and the cell
# below draws a frame.
#
# **Computational photography.** A telephone with a small lens cannot blur the background, so software does. It needs to
# know the pixels of the foreground. The cell takes two labels from a stereo camera: near and far.
#
# **Before you run the cell:** the blur is the same everywhere in the background. What must be right for it to look real?

# %%
import os

from skimage import data as photographs

from datamodules.camvid import CamVidDataModule
from datamodules.transforms import resize_image

left, _, disparity = photographs.stereo_motorcycle()
photo = torch.from_numpy(left.copy()).movedim(-1, 0) / 255
near = torch.from_numpy(ndimage.median_filter(disparity, 9)).nan_to_num(posinf=0) > 42
blurred = resize_image(resize_image(photo, (50, 74)), photo.shape[1:])
portrait = torch.where(near, photo, blurred)
row(photo, near, portrait, titles=["photograph", "near or far", "background blurred"])

if os.environ.get("CAMVID"):
    street = CamVidDataModule(os.environ["CAMVID"])
    frame, mask = street.dataset("val")[0]
    named = mask.where(mask != 255, 0)  # 255 marks pixels that nobody has labelled
    row(frame, coloured(named, street.palette), titles=["CamVid", "11 classes"])
else:
    print("No folder in the environment variable CAMVID: the street is left out.")

assert torch.equal(portrait[:, near], photo[:, near])  # the foreground is untouched
assert (portrait[:, ~near] - photo[:, ~near]).abs().mean() > 0.03

# %% [markdown]
# The border must be right. One pixel too far, and the motorcycle carries a rim of wall. We shall spend most of these
# notebooks on that border.
#
# ## From a classifier to a map
#
# A classifier ends with a **fully connected layer**: every output is a weighted sum of *all* the inputs. So it needs to know
# beforehand how many inputs there are. Give it a larger image, and it stops.

# %%
torch.manual_seed(0)
channels, side, classes = 8, 7, 3
fully_connected = torch.nn.Linear(channels * side * side, classes)
small, large = torch.randn(1, channels, 7, 7), torch.randn(1, channels, 12, 15)

print(fully_connected(small.flatten(1)).shape)
try:
    fully_connected(large.flatten(1))
    refused = False
except RuntimeError as error:
    refused = True
    print(error)

assert refused

# %% [markdown]
# Now read the same weights in another way. 8 x 7 x 7 weights for each class: that is exactly a **convolution kernel** of 7 x 7
# on 8 channels. A convolution does not ask how large its input is. Where the image is larger, it slides, and answers once
# for every window. This is the step from *fully connected* to *fully convolutional*
# ([Long et al. 2015](https://arxiv.org/abs/1411.4038), Sec. 3.1; [`convolutionalise_`](../lightning_modules/components/encoders/vgg.py#L104)).
#
# **Before you run the cell:** the large map has 12 x 15 places. How many answers does the convolution give?

# %%
convolution = torch.nn.Conv2d(channels, classes, kernel_size=side)
convolutionalise_(convolution, fully_connected.weight, fully_connected.bias)

with torch.no_grad():
    once, everywhere = convolution(small), convolution(large)
    windows = [[large[:, :, i : i + 7, j : j + 7] for j in range(9)] for i in range(6)]
    one_by_one = torch.stack([torch.stack([fully_connected(w.flatten(1))[0] for w in line]) for line in windows])

row(*one_by_one.movedim(-1, 0), *everywhere[0], height=1.6, cmap="viridis",
    titles=[*(f"fc, class {c}" for c in range(3)), *(f"conv, class {c}" for c in range(3))])  # fmt: skip

assert torch.allclose(once[0, :, 0, 0], fully_connected(small.flatten(1))[0], atol=1e-5)
assert torch.allclose(everywhere[0].movedim(0, -1), one_by_one, atol=1e-5)  # every window, the same numbers
assert everywhere.shape == (1, classes, 12 - 7 + 1, 15 - 7 + 1)

# %% [markdown]
# 6 x 9 answers, each of them what the classifier says of one window, and no weight was added. The fully connected layer
# threw the place away; the convolution keeps it. Its output has a name: the **score map**, one number for each class and place.
#
# The *next* fully connected layer of a classifier sees a single vector. As a convolution its kernel is 1 x 1: it
# classifies the vector of every place, on its own.
#
# **Before you run the cell:** what happens to the output of a 1 x 1 convolution if we shuffle the places of its input?

# %%
vector_classifier = torch.nn.Linear(channels, classes)
one_by_one_convolution = torch.nn.Conv2d(channels, classes, kernel_size=1)
convolutionalise_(one_by_one_convolution, vector_classifier.weight, vector_classifier.bias)

order = torch.randperm(12 * 15)
shuffled = large.flatten(2)[..., order].unflatten(2, (12, 15))
with torch.no_grad():
    scores, scores_shuffled = one_by_one_convolution(large), one_by_one_convolution(shuffled)
row(scores[0, 0], scores_shuffled[0, 0], titles=["class 0", "class 0 of the shuffled map"], height=1.6, cmap="viridis")

assert torch.allclose(scores.flatten(2)[..., order], scores_shuffled.flatten(2), atol=1e-6)
assert torch.allclose(scores[0, :, 3, 4], vector_classifier(large[0, :, 3, 4]), atol=1e-6)

# %% [markdown]
# The answers are shuffled in the same way: no place looks at its neighbours.
#
# ## Any size in, a map of that size out
#
# [`FCN`](../lightning_modules/fcn.py#L53) is a whole classifier, VGG16, rewritten like this, with a layer behind it that makes the score map as
# large as the image. It was the first network for segmentation that was trained **end to end**: from pixels to labels in
# one piece, with nothing made by hand in between. (Here it is very narrow and has learned nothing.)

# %%
network = FCN(num_classes=11, encoder_width=0.0625, fc_width=16).eval()
sizes = [(64, 64), (97, 131), (200, 48)]
with torch.no_grad():
    answers = [network(torch.rand(1, 3, *size)) for size in sizes]
for size, answer in zip(sizes, answers, strict=True):
    print(f"image {size} -> scores {tuple(answer.shape)}")

assert all(answer.shape == (1, 11, *size) for size, answer in zip(sizes, answers, strict=True))

# %% [markdown]
# For each pixel the class with the highest score is the label: `scores.argmax(1)`. Scores are also called **logits**: what goes into a softmax.
#
# ## How good is a label map?
#
# Count the pixels that are right? In the slice most pixels are not brain, so who answers *not brain* everywhere is right
# most of the time. **IoU** (intersection over union) is harder to please. For one class: the pixels where truth and
# answer agree on it, divided by the pixels where at least one of them has it. **mIoU** is its mean over the classes. Both follow from the
# **confusion matrix**: how many pixels of class *i* were answered as class *j*.
#
# **Before you run the cell:** what is the mIoU of the answer *not brain* everywhere, with 4 classes?

# %%
lazy = torch.zeros_like(labels)
# Rows the truth, columns the answer, 4 classes; pixels labelled 255, unknown, would not count.
confusion = confusion_matrix(lazy[None], labels[None], 4, 255)[0].double()
union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
iou = confusion.diag() / union
accuracy = (lazy == labels).double().mean()
plt.figure(figsize=(5, 1.8))
plt.barh(data.class_names, iou)
plt.title(f"pixels right: {accuracy:.0%}, mIoU: {iou.mean():.0%}")
plt.xlim(0, 1)

assert accuracy > 0.5 and iou.mean() < accuracy / 2
assert iou[0] == accuracy and (iou[1:] == 0).all()

# %% [markdown]
# 14 %: three classes have an IoU of 0, and the fourth cannot make up for them.
#
# ## Exercises
#
# Put your answer in place of `None` and run the cell. It says whether it is right.
#
# **a.** A street scene has 4 cars, 2 people and road. All pixels belong to one of these. How many different numbers does its
# semantic label map hold?

# %%
answer = None
check("segmentation.a", answer)

# %% [markdown]
# **b.** A classifier was trained on images of 224 x 224 and has one answer for each. Rewritten as convolutions it answers once for every
# window of 224 x 224, each 32 pixels further on, none over the border. How many answers does it give for an image of 384 x 512? Write
# (rows, columns).

# %%
answer = None
check("segmentation.b", answer)

# %% [markdown]
# **c.** Write a function `iou_of(answer, truth, c)` for label maps (H, W): the IoU of class `c`.


# %%
def iou_of(answer, truth, c):
    return None


check("segmentation.c", iou_of)

# %% [markdown]
# **Next:** [why the score map is so coarse](02_coarse_score_maps.ipynb).
#
# **Read on:** [Long, Shelhamer, Darrell 2015](https://arxiv.org/abs/1411.4038), Sec. 3.1 and Fig. 2, on classifiers as convolutions. How SegLab counts
# pixels: [`confusion_matrix`](../lightning_modules/components/scores/confusion.py#L47).
