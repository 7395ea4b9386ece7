"""A right answer to each exercise, and wrong ones."""

a = (9792, [204800, 1600])
b = (lambda k, n: 1 / n + 1 / k**2, [lambda k, n: 1 / k**2, lambda k, n: 1 / n])
c = ({(1, 64), (3, 1)}, [{(3, 2)}, {(1, 64)}, {(1, 64), (3, 1), (3, 2)}])
