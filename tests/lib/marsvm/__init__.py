# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual machine bench: boots real kernels in QEMU and drives them as an administrator would.

    from marsvm import Cluster, HostSpec, DiskSpec
    with Cluster(2) as c:
        a, b = c
        print(a.run("uname -r").out)
        a.cut_link(b)

Tests take their machines from the pytest fixture `mars_hosts` (tests/conftest.py) instead, which
reuses booted machines and checks their kernel logs.
"""

from .cluster import Cluster
from .errors import AgentTimeout
from .errors import CommandFailed
from .errors import HostDied
from .errors import HostReset
from .errors import VmError
from .host import Host
from .host import Job
from .host import Result
from .spec import DiskSpec
from .spec import HostSpec
from .spec import default_disks
from .util import scaled
from .util import wait_until

__all__ = [
    "AgentTimeout",
    "Cluster",
    "CommandFailed",
    "DiskSpec",
    "Host",
    "HostDied",
    "HostReset",
    "HostSpec",
    "Job",
    "Result",
    "VmError",
    "default_disks",
    "scaled",
    "wait_until",
]
