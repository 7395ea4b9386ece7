"""A right answer to each exercise, and wrong ones."""

a = (0.88, [2, 0.12])
b = (0.082, [0.607, 0.135])
c = ({"A", "B", "D"}, [{"A", "B", "C", "D"}, {"A"}])
