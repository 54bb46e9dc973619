# SPDX-License-Identifier: GPL-2.0-or-later
"""What a loss of power leaves of a host that has log and data on one disk, and whether MARS makes the truth out of it.

A `Workload` runs on a machine whose only disk is recorded, and notes what was acknowledged when. A `Judge` is a second
machine with the same name that gets one possible state of the disk after the other, without a restart in between:
recovery, then everything that was acknowledged must be there, and nothing that never was.

Log and data lie on one disk because two recordings can't be cut at the same instant.
"""

import bisect
import dataclasses
import random
import re
import time

from marsvm import DiskSpec
from marsvm import Host
from marsvm import HostSpec
from marsvm import program
from marsvm import wait_until
from marsvm.powercut import Cut
from marsvm.powercut import Recording

from . import Writer
from . import history

MIB = 1 << 20
MARS = 192 * MIB
FILES = 40 * MIB
BLOCKS = 4 * MIB
FLUSH_EVERY = 7
# Not too seldom: on a fast machine the logs of a second fill a quarter of /mars.
_ROTATE_EVERY = 0.6

# Parts of the disk: device mapper passes flushes on, and needs no table on the disk. There is no udev.
_PARTS = {"mars": (0, MARS), "files": (MARS, FILES), "blocks": (MARS + FILES, BLOCKS)}
SIZE = MARS + FILES + BLOCKS


def spec(record: bool) -> HostSpec:
    return HostSpec(disks=(DiskSpec("one", SIZE, record=record),))


def _maps(host: Host) -> str:
    dev = host.disk("one").dev
    lines = [
        f"DM_DISABLE_UDEV=1 dmsetup create {name} --table '0 {size // 512} linear {dev} {start // 512}'"
        for name, (start, size) in _PARTS.items()
    ]
    return " && ".join(lines)


def start_command(host: Host) -> str:
    """Like the start of a system: the module takes up by itself what the tree says."""
    return f"{_maps(host)} && mkdir -p /mars && mount /dev/mapper/mars /mars && modprobe mars"


_STOP = (
    "marsadm down all --timeout 60 && rmmod mars && umount /mars && sync && DM_DISABLE_UDEV=1 dmsetup remove mars files blocks && "
    "blockdev --flushbufs /dev/vdb"
)


# No data, only blocks: nothing of it is in the recording.
# Not until there is no room: as long as logs are removed meanwhile, that would take thousands of files.
_FILL = (
    "for s in 64M 16M 4M 1M 256k 64k 16k 4k; do for n in 1 2 3 4 5 6; do f=/mars/filler$s.$n.$$; "
    "fallocate -l $s $f 2>/dev/null || { rm -f $f; break; }; done; done; sync"
)


def _devices(seconds: int) -> str:
    """Waits for both devices, that is for the end of the recovery."""
    return (
        f"for i in $(seq {seconds * 20}); do [ -b /dev/mars/files ] && [ -b /dev/mars/blocks ] && break; sleep 0.05; done; "
        "[ -b /dev/mars/files ] && [ -b /dev/mars/blocks ]"
    )


@dataclasses.dataclass(frozen=True)
class Acknowledged:
    """What had been reported as durable when the disk had seen `at` requests."""

    at: int
    files: dict[str, str]
    block_writes: int


