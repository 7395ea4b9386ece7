# %% [markdown]
# # 4. Skip connections: FCN-32s, 16s and 8s by hand
#
# A deep layer knows *what* is in the image and only roughly where. A shallow layer knows *where* something changes and not what it is. FCN adds
# both: it lets a shallow layer have its say in the score map. A way past the layers in between is a **skip connection**.
#
# First we look at what shallow and deep layers know. Then we build FCN-8s from its parts, and train it.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from exercises import check
from pictures import coloured, photograph, row

from datamodules.brain import BrainDataModule
from lightning_modules.analysis.receptive_field import receptive_fields
from lightning_modules.components.blocks import crop
from lightning_modules.components.encoders import build_encoder
from lightning_modules.components.scores.boundary import boundary_f1
from lightning_modules.components.scores.confusion import confusion_matrix
from lightning_modules.components.scores.reductions import scores
from lightning_modules.components.upsampling import bilinear_kernel
from lightning_modules.fcn import FCN

# %% [markdown]
# ## What the layers know
#
# We need a network that has learned. EfficientNet-Lite0 was trained on a million photographs, and its weights are installed along with these
# notebooks. The part of a classifier without its last layers is called an **encoder**. It returns five maps, at the strides 2, 4, 8,
# 16 and 32. **Shallow** ones come after few layers, **deep** ones after many. Each number in a map is a **feature**.
#
# **Before you run the cell:** we look at two channels of each map. In which map will you still recognise the cat?

# %%
encoder = build_encoder("tu-tf_efficientnet_lite0", weights="package").eval()
mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))


def features(image):
    with torch.no_grad():
        return encoder(((image - mean) / std)[None])[1:]


