# SPDX-License-Identifier: GPL-2.0-or-later
"""A wire that passes large segments and leaves checksums out, as real network cards do: two tap devices on a bridge.

They live in a network namespace of their own, which is gone with this process. Needs root and /dev/net/tun. A machine
with such a wire boots cold: with another card below it than its template has, it would use none of this.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import struct
import subprocess

from .errors import VmError
from .machine import mac

BRIDGE = "bridge0"

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


class Namespace:
    """A network namespace that one thread is in; what is to be done there, this thread does."""

    def __init__(self):
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="netns")
        self._thread.submit(os.unshare, _CLONE_NEWNET).result()

    def ip(self, *words):
        """Runs ip(8) there."""
        done = self._thread.submit(subprocess.run, ("ip", *words), capture_output=True, text=True, timeout=30).result()
        if done.returncode:
            raise VmError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def tap(self, name):
        """A new tap device there: its descriptor. It goes with the last copy of that."""
        return self._thread.submit(_open_tap, name).result()

    def bridge(self):
        """Makes the bridge there."""
        self.ip("link", "add", "name", BRIDGE, "type", "bridge", "mcast_snooping", "0")
        self.ip("link", "set", "dev", BRIDGE, "up")

    def close(self):
        self._thread.shutdown()


def _open_tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError:
        os.close(fd)
        raise
    return fd


def works():
    """Whether such a wire can be made here: a kernel without bridges, or a container, may not allow it."""
    space = None
    try:
        space = Namespace()
        space.bridge()
        os.close(space.tap("probe"))
        return True
    except (OSError, VmError):
        return False
    finally:
        if space:
            space.close()


class TapWire:
    """Like cluster.Wire."""

    cold = True

    def __init__(self, a, b):
        self.ends = (a, b)
        self.cut = ""
        self._space = Namespace()
        self._space.bridge()
        self._taps = {}
        for host in self.ends:
            self._taps[host] = self._space.tap(host.name)
            self._space.ip("link", "set", "dev", host.name, "master", BRIDGE, "up")

    def other(self, host):
        return self.ends[1] if host is self.ends[0] else self.ends[0]

    def descriptors(self, host):
        """What QEMU inherits."""
        return (self._taps[host],)

    def arguments(self, host):
        n = host.slot(self.other(host))
        return [
            "-netdev",
            f"tap,id=c{n},fd={self._taps[host]},vhost=off",
            "-device",
            f"virtio-net-pci,netdev=c{n},mac={mac(n)},addr={4 + n:#x},romfile=",
        ]

    def apply(self, host):
        """Brings the state of `host`'s end into line."""
        self._space.ip("link", "set", "dev", host.name, *(["nomaster"] if self.cut else ["master", BRIDGE]))
        host.qmp("set_link", name=f"c{host.slot(self.other(host))}", up=self.cut != "carrier")

    def close(self):
        for fd in self._taps.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._space.close()
