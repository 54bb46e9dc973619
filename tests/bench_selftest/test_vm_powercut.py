# SPDX-License-Identifier: GPL-2.0-or-later
"""Losses of power made from recordings: what was flushed is there, the rest may not be."""

import dataclasses
import random
import struct

from marsvm import default_disks
from marsvm.powercut import DISCARD
from marsvm.powercut import FLUSH
from marsvm.powercut import FUA
from marsvm.powercut import MAGIC
from marsvm.powercut import MARK
from marsvm.powercut import Recording

MARS, DATA = default_disks()
DISKS = (MARS, dataclasses.replace(DATA, record=True))


def make_log(path, requests):
    """requests: (sector, flags, data) or (sector, DISCARD, count) or (0, MARK, text)."""
    out = struct.pack("<QQQI", MAGIC, 1, 0, 512).ljust(512, b"\0")
    for sector, flags, data in requests:
        if flags & MARK:
            head = struct.pack("<QQQQ", 0, 0, flags, len(data)) + data.encode()
            out += head.ljust(512, b"\0")
        elif flags & DISCARD:
            out += struct.pack("<QQQQ", sector, data, flags, 0).ljust(512, b"\0")
        else:
            head = struct.pack("<QQQQ", sector, len(data) // 512, flags, 0 if not data else len(data))
            out += head.ljust(512, b"\0") + data
    path.write_bytes(out + bytes(2048))
    return Recording(path)


def head(path, length):
    with open(path, "rb") as f:
        return f.read(length)


def blocks(path):
    return "".join(chr(b or ord(".")) for b in path.read_bytes()[::512])


def test_a_cut_keeps_the_flushed_and_any_part_of_the_rest(tmp_path):
    log = make_log(
        tmp_path / "log",
        [
            (0, 0, b"a" * 512),
            (1, 0, b"b" * 512),
            (0, FLUSH, b""),
            (0, MARK, "half"),
            (2, 0, b"c" * 512),
            (3, FUA, b"d" * 512),
            (4, 0, b"e" * 2048),
            (0, DISCARD, 1),
        ],
    )
    assert len(log.entries) == 8 and log.flushes() == [3] and log.marks() == {"half": 4}
    image = tmp_path / "image"
    log.cut(8).write(image)
    assert blocks(image) == ".bcdeeee"
    log.cut(5).write(image, 512 * 8)
    assert blocks(image) == "abc....."

    rng = random.Random(1)
    seen = set()
    for _ in range(300):
        log.cut(8, rng).write(image, 512 * 8)
        seen.add(blocks(image))
    assert all(s[1] == "b" and s[3] == "d" for s in seen)
    assert {s[2] for s in seen} == {"c", "."} and {s[0] for s in seen} == {"a", "."}
    assert {s[4:] for s in seen} >= {"eeee", "....", "e...", "...e", ".ee."}


def test_ext4_s_superblock_is_there_as_a_whole_or_not_at_all(tmp_path):
    first = b"s" * 0x38 + b"\x53\xef" + b"s" * (512 - 0x3A)
    log = make_log(tmp_path / "log", [(0, 0, b"a" * 1024 + first + b"s" * 512 + b"d" * 2048)])
    image = tmp_path / "image"
    rng = random.Random(1)
    seen = set()
    for _ in range(600):
        log.cut(1, rng).write(image, 4096)
        seen.add(blocks(image))
    assert {s[2:4] for s in seen} == {"ss", ".."}
    assert {"aassdddd", "........", "a.......", ".ass....", "..ssddd.", "....d..."} <= seen


def test_states_of_a_real_machine(mars_hosts, tmp_path):
    (a,) = mars_hosts(1, disks=DISKS)
    disk = a.disk("data")
    write = "head -c 4096 /dev/zero | tr '\\0' {0} | dd of=/dev/vdc bs=4k seek={1} oflag=direct {2} status=none"
    a.run(write.format("A", 0, "conv=fsync"))
    flushed = disk.recording().update()
    for i in range(1, 6):
        a.run(write.format("B", i, ""))
    a.power_cut()

    log = disk.recording()
    assert len(log.entries) >= flushed + 5
    image = tmp_path / "image"
    rng = random.Random(2)
    lost = 0
    for cut in log.cuts(rng, 30, first=flushed):
        cut.write(image)
        assert image.stat().st_size == disk.spec.size
        data = head(image, 6 * 4096)
        assert data[:4096] == b"A" * 4096, cut
        lost += data[4096:].count(b"B") < 5 * 4096
    assert lost

    # The machine goes on with one of these states, and its recording with it.
    disk.load(image)
    a.boot()
    assert a.run("head -c 1 /dev/vdc").out == "A"
    assert head(disk.recording().base, 1) == b"A"
