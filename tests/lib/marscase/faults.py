# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail on demand: a device mapper table over a real one, or scsi_debug."""

from marsvm import Host
from marsvm import wait_until

# What the rest of the kernel says about them; our own messages are judged as always.
NOISE = (
    "Buffer I/O error",
    "I/O error, dev",
    "critical (medium|target) error",
    "EXT4-fs",
    "JBD2",
    "Aborting journal",
    "lost (async|sync) page write",
)

FAILS = "flakey {dev} 0 0 3600 1 error_writes"
UNREADABLE = "flakey {dev} 0 0 3600 1 error_reads"
DEAD = "error"
GOOD = "linear {dev} 0"


class Mapped:
    """A disk behind a table that can be changed while it is used. Good at first, and equal to the disk below."""

    def __init__(self, host: Host, serial: str):
        self.host, self.lower = host, host.disk(serial).dev
        self.name = f"m-{serial}"
        self.dev = f"/dev/mapper/{self.name}"
        host.allow(*NOISE)
        self.sectors = int(host.run(f"blockdev --getsz {self.lower}").out)
        self.make()

    def make(self) -> None:
        """Also after a restart."""
        self.host.run("modprobe -a dm-mod dm-flakey")
        self.host.run(f"dmsetup create {self.name} --table '0 {self.sectors} {GOOD.format(dev=self.lower)}' && dmsetup mknodes")

    def _table(self, lines: str) -> None:
        # Nothing is flushed for this, as nothing is when a disk fails.
        self.host.run(
            f"printf '{lines}' | dmsetup load {self.name} && "
            f"dmsetup suspend --noflush --nolockfs {self.name}; dmsetup resume {self.name}"
        )

    def be(self, target: str) -> None:
        self._table(f"0 {self.sectors} {target.format(dev=self.lower)}\\n")

    def only(self, target: str, extents) -> None:
        """Fails in some places only: (first sector, number of sectors), ascending."""
        lines, at = "", 0
        for first, count in [*extents, (self.sectors, 0)]:
            if first > at:
                lines += f"{at} {first - at} linear {self.lower} {at}\\n"
            if count:
                lines += f"{first} {count} {target.format(dev=self.lower)}\\n"
            at = first + count
        self._table(lines)


class ScsiDebug:
    """A disk in memory with a volatile cache, whose commands can be made to fail."""

    FLUSH = (0x35, 0x91)

    def __init__(self, host: Host, mib: int = 96):
        self.host = host
        host.allow(*NOISE)
        host.run(
            f"modprobe sd_mod && modprobe scsi_debug dev_size_mb={mib} delay=0 && "
            "{ mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug; }"
        )
        wait_until(lambda: host.run("ls -d /sys/block/sd*", check=False).ok, 20, "the disk is found")
        found = host.run("basename /sys/block/sd*").out
        self.dev = f"/dev/{found}"
        self._errors = host.run("ls /sys/kernel/debug/scsi_debug/*/error").out
        assert host.run(f"cat /sys/block/{found}/queue/write_cache").out == "write back"

    def fail(self, *opcodes: int) -> None:
        """These commands fail with a hardware error from now on."""
        for op in opcodes:
            self.host.run(f"echo '2 1 {op:#x} 0 0 0x2 0x4 0x44 0x0' > {self._errors}")

    def heal(self, *opcodes: int) -> None:
        for op in opcodes:
            self.host.run(f"echo '- 2 {op:#x}' > {self._errors}")

    def forget_writes(self, on: bool) -> None:
        """Writes are complete, but not done: what a cache does that is lost."""
        self.host.run(f"echo {int(on)} > /sys/bus/pseudo/drivers/scsi_debug/fake_rw")

    def digest(self, mib: int) -> str:
        return self.host.run(f"dd if={self.dev} bs=1M count={mib} iflag=direct status=none | sha256sum", timeout=60).out
