"""The records of W&B's own files: LevelDB's log format, blocks of chunks of [crc32, length, kind, data]."""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from experiments.shell.files import write_whole
from experiments.tracking.loggers import HEADER

pb: Any = wandb_internal_pb2
BLOCK, CHUNK = 32768, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of chunk: a whole record, or a part of one
MOST_BYTES = 2**32  # of a file, which is read whole


def read_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, up to the torn end that a kill leaves.

    Raises ValueError for a file that is damaged anywhere else.
    """
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} must be a file of up to {MOST_BYTES >> 30} GB")
    data = path.read_bytes()
    if not HEADER.startswith(data[: len(HEADER)]):
        raise ValueError(f"{path} is no W&B record: it begins with {data[:7]!r}")
    position, parts = len(HEADER), b""
    while position + CHUNK.size <= len(data):
        if (left := BLOCK - position % BLOCK) < CHUNK.size:  # too short for a header: padding
            position += left
            continue
        checksum, length, kind = CHUNK.unpack_from(data, position)
        chunk = data[position + CHUNK.size : position + CHUNK.size + length]
        if len(chunk) < length or not any(data[position:]):
            return
        if zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum or not FULL <= kind <= LAST:
            raise ValueError(f"{path} is damaged at byte {position}")
        position, parts = position + CHUNK.size + length, chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(parts)
            yield record


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Writes a .wandb file."""
    data = bytearray(HEADER)
    for number, record in enumerate(records, 1):
        record.num = number
        rest, first = record.SerializeToString(), True
        while first or rest:
            if (left := BLOCK - len(data) % BLOCK) < CHUNK.size:
                data += bytes(left)
                left = BLOCK
            part, rest = rest[: left - CHUNK.size], rest[left - CHUNK.size :]
            kind = (FULL if first else LAST) if not rest else (FIRST if first else MIDDLE)
            data += CHUNK.pack(zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            first = False
    write_whole(path, lambda file: file.write(data))


def values(items: Any) -> dict[str, Any]:
    """What the items of a history, summary or config record say, nested keys as nested dicts."""
    tree: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = tree
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return tree
