"""A right answer to each exercise, and wrong ones."""

a = (50, [12, 36])
b = (17, [33, 16])
c = (1280, [256, 768])
