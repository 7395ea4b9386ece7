"""A right answer to each exercise, and wrong ones."""


def output_side(side, depth):
    for _ in range(depth):
        side -= 4
        if side % 2:
            return None
        side //= 2
    side -= 4
    for _ in range(depth):
        side = 2 * side - 4
    return side


def never_refusing(side, depth):
    for _ in range(depth):
        side = (side - 4) // 2
    side -= 4
    for _ in range(depth):
        side = 2 * side - 4
    return side


a = (684, [500, 692, 316])
b = ([508, 524, 588, 620], [[508, 512, 524, 588, 620], [588], [570, 600], 588])
c = (output_side, [never_refusing, lambda side, depth: side - 184, lambda side: 388])
