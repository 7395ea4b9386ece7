"""A right answer to each exercise, and wrong ones."""

a = (16, [32, 8])
b = (lambda rates: 1 + 2 * sum(rates), [lambda rates: 3 ** len(rates), lambda rates: 2 * sum(rates)])
c = ({(2, 4, 8), (3, 3), (1, 1, 6)}, [{(2, 4, 8)}, {(2, 4, 8), (3, 3)}, {(1, 2, 4)}])
