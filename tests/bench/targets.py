# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: the raw disk, a MARS resource, a DRBD resource with protocol A or C.

All of them exist at the same time in the same two machines, each on disks of its own of the same size; only one is ever
under load.
"""

import re
import time

import marscluster
from marscluster import LogPos
from marsvm import DiskSpec
from marsvm import Host
from marsvm import HostSpec
from marsvm import wait_until

GIB = 1 << 30
MIB = 1 << 20


def disks(size: int, log_size: int) -> tuple[DiskSpec, ...]:
    """Log and data of MARS, the raw disk, data and metadata of DRBD."""
    return (
        DiskSpec("mars", log_size, ext4=True),
        DiskSpec("data", size),
        DiskSpec("raw", size),
        DiskSpec("drbd", size),
        DiskSpec("drbdmeta", 128 * MIB),
    )


# To set a timer is cheap on real processors, and a long way through QEMU's devices on emulated ones: a fifth of all that the
# machines did. So the clock ticks periodically, for all targets alike.
PERIODIC_TICK = "nohz=off highres=off"


def machine(size: int, log_size: int) -> HostSpec:
    return HostSpec(cpus=2, mem=1024, disks=disks(size, log_size), append=PERIODIC_TICK)


class Target:
    """One column of the tables. The first host is primary, the second one holds the replica."""

    label: str
    # Serial of the disk below the replica.
    disk: str

    def __init__(self, name: str, hosts: list[Host]):
        self.name = name
        self.hosts = hosts
        self.primary, self.secondary = hosts

    device: str

    def prepare(self) -> None:
        """Sets it up, once."""

    def select(self) -> None:
        """Just before it is measured."""

    def settle(self, timeout: float = 300) -> float:
        """Until nothing goes on any more; seconds until the replica was level."""
        return 0.0

    def clean(self) -> None:
        """Between repetitions: gives space back."""

    def tell_state(self) -> str:
        """For messages about failures."""
        return ""


class Raw(Target):
    label = "raw disk"
    disk = "raw"

    @property
    def device(self) -> str:
        return self.primary.disk("raw").dev


class Mars(Target):
    label = "MARS"
    disk = "data"
    device = "/dev/mars/data"

    def __init__(self, name: str, hosts: list[Host], buffer_mb: int):
        super().__init__(name, hosts)
        self.buffer_mb = buffer_mb

    def prepare(self) -> None:
        # The buffer gets its size when the device appears.
        marscluster.setup_cluster(self.hosts, write_buffer_mb=self.buffer_mb)
        marscluster.create_resource(self.primary)
        marscluster.join_resource(self.secondary)
        marscluster.wait_synced(self.hosts, timeout=300)

    def settle(self, timeout: float = 300) -> float:
        start = time.monotonic()
        end = marscluster.durable_end(self.primary)
        asked = time.monotonic() - start - marscluster.state.PUBLISHED_WITHIN
        level = marscluster.wait_replayed(self.secondary, end, timeout=timeout)
        wait_until(lambda: marscluster.member(self.primary).write_back == 0, timeout, "write-back on the primary")
        return max(0.0, asked) + level

    def clean(self) -> None:
        self.primary.run("marsadm log-rotate data")
        number = marscluster.durable_end(self.primary).number
        marscluster.wait_replayed(self.secondary, LogPos(number, 0, ""), timeout=120)
        for host in self.hosts:
            host.run("marsadm log-delete-all data", timeout=60)
        # What is deleted shall not fill the memory of the machine on which the disks are.
        time.sleep(1)
        for host in self.hosts:
            host.run("fstrim /mars", timeout=60, check=False)

    def tell_state(self) -> str:
        return "\n".join(h.run("marsadm view all", check=False).stdout for h in self.hosts if h.is_on)


# Tuned in good faith: what the manual recommends for throughput; never "no disk-flushes", since MARS flushes too.
DRBD_CONFIG = """
resource r0 {{
    net {{
        protocol {protocol};
        sndbuf-size 10M;
        rcvbuf-size 10M;
        max-buffers 8000;
        max-epoch-size 8000;
    }}
    disk {{
        al-extents 6433;
        c-plan-ahead 0;
        resync-rate 400M;
        disk-flushes yes;
        md-flushes yes;
    }}
    {hosts}
}}
"""
DRBD_HOST = """
    on {name} {{
        device /dev/drbd0;
        disk {disk};
        flexible-meta-disk {meta};
        address {ip}:7788;
    }}
"""


class Drbd(Target):
    """Both protocols are the same resource, switched between runs."""

    disk = "drbd"
    device = "/dev/drbd0"

    def __init__(self, name: str, hosts: list[Host], protocol: str):
        super().__init__(name, hosts)
        self.protocol = protocol
        self.label = f"DRBD {protocol}"

    def _configure(self) -> None:
        hosts = "".join(
            DRBD_HOST.format(name=h.name, disk=h.disk("drbd").dev, meta=h.disk("drbdmeta").dev, ip=h.ip)
            for h in self.hosts
        )
        for host in self.hosts:
            host.put(DRBD_CONFIG.format(protocol=self.protocol, hosts=hosts), "/etc/drbd.d/r0.res")

    def prepare(self) -> None:
        if self.primary.run("[ -b /dev/drbd0 ]", check=False).ok:
            return
        self._configure()
        for host in self.hosts:
            host.run("modprobe drbd usermode_helper=/bin/true && drbdadm create-md --force r0 && drbdadm up r0", 60)
        wait_until(lambda: self._state("cs") == "Connected", 60, "DRBD is connected", 0.3)
        self.primary.run("drbdadm new-current-uuid --clear-bitmap r0 && drbdadm primary r0")
        self.settle()

    def select(self) -> None:
        if self._wire_protocol() != self.protocol:
            self._configure()
            self.primary.run("drbdadm adjust r0")
            wait_until(lambda: self._wire_protocol() == self.protocol, 30, f"DRBD uses protocol {self.protocol}")

    def status(self) -> dict[str, str]:
        """The words of /proc/drbd: cs, ro, ds, and the counters ap, pe, ua, oos, …"""
        return dict(re.findall(r"\b(\w+):(\S+)", self.primary.run("grep -A 1 '^ 0:' /proc/drbd").stdout))

    def _state(self, key: str) -> str:
        return self.status().get(key, "")

    def _wire_protocol(self) -> str:
        found = re.search(r"^ 0: cs:\S+ ro:\S+ ds:\S+ (\w) ", self.primary.run("cat /proc/drbd").stdout, re.M)
        return found[1] if found else ""

    def is_level(self) -> bool:
        s = self.status()
        idle = all(s.get(key) == "0" for key in ("ap", "pe", "ua", "lo", "oos"))
        return idle and s.get("cs") == "Connected" and s.get("ds") == "UpToDate/UpToDate"

    def settle(self, timeout: float = 300) -> float:
        start = time.monotonic()
        wait_until(self.is_level, timeout, "DRBD's replica is level", 0.2)
        return time.monotonic() - start

    def tell_state(self) -> str:
        return "\n".join(h.run("cat /proc/drbd", check=False).stdout for h in self.hosts if h.is_on)


NAMES = ("raw", "mars", "drbd-a", "drbd-c")


def make(name: str, hosts: list[Host], buffer_mb: int) -> Target:
    match name:
        case "raw":
            return Raw(name, hosts)
        case "mars":
            return Mars(name, hosts, buffer_mb)
        case "drbd-a" | "drbd-c":
            return Drbd(name, hosts, name[-1].upper())
    raise ValueError(f"no target '{name}', only {', '.join(NAMES)}")
