"""A right answer to each exercise, and wrong ones."""

a = (3, [7, 2])
b = ((6, 10), [(12, 16), 60])
c = (
    lambda answer, truth, c: ((answer == c) & (truth == c)).sum() / ((answer == c) | (truth == c)).sum(),
    [lambda answer, truth, c: (answer == truth).double().mean(), lambda answer, truth: 1],
)
