"""A right answer to each exercise, and wrong ones."""

a = ((33, 129), [(32, 128), (17, 65)])
b = (304, [256, 48])
c = ({"B", "C", "D"}, [{"A", "B", "C", "D"}, {"B"}])
