"""A right answer to each exercise, and wrong ones."""

a = (80, [160, 120])
b = (
    lambda colour, foreground, background: (colour - background) / (foreground - background),
    [lambda colour, foreground, background: colour / foreground, lambda colour, foreground, background: 0.5],
)
c = ({"A", "B", "C"}, [{"A", "B", "C", "D"}, {"A"}])
