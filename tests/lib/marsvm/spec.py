# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptions of machines. They are hashable: booted machines are reused by description."""

import dataclasses

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class DiskSpec:
    """A virtio disk of `size` bytes, found in the guest as /dev/disk/by-serial/<serial>.

    cache: "writeback" (the guest sees a volatile cache and must flush), "none" (the same, and
    past the host's page cache), "writethrough" (no volatile cache), "unsafe" (flushes ignored).
    ext4: comes with an empty ext4 file system.
    record: every write and flush is recorded on the host (format of dm-log-writes), from which
    marsvm.powercut makes the disk's possible contents after a loss of power.
    iops, bps: limits, for slow disks.
    """

    serial: str
    size: int = GIB
    cache: str = "writeback"
    ext4: bool = False
    record: bool = False
    discard: bool = True
    block: int = 512
    iops: int = 0
    bps: int = 0


def default_disks(mars=4 * GIB, data=GIB, raw=0):
    """vdb for /mars, vdc for data, and vdd without any purpose if `raw` says so."""
    disks = [DiskSpec("mars", mars, ext4=True), DiskSpec("data", data)]
    if raw:
        disks.append(DiskSpec("raw", raw))
    return tuple(disks)


@dataclasses.dataclass(frozen=True)
class HostSpec:
    """A machine. Disks appear as /dev/vdb, /dev/vdc, … in their order (vda is the root)."""

    cpus: int = 2
    mem: int = 1024
    disks: tuple = dataclasses.field(default_factory=default_disks)
    mtu: int = 1500
    append: str = ""
    # Another kernel than the stock one: (vmlinuz, image, initrd, mars.ko).
    kernel: tuple = ()
    # Another module than build/module/mars.ko: a path.
    module: str = ""

    def __post_init__(self):
        object.__setattr__(self, "disks", tuple(self.disks))