class Workload:
    """Files with an fsync each, a raw device with a known history, load without fsync, rotation and deletion of logs."""

    def __init__(self, host: Host, seed: int):
        self.host, self.seed = host, seed
        host.run(
            f"{_maps(host)} && mke2fs -q -t ext4 -J size=8 -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/mars && "
            "mkdir -p /mars && mount /dev/mapper/mars /mars && modprobe mars",
            timeout=60,
        )
        host.run(
            f"marsadm create-cluster --ip {host.ip} && marsadm create-resource files /dev/mapper/files --timeout 60 && "
            f"marsadm create-resource blocks /dev/mapper/blocks --timeout 60 && {_devices(60)} && "
            "mke2fs -q -t ext4 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 /dev/mars/files",
            timeout=200,
        )
        host.run(_STOP, timeout=100)
        host.shutdown()

    def record(self, seconds: float, full: bool = False) -> tuple[Recording, list[Acknowledged]]:
        """Runs it, then cuts the power. Gives what the disk saw, and what was acknowledged at which point of it.

        `full`: amid it, /mars has no free byte until MARS has stopped logging, and then room until it logs again.
        """
        host = self.host
        host.boot()
        recording = host.disk("one").recording()
        host.put(program.build(history.SOURCE), "/root/history", 0o755)
        host.run(
            f"{start_command(host)} && marsadm up all --timeout 60 && {_devices(60)} && mkdir -p /mnt && mount /dev/mars/files /mnt",
            timeout=100,
        )
        # Both at the same time: the log of one resource must not depend on that of the other.
        blocks = host.start(f"/root/history /dev/mars/blocks {BLOCKS} {self.seed} 1 {FLUSH_EVERY}", check=False)
        load = host.start(
            "mkdir /mnt/load && cd /mnt/load && while :; do head -c $((RANDOM * 20)) /dev/urandom > f$((RANDOM % 9)); sleep 0.1; done",
            check=False,
        )
        writer = Writer(host, "files")
        known = [Acknowledged(recording.update(), {}, 0)]

        def look() -> None:
            writer.look()
            text = blocks.output()[0]
            flushed = [int(n) for n in re.findall(r"^flushed (\d+)\n", text, re.M)]
            # Counted after it was heard: whatever is cut from here on has to have it.
            at = recording.update()
            known.append(Acknowledged(at, dict(writer.safe), flushed[-1] if flushed else 0))

        def go_on(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                look()

        def said(message: str) -> bool:
            look()
            log = host.log()
            return all(f"{name}: {message}" in log for name in ("files", "blocks"))

        if full:

            def fill() -> bool:
                host.run(_FILL, timeout=60)
                return said("EMERGENCY MODE")

            # Each once at least: writes are so fast that the logs may fill /mars again.
            go_on(seconds / 4)
            wait_until(fill, 90, "both resources are in emergency mode", 0)
            go_on(seconds / 4)
            host.run("rm /mars/filler*", timeout=60)
            wait_until(lambda: said("emergency mode is over"), 60, "both resources log again", 0)
            go_on(seconds / 4)
        else:
            for _ in range(round(seconds / _ROTATE_EVERY)):
                go_on(_ROTATE_EVERY)
                host.run("marsadm log-rotate all; marsadm log-delete-all all")
            go_on(_ROTATE_EVERY)
        for job in (blocks, load, writer.job):
            assert job.running, f"it has ended early: {job.wait(check=False)}"
        assert full or "EMERGENCY MODE" not in host.log(), "/mars was full by accident: then what is left is no prefix; rotate more often"
        host.power_cut()
        recording.update()
        return recording, known


def acknowledged(known: list[Acknowledged], at: int) -> Acknowledged:
    """What a disk cut after `at` requests must have; not before the first of `known`."""
    return known[bisect.bisect_right([k.at for k in known], at) - 1]


def states(recording: Recording, rng: random.Random, count: int, first: int):
    """`count` possible contents of the disk, ascending: one half cut right at a flush, with everything before it and
    nothing else, the other half at any request, with a part of what no flush covers."""
    flushes = [f for f in recording.flushes() if f >= first]
    exact = rng.sample(flushes, min(len(flushes), count // 2))
    at_random = [rng.randint(first, len(recording.entries)) for _ in range(count - len(exact))]
    for at in sorted(exact + at_random):
        yield recording.cut(at) if at in exact else recording.cut(at, rng)


class Judge:
    """A machine that recovers from one state after the other."""

    def __init__(self, host: Host, seed: int):
        self.host, self.seed = host, seed

    def load(self, cut: Cut) -> None:
        cut.write(self.host.disk("one").path)

    def recover(self, need: Acknowledged, what: str, ordered: bool = True) -> int:
        """Recovers from the state that was loaded, and looks at everything. Gives the last write of the raw device.

        `ordered`: what was not flushed must be a prefix of what was written.
        """
        host = self.host
        start = host.run(f"{start_command(host)} && {_devices(60)}", check=False, timeout=120)
        assert start.ok, f"{what}: no recovery: {start}\n{host.run('marsadm view').out}\n{host.dmesg()[-3000:]}"
        look = host.run(
            "mkdir -p /mnt && mount /dev/mars/files /mnt && "
            "{ [ ! -d /mnt/files ] || (cd /mnt/files && find . -type f -print0 | xargs -0r sha256sum); } && umount /mnt && "
            "e2fsck -f -n /dev/mars/files >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }",
            check=False,
            timeout=60,
        )
        assert look.ok, f"{what}: the file system is damaged: {look}"
        found = {name: digest for digest, name in (line.split(None, 1) for line in look.stdout.splitlines())}
        # A file that was being replaced has the old or the new contents: it is not looked at (Writer).
        gone = [n for n in need.files if f"./{n}" not in found]
        assert not gone, f"{what}: these files had been synced and are gone: {gone}"
        other = [n for n, d in need.files.items() if found[f"./{n}"] != d and int(n[1:]) % 4 != 1]
        assert not other, f"{what}: these files had been synced and have other contents: {other}"
        stop = host.run(_STOP, check=False, timeout=100)
        assert stop.ok, f"{what}: {stop}"
        # Everything is written back: the disk itself is the device now.
        with open(host.disk("one").path, "rb") as image:
            image.seek(_PARTS["blocks"][0])
            if not ordered:
                return history.holds(image, BLOCKS, self.seed, need.block_writes)
            last = history.prefix(image, BLOCKS, self.seed)
        assert last >= need.block_writes, f"{what}: write {need.block_writes} was flushed, but the last one is {last}"
        return last