names = ("chelsea", "coffee", "astronaut")
photographs = {name: photograph(name, 224) for name in names}
photographs = {name: crop(p, 224, 224, left=(p.shape[2] - 224) // 2) for name, p in photographs.items()}
cat = photographs["chelsea"]
maps = features(cat)
strides = [224 // map_.shape[-1] for map_ in maps]
lively = [map_[0, map_[0].flatten(1).std(1).argsort(descending=True)[:2]] for map_ in maps]  # those that vary most
row(cat, *(two[0] for two in lively), titles=["photograph", *(f"stride {s}" for s in strides)], height=1.5)
row(*(two[1] for two in lively), height=1.5)

assert strides == [2, 4, 8, 16, 32]

# %% [markdown]
# The shallow channels are line drawings: edges of one direction, bright or dark. The deep ones are a few vague blotches. What have they kept? Let us try to
# get the photograph back. For each map we look for the best 1x1 convolution from its channels to red, green and blue. It is found by least squares, so there is
# no better one. Its error says what the map no longer tells.
#
# **Before you run the cell:** the last map has 320 channels, the first one 16. Which one rebuilds the photograph better?


# %%
def rebuilt(map_, image):
    """The best picture that a 1x1 convolution makes of the map, and the share of the photograph's variance in it."""
    image = F.avg_pool2d(image, 2)  # half the size is enough to see it
    channels = F.interpolate(map_, size=image.shape[1:], mode="bilinear")[0].flatten(1).T.double()
    inputs = torch.cat([channels, torch.ones(len(channels), 1, dtype=torch.float64)], dim=1)  # the bias
    colours = image.flatten(1).T.double()
    ridge = 1e-6 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    picture = inputs @ torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ colours)
    told = 1 - (picture - colours).var() / (colours - colours.mean(0)).var()
    return picture.T.reshape(image.shape).clamp(0, 1).float(), float(told)


pictures = [rebuilt(map_, cat) for map_ in maps]
row(cat, *(picture for picture, _ in pictures), height=1.5,
    titles=["photograph", *(f"stride {s}: {told:.0%}" for s, (_, told) in zip(strides, pictures, strict=True))])  # fmt: skip

for photo in photographs.values():
    told = [rebuilt(map_, photo)[1] for map_ in features(photo)]
    assert told == sorted(told, reverse=True)  # the deeper, the less
    assert told[0] > 0.9 and told[-1] < 0.65

# %% [markdown]
# Twenty times as many channels, a 256th of the places, and a worse picture: colours and edges are gone. That would be a bad bargain, if nothing had been gained for it.
#
# So turn the question round. We change what the photograph *looks* like and leave what it *shows*: grey, with swapped colours, as a negative, in a mirror. Then we ask each
# map which photograph it is. It compares its features, averaged over the whole picture, with those of the three originals: cat, cup and astronaut.
#
# Below is a distance: from the changed photograph to its own original, divided by that from the original to the nearest *other* one. Above 1, the
# changed cat lies further from the cat than the cup or the astronaut does.
#
# **Before you run the cell:** which map will be fooled by a purple cat?

# %%
changes = {
    "grey": lambda photo: photo.mean(0, keepdim=True).expand(3, -1, -1),
    "colours swapped": lambda photo: photo[[1, 2, 0]],
    "negative": lambda photo: 1 - photo,
    "mirrored": lambda photo: photo.flip(-1),
}
row(*(change(cat) for change in changes.values()), titles=[*changes], height=1.5)


def whole(photo):
    return [map_.mean((0, 2, 3)) for map_ in features(photo)]


originals = {name: whole(photo) for name, photo in photographs.items()}
distance = torch.zeros(len(names), len(changes), len(strides))
for i, name in enumerate(names):
    for j, change in enumerate(changes.values()):
        for k, (new, own) in enumerate(zip(whole(change(photographs[name])), originals[name], strict=True)):
            nearest = min((originals[other][k] - own).norm() for other in names if other != name)
            distance[i, j, k] = (new - own).norm() / nearest

plt.figure(figsize=(5, 2.4))
for name, lines in zip(changes, distance.mean(0), strict=True):
    plt.plot(strides, lines, "o-", label=name)
plt.axhline(1, color="grey", linestyle=":")
plt.xscale("log", base=2)
plt.xticks(strides, strides)
plt.xlabel("stride of the map")
plt.ylabel("distance")
plt.legend()

assert (distance[:, 1:3, 0] > 1).all()  # at stride 2 a photograph with other colours is another one
assert (distance.mean(0)[1, :3] > 1).all() and (distance[:, 3] < 1).all()  # purple, and in a mirror
assert (distance[..., 3:] < 0.8).all()  # at strides 16 and 32 the cat stays a cat, and the cup a cup

# %% [markdown]
# The three shallow ones. (A mirror fools none, since the average forgets places.) The deep maps have thrown away how it looks and kept what it is. That is the
# bargain.
#
# ## Local and global
#
# There is a second difference. Cover one square of the photograph and see which numbers notice.
#
# **Before you run the cell:** which share of the last map will change?

# %%
covered = cat.clone()
covered[:, 96:128, 96:128] = 0.5
changed = [(a - b).abs().amax((0, 1)) for a, b in zip(features(covered), maps, strict=True)]
noticed = [float((c > 1e-4 * map_.abs().max()).float().mean()) for c, map_ in zip(changed, maps, strict=True)]
row(covered, *(c.sqrt() for c in changed), height=1.5, cmap="magma",
    titles=["covered", *(f"stride {s}: {share:.0%}" for s, share in zip(strides, noticed, strict=True))])  # fmt: skip
field = receptive_fields(encoder, 3, [""])[""]
print(f"the last map's receptive field: {field.size[0]} pixels")

assert noticed[0] < 0.05 and noticed[-1] == 1  # local, and global
assert field.size[0] > 224  # every number of the last map can see all of the photograph

# %% [markdown]
# A shallow number looks at its own few pixels: it is **local**. A deep one looks at everything: it is **global**. (How far each sees is the
# [receptive field](02_coarse_score_maps.ipynb).)
#
# For a label we need both. The deep map says *cat*; the shallow one says *and here its fur ends*.
#
# ## FCN by hand
#
# Here is how FCN does it ([Long et al. 2015](https://arxiv.org/abs/1411.4038), Fig. 3). Its encoder is VGG16. It has three maps to score:
#
# | map | stride | says |
# |---|---|---|
# | fc7, the last layer | 32 | what |
# | pool4 | 16 | some of both |
# | pool3 | 8 | where |
#
# A 1x1 convolution makes a **score map** of each, one number for each class and place. Then:
#
# - **FCN-32s**: the scores of fc7, made 32 times larger;
# - **FCN-16s**: the scores of fc7, doubled, *plus* the scores of pool4; the sum made 16 times larger;
# - **FCN-8s**: that first sum, doubled, *plus* the scores of pool3; the sum made 8 times larger.
#
# We do it with the parts of [`FCN`](../lightning_modules/fcn.py#L53), here a narrow one whose weights are random numbers. Maps are made larger by a transposed
# convolution with [`bilinear_kernel`](../lightning_modules/components/upsampling.py#L148), which is [resizing](03_upsampling.ipynb).

# %%
torch.manual_seed(0)
classes = 4
narrow = {"encoder_width": 0.0625, "fc_width": 16}
fcn8 = FCN(classes, stride=8, **narrow).eval()
for score in fcn8.scores:
    torch.nn.init.normal_(score.weight)  # FCN starts its scores at 0: sums of zeros would prove nothing
fcn16, fcn32 = (FCN(classes, stride=stride, **narrow).eval() for stride in (16, 32))
for network in (fcn16, fcn32):  # the same encoder and the same scores
    shared = {name: w for name, w in fcn8.state_dict().items() if name in network.state_dict() and "up" not in name}
    network.load_state_dict(shared, strict=False)

image = photograph("chelsea", 150)[None]
height, width = image.shape[2:]
with torch.no_grad():
    stages = fcn8.encoder(F.pad(image, [99] * 4))  # 100 pixels of zeros around the image; the first layer adds the last
    pool3, pool4 = (F.max_pool2d(stages[i], 2, ceil_mode=True) for i in (2, 3))
    fc7 = fcn8.fc7(fcn8.fc6(stages[5]).relu()).relu()
    score_fc7, score_pool4, score_pool3 = (s(m) for s, m in zip(fcn8.scores, (fc7, pool4, pool3), strict=True))
print("image", (height, width), *(f"{name} {tuple(map_.shape[2:])}" for name, map_ in
                                 (("fc7", score_fc7), ("pool4", score_pool4), ("pool3", score_pool3))))  # fmt: skip


def larger(scores_, times):
    return F.conv_transpose2d(scores_, bilinear_kernel(classes, times), stride=times)


# %% [markdown]
# Doubled, the scores of fc7 have a stride of 16 pixels, as pool4 has. But do they begin at the same pixel? FCN surrounds the image by 100 pixels of zeros, so pool4 begins far outside the
# image. The library knows where: `offset` of a [`ReceptiveField`](../lightning_modules/analysis/receptive_field.py#L30) is the pixel that the first number
# of a map is centred on. To add two maps, cut one until both begin at the same pixel.
#
# **Before you run the cell:** pool4 begins at pixel -91.5, fc7 doubled at -11.5. The step is 16 pixels. How many rows of pool4 must go?

# %%
layers = {"pool3": "encoder.features.16", "pool4": "encoder.features.23", "fc7": "fc7", "fc7 doubled": "up.0",
          "sum doubled": "up.1", "sum x 8": "upscore"}  # fmt: skip
fields = receptive_fields(fcn8, 3, [*layers.values()])
begins = {name: fields[path].offset[0] for name, path in layers.items()}
plt.figure(figsize=(6, 2))
for level, (name, path) in enumerate(layers.items()):
    step = fields[path].stride[0]
    plt.plot([begins[name] + step * i for i in range(100)], [level] * 100, "|", markersize=8)
plt.axvline(-0.5, color="black", linewidth=1)
plt.yticks(range(len(layers)), layers)
plt.xlim(-105, 60)
plt.xlabel("pixels of the image, which begins at the line")

offset_pool4 = round((begins["fc7 doubled"] - begins["pool4"]) / 16)
offset_pool3 = round((begins["sum doubled"] - begins["pool3"]) / 8)
offset_image = round(0 - begins["sum x 8"])
assert (begins["pool4"], begins["fc7 doubled"]) == (-91.5, -11.5)
assert (offset_pool4, offset_pool3, offset_image) == (5, 9, 31)  # the numbers in the authors' released networks

# %% [markdown]
# 80 pixels of 16: five rows and five columns. These are the famous crop offsets 5, 9 and 31 of FCN. Nobody has to remember them; they follow from where the pixels are.
#
# Now the three sums. Nothing is left but to write them down.


# %%
def plus(deep, shallow, offset):
    """Two score maps of one stride, the shallow one without the rows and columns that come before the deep one's."""
    shallow = shallow[..., offset:, offset:]
    rows, columns = (min(pair) for pair in zip(deep.shape[2:], shallow.shape[2:], strict=True))
    return crop(deep, rows, columns) + crop(shallow, rows, columns)


with torch.no_grad():
    by_hand32 = crop(larger(score_fc7, 32), height, width, top=19, left=19)

    sum16 = plus(larger(score_fc7, 2), score_pool4, offset_pool4)
    by_hand16 = crop(larger(sum16, 16), height, width, top=27, left=27)

    sum8 = plus(larger(sum16, 2), score_pool3, offset_pool3)
    by_hand8 = crop(larger(sum8, 8), height, width, top=offset_image, left=offset_image)

    for by_hand, network in ((by_hand32, fcn32), (by_hand16, fcn16), (by_hand8, fcn8)):
        assert torch.allclose(by_hand, network(image), atol=1e-4 * float(by_hand.abs().max()))

    shifted = crop(larger(plus(larger(sum16, 2), score_pool3, 8), 8), height, width, top=31, left=31)
    assert not torch.allclose(shifted, fcn8(image), atol=0.01 * float(by_hand8.abs().max()))  # 8 instead of 9

# %% [markdown]
# Three networks, and a line or two each. With one row less cut from pool3, the shallow scores lie 8 pixels beside the deep ones, and the answer is another one.
#
# ## Does it help?
#
# We train all three on pieces of brain slices, for some seconds each. VGG16 learns too slowly for that, so the encoder is a
# narrow ResNet-18; its maps at strides 32, 16 and 8 are scored and added in the same way.
#
# **Before you run the cell:** the folds of the brain are 3 or 4 pixels thin here. What can FCN-32s draw at all?

# %%
data = BrainDataModule(scale=0.7)
x, y = (torch.stack(pair) for pair in zip(*data.dataset("train"), strict=True))
x_test, y_test = (torch.stack(pair) for pair in zip(*data.dataset("test"), strict=True))
x, x_test = ((images - x.mean()) / x.std() for images in (x, x_test))


def train(stride, seed=0, steps=60):
    torch.manual_seed(seed)
    network = FCN(4, 1, stride=stride, encoder="resnet18", encoder_width=0.125)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(steps):
        batch, top, left = torch.randint(len(x), (6,)), int(torch.randint(68, ())), int(torch.randint(43, ()))
        images, truth = (crop(whole[batch], 96, 96, top=top, left=left) for whole in (x, y))
        loss = F.cross_entropy(network(images), truth, weight=torch.tensor([0.5, 3, 1, 1]))  # CSF is rare
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


trained = {stride: train(stride) for stride in (32, 16, 8)}
with torch.no_grad():
    said = {stride: network(x_test).argmax(1) for stride, network in trained.items()}
miou = {s: float(scores(confusion_matrix(p, y_test, 4, 255).sum(0).numpy())["miou"]) for s, p in said.items()}
outlines = {s: float(boundary_f1(p, y_test, 4, 255).nanmean()) for s, p in said.items()}
row(x_test[3], coloured(y_test[3], data.palette), *(coloured(p[3], data.palette) for p in said.values()), height=2.2,
    titles=["slice", "truth", *(f"FCN-{s}s: mIoU {miou[s]:.0%}" for s in said)])  # fmt: skip
print({f"FCN-{s}s": f"boundary F1 {f1:.0%}" for s, f1 in outlines.items()})

assert miou[8] > miou[32] + 0.05
assert outlines[8] > outlines[32] + 0.1

# %% [markdown]
# One egg of grey matter. Each skip brings folds back. This is one seed and some seconds of training: a *demonstration*, not evidence. The evidence is [an ablation with five seeds](../experiments/results/ablate_fcn_strides.md): FCN-32s
# lies 15.3 points of mIoU below FCN-8s, 95 % interval 13.9 to 16.7, and FCN-16s lies 7.9 below, 6.4 to 9.3. On PASCAL VOC, whose objects are large, the second step was
# small: 62.4 % for 16s and 62.7 % for 8s ([Long et al.](https://arxiv.org/abs/1411.4038), Table 2).
#
# Which map brings what? Inside the trained FCN-8s we look at the scores that it gives *white matter*, from each of its three maps and in the
# sum. Then we leave maps out of the sum, the finest first, and see which labels are left. (This encoder needs no crop: every map begins at the border.)
#
# **Before you run the cell:** which of the three draws the outline of the brain? And will the deepest scores alone be a good answer?

# %%
network = trained[8]
white = data.class_names.index("white matter")
with torch.no_grad():
    deepest_first = network.encoder(x_test[3:4])[:2:-1]
    streams = [score(map_) for score, map_ in zip(network.scores, deepest_first, strict=True)]
    sums = []
    for kept in (1, 2, 3):
        total = streams[0]
        for number, (up, stream) in enumerate(zip(network.up, streams[1:], strict=True), start=2):
            upsampled = crop(up(total), *stream.shape[2:])
            total = upsampled + stream if number <= kept else upsampled
        sums.append(crop(network.upscore(total), *y_test.shape[1:])[0])
row(*(stream[0, white] for stream in streams), sums[-1][white], height=2,
    titles=["stride 32", "stride 16", "stride 8", "the sum"])  # fmt: skip
row(*(coloured(logits.argmax(0), data.palette) for logits in sums), coloured(y_test[3], data.palette), height=2,
    titles=["stride 32 alone", "+ stride 16", "+ stride 8", "truth"])  # fmt: skip

assert torch.equal(sums[-1].argmax(0), said[8][3])  # all three: what the network says
right = [float((logits.argmax(0) == y_test[3]).float().mean()) for logits in sums]
assert right[2] > right[0] + 0.05

# %% [markdown]
# The finest scores draw the outline; the coarsest are 6 x 5 squares of more or less. And no part alone is an answer: the three were trained *as a sum*, so each leaves something to the others. The
# first of the lower pictures is therefore not what an FCN-32s would say.
#
# ## Exercises
#
# **a.** Somebody builds an FCN-4s, which also adds the scores of pool2, at stride 4. How often are the scores of fc7 doubled before those of pool2 are added, and how many times larger is the last
# sum made? Write (doublings, times).

# %%
answer = None
check("skips.a", answer)

# %% [markdown]
# **b.** What does a skip cost? pool4 of VGG16 has 512 channels, and there are 21 classes. How many parameters has the 1x1 convolution that scores it, with its biases?

# %%
answer = None
check("skips.b", answer)

# %% [markdown]
# **c.** Write a function `fuse(deep, shallow)` for score maps (N, C, h, w) and (N, C, 2h, 2w) that begin at the same pixel of the image: the deep one doubled smoothly, plus the shallow
# one.


# %%
def fuse(deep, shallow):
    return None


check("skips.c", fuse)

# %% [markdown]
# **Next:** do not add scores, stack the features themselves: [hypercolumns](05_hypercolumns.ipynb).
#
# **Read on:** [Long, Shelhamer, Darrell 2015](https://arxiv.org/abs/1411.4038), Sec. 4.2 and Fig. 4. How pictures of features are made well: [Zeiler, Fergus 2013](https://arxiv.org/abs/1311.2901). The
# comment above [`POOL_OFFSETS`](../lightning_modules/fcn.py#L47) derives the crop offsets.
