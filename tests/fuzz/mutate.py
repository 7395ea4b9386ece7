"""Ways to break bytes, and the check that an error says which file or argument it is about."""

import random
import struct
from collections.abc import Callable

INTERESTING = [0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]


def refused(error: Exception, *names: str) -> str:
    """ "refused", if the message names what is wrong."""
    message = str(error)
    if not any(name in message for name in names):
        raise AssertionError(f"the error names none of {', '.join(names)}: {type(error).__name__}: {message[:200]}")
    return "refused"


def _bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 2, 4, 16])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _bytes(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 2, 4, 16, 64])):
        data[rng.randrange(len(data))] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray) -> None:
    form = rng.choice(["<H", ">H", "<I", ">I"])
    packed = struct.pack(form, rng.choice(INTERESTING) % 256 ** struct.calcsize(form))
    # Headers are where numbers count: half of them go to the first 200 bytes
    at = rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))
    data[at : at + len(packed)] = packed


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 2, 4, 100])]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    part = data[at : at + rng.choice([1, 4, 40, 400])]
    data[at:at] = part * rng.choice([1, 2, 50])


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice([1, 2, 4, 64]))


def _swap(rng: random.Random, data: bytearray) -> None:
    a, b, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.choice([1, 4, 12, 64])
    if abs(a - b) >= size and max(a, b) + size <= len(data):
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


WAYS: list[Callable[[random.Random, bytearray], None]] = [
    *(_bits, _bytes, _number, _number, _cut, _remove, _repeat, _insert, _swap)
]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The bytes broken in one to four ways."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not changed:
            break
        rng.choice(WAYS)(rng, changed)
    return bytes(changed)
