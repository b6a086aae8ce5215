"""Damage to bytes, quick and always the same for a seed: a million of them must not take long."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

LARGEST = (1 << 32) - 1
MARKS = (  # of MessagePack, each with what it claims to come
    b"\xdd" + struct.pack(">I", LARGEST),
    b"\xdf" + struct.pack(">I", LARGEST),
    b"\xdb" + struct.pack(">I", LARGEST),
    b"\xc6" + struct.pack(">I", LARGEST),
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\xcb\x7f\xf0" + b"\0" * 6,
    b"\xc7\xff\x01",
    b"\xd6\xff\0\0\0\1",
    b"\x91" * 2000,
    b"\x81\xa1x" * 600,
    b"\xc1",
    b"\xa2\xff\xfe",
    b"\xc0",
)


def damaged(seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yield samples without end, with bits flipped, cut, doubled, spliced, or with marks of MessagePack in them."""
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(1 + int(chance.random() * chance.random() * 4)):
            at = int(chance.random() * (len(data) + 1))
            chance.choice(_WAYS)(data, at, chance, seeds)
        yield bytes(data)


def _flip(data: bytearray, at: int, chance: random.Random, seeds: Sequence[bytes]) -> None:
    data[at : at + 1] = bytes(byte ^ 1 << int(chance.random() * 8) for byte in data[at : at + 1])


def _replace(data: bytearray, at: int, chance: random.Random, seeds: Sequence[bytes]) -> None:
    data[at : at + 1] = bytes((int(chance.random() * 256),))


def _mark(data: bytearray, at: int, chance: random.Random, seeds: Sequence[bytes]) -> None:
    data[at : at + int(chance.random() * 9)] = chance.choice(MARKS)


def _cut(data: bytearray, at: int, chance: random.Random, seeds: Sequence[bytes]) -> None:
    del data[at:]


def _double(data: bytearray, at: int, chance: random.Random, seeds: Sequence[bytes]) -> None:
    data[at:at] = data[at : at + int(chance.random() * 64)]


def _splice(data: bytearray, at: int, chance: random.Random, seeds: Sequence[bytes]) -> None:
    other = chance.choice(seeds)
    data[at:] = other[int(chance.random() * len(other)) :]


_WAYS = (_flip, _flip, _flip, _flip, _replace, _mark, _cut, _double, _splice)
