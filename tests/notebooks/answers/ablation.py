"""A right answer to each exercise, and wrong ones."""


def _verdict(low, high, margin):  # type: ignore[no-untyped-def]
    if low > 0 or high < 0:
        return "differs"
    return "equivalent" if max(-low, high) < margin else "open"


a = (1.42, [4.25, 0])
b = (0.64, [0.05, 1.0])
c = (_verdict, [lambda low, high, margin: "open", lambda low, high, margin: "equivalent" if high < margin else "open"])
