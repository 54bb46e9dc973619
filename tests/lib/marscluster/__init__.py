# SPDX-License-Identifier: GPL-2.0-or-later
"""MARS on the machines of marsvm, as an administrator sets it up with marsadm.

    from marscluster import setup_cluster, create_resource, join_resource, wait_synced, replica_equal
    a, b = mars_hosts(2)
    setup_cluster([a, b])
    create_resource(a)                  # "data" on the disk "data": /dev/mars/data
    join_resource(b)
    a.run("mkfs.ext4 -q /dev/mars/data")
    wait_synced([a, b])
    assert replica_equal([a, b])        # takes the resource down everywhere first
"""

from .compare import differences
from .compare import down
from .compare import logs_differ
from .compare import replica_equal
from .setup import create_resource
from .setup import join_cluster
from .setup import join_resource
from .setup import load_module
from .setup import setup_cluster
from .setup import teardown_cluster
from .setup import unload_module
from .state import LogPos
from .state import Member
from .state import behind
from .state import durable_end
from .state import links
from .state import member
from .state import view_json
from .state import wait_device
from .state import wait_replayed
from .state import wait_stopped
from .state import wait_synced

__all__ = [
    "LogPos",
    "Member",
    "behind",
    "create_resource",
    "differences",
    "down",
    "durable_end",
    "join_cluster",
    "join_resource",
    "links",
    "load_module",
    "logs_differ",
    "member",
    "replica_equal",
    "setup_cluster",
    "teardown_cluster",
    "unload_module",
    "view_json",
    "wait_device",
    "wait_replayed",
    "wait_stopped",
    "wait_synced",
]
