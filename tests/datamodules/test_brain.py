from datamodules.base import SPLITS
from datamodules.brain import BLOCKS, BrainDataModule, read_template


def test_splits_are_apart() -> None:
    home = {z: split for split in SPLITS for block in BLOCKS[split] for z in block}
    assert len(home) == sum(len(block) for blocks in BLOCKS.values() for block in blocks)
    assert all(home.get(z + d, split) == split for z, split in home.items() for d in range(-4, 5))
    assert [sum(len(b) for b in BLOCKS[split]) for split in SPLITS] == [82, 8, 16]


def test_a_group_is_a_block_of_neighbouring_slices() -> None:
    datamodule = BrainDataModule(scale=0.1)
    groups = datamodule.groups(datamodule.dataset("test").names)
    assert groups == ["z048-z055"] * 8 + ["z102-z109"] * 8
    assert datamodule.groups(["z108", "z050"]) == ["z102-z109", "z048-z055"]


def test_every_slice_shows_every_tissue_upright() -> None:
    datamodule = BrainDataModule()
    for split in SPLITS:
        dataset = datamodule.dataset(split)
        for image, mask in (dataset[i] for i in range(len(dataset))):
            assert image.shape == (1, 233, 197)
            assert len(mask.flatten().bincount()) == 4 and mask.flatten().bincount().all()
            assert (image[0] > 0).equal(mask > 0)
            csf, grey, white = (image[0][mask == label].mean() for label in (1, 2, 3))
            assert csf < grey < white  # as a T1 contrast has it
    # Anterior is up: at z048 the frontal lobes end in a narrower tip than the cerebellum behind.
    mask = datamodule.dataset("test")[0][1]
    widths = (mask > 0).sum(1)
    rows = widths.nonzero().flatten()
    assert widths[rows[0] : rows[0] + 25].max() < widths[rows[-1] - 25 : rows[-1]].max()


def test_template_is_read_once() -> None:
    assert read_template()[0] is read_template()[0]


def test_scale() -> None:
    image, mask = BrainDataModule(scale=0.5).dataset("val")[0]
    assert image.shape == (1, 116, 98) and mask.shape == (116, 98)
