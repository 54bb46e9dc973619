# SPDX-License-Identifier: GPL-2.0-or-later
"""A few machines that see each other, each pair over a wire of its own."""

import atexit
import concurrent.futures
import pathlib
import threading
import weakref

from . import accel as accelerators
from . import payload
from . import tap
from . import util
from .disks import Folder
from .host import Host
from .machine import card
from .spec import HostSpec

# Only what is in here is ever killed.
_alive = weakref.WeakSet()


@atexit.register
def _close_all():
    for cluster in list(_alive):
        cluster.close()


class Wire:
    """The link between two hosts: a Unix socket between two QEMUs, a hub port in front of it.

    `cut`: "" (whole), "silent" (packets vanish, as in a broken network) or "carrier" (both ends
    also see their link go down). It outlives the machines at its ends.
    """

    # Whether a machine with it has to boot, instead of being a copy of one that has.
    cold = False

    def __init__(self, path, a, b):
        self.path = path
        self.ends = (a, b)
        self.cut = ""

    def other(self, host):
        return self.ends[1] if host is self.ends[0] else self.ends[0]

    def descriptors(self, host):
        """What QEMU inherits."""
        return ()

    def arguments(self, host):
        peer = self.other(host)
        n = host.slot(peer)
        if host is self.ends[0]:
            side = "server=on"
        else:
            side = "server=off,reconnect-ms=250"
        return [
            "-netdev",
            f"stream,id=s{n},{side},addr.type=unix,addr.path={self.path}",
            # A hub port between socket and card can be cut without the card's noticing.
            "-netdev",
            f"hubport,id=h{n},hubid={n},netdev=s{n}",
            *card(n),
        ]

    def apply(self, host):
        """Brings the state of `host`'s end into line."""
        n = host.slot(self.other(host))
        host.qmp("set_link", name=f"h{n}", up=self.cut == "")
        host.qmp("set_link", name=f"c{n}", up=self.cut != "carrier")

    def close(self):
        """Its socket goes with the folder."""


class Cluster:
    """`count` hosts named hosta, hostb, …, all like `spec` (or one spec for each).

    As a context manager it ends its machines at the end. Indexing and iteration give the hosts.
    `offload`: the wires are those of marsvm.tap.
    """

    def __init__(self, count=2, spec=None, *, accel=None, boot=True, boot_timeout=60, log_dir=None, offload=False):
        specs = tuple(spec) if isinstance(spec, (list, tuple)) else (spec or HostSpec(),) * count
        assert len(specs) == count and 1 <= count <= 10, "one HostSpec for each of 1 to 10 hosts"
        self.specs = specs
        self.accel = accel or accelerators.name()
        self.boot_timeout = boot_timeout
        self._folder = Folder()
        # Unix sockets want short paths.
        self._run_folder = Folder(pathlib.Path("/tmp"))
        self.run_dir = self._run_folder.path
        self.log_dir = pathlib.Path(log_dir or util.KERNEL_BUILD / "vm" / self.run_dir.name)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.closed = False
        self._payload_lock = threading.Lock()
        _alive.add(self)
        try:
            self.hosts = [
                Host(self, n + 1, f"host{chr(ord('a') + n)}", s, self._folder.path)
                for n, s in enumerate(specs)
            ]
            self.wires = []
            for i, a in enumerate(self.hosts):
                for b in self.hosts[i + 1 :]:
                    wire = tap.TapWire(a, b) if offload else Wire(self.run_dir / f"{a.number}-{b.number}", a, b)
                    self.wires.append(wire)
                    a.wires[b] = b.wires[a] = wire
            if boot:
                self.boot()
        except BaseException:
            self.close()
            raise

    def payload(self, ko=None):
        """The disk with this checkout's build, as it is now."""
        path = self.run_dir / ("payload" if ko is None else f"payload-{pathlib.Path(ko).parent.name}")
        with self._payload_lock:
            payload.write_disk(path, ko)
        return path

    def each(self, function, hosts=None):
        """Calls `function(host)` for all hosts at the same time; the first error is raised."""
        hosts = self.hosts if hosts is None else hosts
        if len(hosts) < 2:
            return [function(h) for h in hosts]
        with concurrent.futures.ThreadPoolExecutor(len(hosts)) as threads:
            return list(threads.map(function, hosts))

    def boot(self):
        """Boots all hosts that are off, at the same time."""
        self.each(lambda host: host.boot(), [h for h in self.hosts if not h.is_on])

    def cut(self, a, b, carrier=False):
        """Parts two hosts: silently, or with the carrier lost."""
        a.wires[b].cut = "carrier" if carrier else "silent"
        self._apply(a.wires[b])

    def heal(self, a=None, b=None):
        """Joins two hosts again; without arguments, all of them."""
        for wire in self.wires:
            if a is None or set(wire.ends) == {a, b}:
                if wire.cut:
                    wire.cut = ""
                    self._apply(wire)

    def _apply(self, wire):
        for host in wire.ends:
            if host.is_on:
                wire.apply(host)

    def close(self):
        """Ends all machines at once and removes their disks; the consoles stay."""
        if self.closed:
            return
        self.closed = True
        for host in getattr(self, "hosts", []):
            host.kill()
        for wire in getattr(self, "wires", []):
            wire.close()
        self._run_folder.close()
        self._folder.close()
        _alive.discard(self)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __getitem__(self, index):
        return self.hosts[index]

    def __iter__(self):
        return iter(self.hosts)

    def __len__(self):
        return len(self.hosts)
