# SPDX-License-Identifier: GPL-2.0-or-later
"""The module with the fault injector (make module INJECT=1), and how a test tells it what to do.

Documentation/fault-injection.md has the lines, src/engine/inject.rs the points.
"""

import dataclasses
import random

from marsvm import DiskSpec
from marsvm import Host
from marsvm import HostSpec
from marsvm import VmError
from marsvm import util

MODULE = util.KERNEL_BUILD / "inject" / "mars.ko"
DEATH = "mars: the fault injector lets this host die"
FILE = "/sys/kernel/debug/mars/inject"
MOUNT = "mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug"

MIB = 1 << 20


def spec(record: bool) -> HostSpec:
    """A machine with the injector; `record`: its disks show what a loss of power may leave."""
    if not MODULE.exists():
        raise VmError(f"{MODULE} is not built: run make module INJECT=1")
    disks = (
        DiskSpec("mars", 256 * MIB, ext4=True, record=record),
        DiskSpec("data", 72 * MIB, record=record),
    )
    return HostSpec(disks=disks, module=str(MODULE))


@dataclasses.dataclass(frozen=True)
class Point:
    """One line of the listing."""

    kind: str
    passed: int
    fired: int


def shell(*rules: str) -> str:
    """A command that gives these rules."""
    lines = "".join(f"{rule}\\n" for rule in rules)
    return f"{{ {MOUNT}; }} && printf '{lines}' > {FILE}"


def arm(host: Host, *rules: str) -> None:
    host.run(shell(*rules))


def reset(host: Host) -> None:
    """No rules any more, and all counters are 0."""
    arm(host, "reset")


def points(host: Host) -> dict[str, Point]:
    """All points of the module as they are now."""
    found = {}
    for line in host.run(f"{{ {MOUNT}; }} && cat {FILE}").stdout.splitlines():
        if line.startswith("# rules"):
            break
        if not line.startswith("#"):
            name, kind, passed, fired = line.split()
            found[name] = Point(kind, int(passed), int(fired))
    return found


def lose_cache(host: Host, rng: random.Random) -> str:
    """What a volatile cache had when the host died is gone, at random, on all recorded disks. The host is off."""
    said = []
    for disk in host.disks:
        if disk.spec.record:
            recording = disk.recording()
            cut = recording.cut(len(recording.entries), rng)
            cut.write(disk.path)
            said.append(f"{disk.spec.serial} {cut.lost} of {cut.at - cut.durable}")
    return ", ".join(said)
