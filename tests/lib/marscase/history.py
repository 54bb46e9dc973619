# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the contents of a device are a prefix of its history: the other half of history.rs, which writes it."""

import pathlib
import struct
import typing

SOURCE = pathlib.Path(__file__).with_name("history.rs")

BLOCK = 4096
MOST_BLOCKS = 16
_MASK = (1 << 64) - 1


def _random(seed: int, number: int) -> int:
    z = (seed + number * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def place(seed: int, number: int, total: int) -> tuple[int, int]:
    """First block and number of blocks of a write, on a device of `total` blocks."""
    r = _random(seed, number)
    start = r % total
    return start, min(1 + (r >> 40) % MOST_BLOCKS, total - start)


def contents(seed: int, number: int, total: int) -> bytes:
    """The device after the writes 1 … number."""
    owner = _owners(seed, number, total)
    return b"".join(_block(n, at) for at, n in enumerate(owner))


def _owners(seed: int, last: int, total: int) -> list[int]:
    owner = [0] * total
    for number in range(1, last + 1):
        start, count = place(seed, number, total)
        owner[start : start + count] = [number] * count
    return owner


def _block(number: int, at: int) -> bytes:
    return struct.pack("<QQ", number, at) * (BLOCK // 16) if number else bytes(BLOCK)


class NoPrefix(AssertionError):
    """The contents are no state that the device ever had."""


def prefix(image: typing.BinaryIO, size: int, seed: int) -> int:
    """The number of the last write that is in these contents, all before it being there, too; NoPrefix if some is not."""
    total = size // BLOCK
    found = []
    for at in range(total):
        data = image.read(BLOCK)
        number, _ = struct.unpack_from("<QQ", data)
        if data != _block(number, at):
            raise NoPrefix(f"block {at} is torn, or holds something that was never written there")
        found.append(number)
    last = max(found)
    owner = _owners(seed, last, total)
    wrong = [(at, have, want) for at, (have, want) in enumerate(zip(found, owner, strict=True)) if have != want]
    if wrong:
        raise NoPrefix(
            f"write {last} is there, but {len(wrong)} blocks are older than that "
            f"(block, write found, write expected): {wrong[:8]}"
        )
    return last


def holds(image: typing.BinaryIO, size: int, seed: int, least: int) -> int:
    """The number of the newest write in these contents; NoPrefix if any sector is older than after write `least`.

    Weaker than `prefix`: of the writes after `least`, any may be there, torn at sectors. So is a disk with a volatile cache.
    """
    total = size // BLOCK
    owner = _owners(seed, least, total)
    newest = 0
    for at in range(total):
        for sector in range(BLOCK // 512):
            data = image.read(512)
            number, _ = struct.unpack_from("<QQ", data)
            if data != _block(number, at)[:512]:
                raise NoPrefix(f"block {at}, sector {sector} holds something that was never written there")
            if number < owner[at]:
                raise NoPrefix(f"block {at}, sector {sector} has write {number}, but write {owner[at]} was flushed")
            if number:
                start, count = place(seed, number, total)
                if not start <= at < start + count:
                    raise NoPrefix(f"block {at} has write {number}, which was for {start}..{start + count}")
            newest = max(newest, number)
    return newest
