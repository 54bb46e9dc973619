# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk may contain after a loss of power, from a recording of its writes.

Killing a machine keeps what it wrote and never flushed, since the host's page cache survives. Here
the writes were recorded in their order (DiskSpec.record, or dm-log-writes in a guest: the format is
the same), and any state is built that a real disk may be left in: everything up to some flush,
and of the writes after it, until the cut, an arbitrary part, each of them whole, torn or missing.
Only ext4's superblock is never torn: see Recording.splits_superblock.

QEMU logs a request when it has completed, so a write that completes while a flush is under way
counts as flushed by it. dm-log-writes in the guest is stricter there.

    log = disk.recording()                  # after host.power_cut()
    for cut in log.cuts(random.Random(7), 20):
        cut.write(path)                     # the image of this state
"""

import bisect
import dataclasses
import os
import struct

from .disks import copy_data
from .errors import VmError

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512


@dataclasses.dataclass(frozen=True)
class Entry:
    """One request: `offset`, `length` in bytes of the disk; its data lie at `data` in the log."""

    offset: int
    length: int
    flags: int
    data: int
    mark: str = ""


class Recording:
    """The log file `path`; `base` is what the disk contained when the recording began."""

    def __init__(self, path, base=None):
        self.path = path
        self.base = base
        self.entries = []
        self._next = None
        self._unit = 0
        self.update()

    def update(self):
        """Reads what was recorded meanwhile; gives the number of requests so far.

        Taken when a guest has said that something is durable, it is a mark: a state cut there or
        later has to contain it.
        """
        with open(self.path, "rb") as f:
            if self._next is None:
                head = f.read(28)
                if len(head) < 28 or head == bytes(28):
                    return 0
                magic, version, _count, self._unit = struct.unpack("<QQQI", head)
                if magic != MAGIC or version != 1 or self._unit < SECTOR:
                    raise VmError(f"{self.path} is not a recording of writes")
                self._next = self._unit
            while True:
                f.seek(self._next)
                head = f.read(self._unit)
                if len(head) < 32:
                    break
                sector, count, flags, data_len = struct.unpack_from("<QQQQ", head)
                # The superblock's count lags behind; past the end there are zeroes.
                if not (count or flags or data_len):
                    break
                data = self._next + self._unit
                if flags & MARK:
                    mark = head[32:].split(b"\0", 1)[0].decode(errors="replace")
                    self.entries.append(Entry(0, 0, flags, data, mark))
                    self._next = data
                    continue
                length = count * self._unit
                self.entries.append(Entry(sector * self._unit, length, flags, data))
                self._next = data if flags & DISCARD else data + length
        return len(self.entries)

    def splits_superblock(self, entry, sector):
        """Whether a tear before this sector of `entry` parts the two sectors of an ext4 superblock.

        ext4 needs them written at once: it writes its superblock unflushed half a minute after each
        mount, trusting its journal, but looks at the superblock's checksum before it has a journal. The
        half of it on a disk cannot be mounted, whatever lies on the file system: e2fsck repairs it.
        """
        if not 0 < sector < entry.length // SECTOR or entry.flags & DISCARD:
            return False
        with open(self.path, "rb") as f:
            f.seek(entry.data + (sector - 1) * SECTOR + 0x38)
            return f.read(2) == b"\x53\xef"

    def flushes(self):
        """Numbers of requests after which everything before them is durable."""
        return [i for i, e in enumerate(self.entries, 1) if e.flags & FLUSH]

    def marks(self):
        """dm-log-writes' marks: {text: number of requests}."""
        return {e.mark: i for i, e in enumerate(self.entries, 1) if e.flags & MARK}

    def cut(self, at, rng=None, torn=True):
        """The state when power fails after `at` requests have reached the disk's cache.

        Without `rng` all of them survive; with it, of those that no flush covers, any part.
        """
        return Cut(self, at, rng, torn)

    def cuts(self, rng, count, first=0):
        """`count` states in ascending order, cut at random requests from `first` on."""
        total = len(self.entries)
        for at in sorted(rng.randint(min(first, total), total) for _ in range(count)):
            yield self.cut(at, rng)


class Cut:
    """One possible state. `pieces` are the (entry, start, length) that reached the medium."""

    def __init__(self, log, at, rng, torn):
        self.log = log
        self.at = at
        flushes = log.flushes()
        n = bisect.bisect_right(flushes, at)
        self.durable = flushes[n - 1] if n else 0
        self.lost = 0
        self.pieces = []
        for i, entry in enumerate(log.entries[:at], 1):
            if not entry.length:
                continue
            if rng is None or i <= self.durable or entry.flags & FUA:
                self.pieces.append((entry, 0, entry.length))
                continue
            self._maybe(entry, rng, torn)

    def _maybe(self, entry, rng, torn):
        fate = rng.random()
        sectors = entry.length // SECTOR
        if fate < 0.45:
            self.pieces.append((entry, 0, entry.length))
        elif fate < 0.6 and torn and sectors > 1:
            # One run of sectors made it.
            a, b = sorted(n + self.log.splits_superblock(entry, n) for n in (rng.randint(0, sectors), rng.randint(0, sectors)))
            if b > a:
                self.pieces.append((entry, a * SECTOR, (b - a) * SECTOR))
            self.lost += 1
        else:
            self.lost += 1

    def __repr__(self):
        return f"<cut after {self.at} requests, {self.durable} flushed, {self.lost} lost>"

    def write(self, path, size=None):
        """Makes the image file."""
        if size is None:
            size = os.stat(self.log.base).st_size if self.log.base else 0
        end = max((e.offset + e.length for e, _, _ in self.pieces), default=0)
        with open(path, "wb") as f:
            f.truncate(max(size, end))
        if self.log.base:
            copy_data(self.log.base, path)
        with open(self.log.path, "rb") as src, open(path, "r+b") as dst:
            for entry, start, length in self.pieces:
                if entry.flags & DISCARD:
                    # What a discarded range reads as is the disk's choice; zeroes, like QEMU's.
                    _zero(dst, entry.offset + start, length)
                    continue
                data = os.pread(src.fileno(), length, entry.data + start)
                os.pwrite(dst.fileno(), data, entry.offset + start)


def _zero(file, offset, length):
    block = bytes(1 << 20)
    while length:
        n = min(length, len(block))
        os.pwrite(file.fileno(), block[:n], offset)
        offset += n
        length -= n
