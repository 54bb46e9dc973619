# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the recovery of a long log tail takes, beside the time that writing as much takes the raw disk.

The write-back of one block is held up while the load runs, so that the replay link stays in front of everything else. Then
the power is cut, the data disk is set back to what it was before (nothing of the load is on it), and the next boot has to
bring all of it from the log to the disk before the device appears. Afterwards the disk must have what the device had.
"""

import dataclasses
import hashlib
import json
import os
import re
import typing

import marscluster
from marsvm import DiskSpec
from marsvm import Host
from marsvm import HostSpec

from . import stats
from .targets import PERIODIC_TICK

GIB = 1 << 30
MIB = 1 << 20
DEVICE = "/dev/mars/data"
# What the resource has as its disk: the disk itself during recovery, a table over it under the load.
BACKING = "/dev/backing"
# The load lies behind this; the block that is held up before.
START = MIB
HELD = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """What the tail consists of."""

    name: str
    options: tuple[str, ...]


CASES = (
    Case("sequential", ("--rw=write", "--bsrange=64k-1m", "--iodepth=4")),
    Case("random", ("--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k", "--norandommap", "--iodepth=16")),
)


@dataclasses.dataclass(frozen=True)
class Recovery:
    """One recovery."""

    case: str
    log_mib: float
    # According to the module: from the first byte of the log that is read until all is durable on the disk.
    seconds: float
    # From modprobe until the device is there.
    device_s: float
    # Sequential writing and a flush, before and after.
    raw_mib_s: float
    mib_s: float
    ratio: float


def machine(mib: int, disk_mib_s: int) -> HostSpec:
    """/mars is so large that the tail is one log; it is sparse. `disk_mib_s`: a limit for each disk; 0: none."""
    bps = disk_mib_s * MIB
    disks = (
        DiskSpec("mars", 40 * mib * MIB, ext4=True, bps=bps),
        DiskSpec("data", mib * MIB + START, bps=bps),
        DiskSpec("raw", mib * MIB, bps=bps),
    )
    return HostSpec(cpus=2, mem=1024, disks=disks, append=PERIODIC_TICK)


PATTERN = os.urandom(MIB)


def fill(host: Host, *serials: str) -> None:
    """Blocks instead of holes, which are another thing to read and to write; always the same. Only while nothing uses the disks."""
    for serial in serials:
        disk = host.disk(serial)
        with open(disk.path, "r+b") as file:
            for _ in range(disk.spec.size // MIB):
                file.write(PATTERN)


def digest(host: Host) -> str:
    """Of the disk, as the file on the host has it."""
    found = hashlib.md5()
    with open(host.disk("data").path, "rb") as file:
        file.seek(START)
        while piece := file.read(MIB):
            found.update(piece)
    return found.hexdigest()


class Bed:
    """The machine with its resource. Between two recoveries the module is not loaded."""

    def __init__(self, host: Host, mib: int):
        self.host, self.mib = host, mib
        self.lower = host.disk("data").dev
        self.sectors = host.disk("data").spec.size // 512

    def prepare(self) -> None:
        """Once."""
        fill(self.host, "data", "raw")
        self._held()
        marscluster.setup_cluster([self.host])
        marscluster.create_resource(self.host, disk=BACKING)
        self._stop()

    def _stop(self) -> None:
        self.host.run("marsadm down all && rmmod mars", timeout=120)

    def _held(self) -> None:
        """The table over the disk, which holds nothing up yet."""
        self.host.run(
            "modprobe -a dm-mod dm-delay && "
            f"dmsetup create held --table '0 {self.sectors} linear {self.lower} 0' && dmsetup mknodes && "
            f"ln -sfn /dev/mapper/held {BACKING}"
        )

    def _hold(self) -> None:
        """Writes to the first block take an hour from now on; flushes do not wait for them."""
        lines = (
            f"0 {HELD} delay {self.lower} 0 0 {self.lower} 0 3600000 {self.lower} 0 0\\n"
            f"{HELD} {self.sectors - HELD} linear {self.lower} {HELD}\\n"
        )
        self.host.run(f"printf '{lines}' | dmsetup load held && dmsetup suspend --nolockfs held; dmsetup resume held")

    def raw(self) -> float:
        """MiB per second of the raw disk."""
        done = self.host.run(
            f"fio --name=raw --filename={self.host.disk('raw').dev} --direct=1 --ioengine=libaio --rw=write --bs=1m "
            f"--iodepth=4 --size={self.mib}m --end_fsync=1 --output-format=json",
            timeout=60 + self.mib,
        ).stdout
        (job,) = json.loads(done[done.index("{") :])["jobs"]
        return self.mib / (job["write"]["runtime"] / 1000)

    def measure(self, case: Case, seed: int) -> Recovery:
        """A load, a loss of power, a recovery."""
        host = self.host
        fill(host, "data")
        if not host.run(f"[ -e {BACKING} ]", check=False).ok or not host.run("[ -e /dev/mapper/held ]", check=False).ok:
            self._held()
        host.run(f"ln -sfn /dev/mapper/held {BACKING}")
        marscluster.load_module(host)
        host.run("marsadm up all && marsadm wait-resource data is-device-on --timeout 60", timeout=130)
        self._hold()
        host.run(f"dd if=/dev/urandom of={DEVICE} bs=4k count=1 oflag=direct conv=fsync status=none")
        host.run(
            f"fio --name=load --filename={DEVICE} --direct=1 --ioengine=libaio --offset={START} --size={self.mib}m "
            f"--io_size={self.mib}m --end_fsync=1 --randseed={seed} {' '.join(case.options)} --output=/root/load",
            timeout=120 + self.mib,
        )
        wanted = host.run(f"dd if={DEVICE} bs=1M skip=1 iflag=direct status=none | md5sum", timeout=120 + self.mib).out[:32]
        host.power_cut()
        fill(host, "data")
        assert digest(host) != wanted

        host.boot()
        host.mount_mars()
        host.run(f"ln -sfn {self.lower} {BACKING}")
        before = self.raw()
        start, end = host.run(
            f"date +%s.%N; modprobe mars; until [ -b {DEVICE} ]; do sleep 0.1; done; date +%s.%N", timeout=120 + self.mib
        ).out.split()
        said = host.run("dmesg | grep -o 'recovered [0-9]* bytes of log in [0-9]* ms'").out
        after = self.raw()
        log, ms = (int(n) for n in re.findall(r"\d+", said))
        assert log >= self.mib * MIB, f"only {log} bytes were left to recover"
        self._stop()
        assert digest(host) == wanted, "the disk has something else after recovery than the device had before"
        raw = (before + after) / 2
        rate = self.mib / (ms / 1000)
        return Recovery(case.name, log / MIB, ms / 1000, float(end) - float(start), raw, rate, rate / raw)


def summary(found: typing.Sequence[Recovery], disk_mib_s: int) -> list[dict[str, typing.Any]]:
    """For latest.json: one entry for each case."""
    out = []
    for case in CASES:
        if ones := [r for r in found if r.case == case.name]:
            row: dict[str, typing.Any] = {"case": case.name, "repetitions": len(ones), "disk_limit_mib_s": disk_mib_s}
            for field in ("log_mib", "seconds", "device_s", "raw_mib_s", "mib_s", "ratio"):
                row[field] = stats.Spread.of(getattr(r, field) for r in ones).as_json()
            out.append(row)
    return out
