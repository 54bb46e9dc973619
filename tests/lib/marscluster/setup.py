# SPDX-License-Identifier: GPL-2.0-or-later
"""Clusters and resources come and go, with the commands an administrator would type."""

from marsvm import Host

KEY = "/mars/cluster-key"
KEY_COPY = "/root/cluster-key"


def load_module(host: Host, **tunables: int) -> None:
    """Loads the module; `tunables` are written to /proc/sys/mars, e.g. write_buffer_mb=16."""
    host.run("[ -e /proc/sys/mars ] || modprobe mars", timeout=30)
    for name, value in tunables.items():
        host.run(f"echo {value} > /proc/sys/mars/{name}")


def unload_module(host: Host) -> None:
    host.run("[ ! -e /proc/sys/mars ] || rmmod mars", timeout=60)


def join_cluster(host: Host, member: Host, timeout: float = 60) -> None:
    """Makes `host`, whose module runs, a member of the cluster that `member` belongs to."""
    host.put(member.get(KEY), KEY_COPY, 0o600)
    host.run(
        f"marsadm join-cluster {member.name} {member.ip} --ip {host.ip} --key-file {KEY_COPY}",
        timeout=timeout,
    )


def setup_cluster(hosts, **tunables: int) -> None:
    """Mounts /mars, loads the module and makes all `hosts` one cluster, which the first one creates."""
    hosts = list(hosts)
    for host in hosts:
        if not host.run("mountpoint -q /mars", check=False).ok:
            host.mount_mars()
        load_module(host, **tunables)
    first = hosts[0]
    first.run(f"marsadm create-cluster --ip {first.ip}", timeout=60)
    for host in hosts[1:]:
        join_cluster(host, first)
    for host in hosts:
        host.run("marsadm wait-cluster --timeout 60", timeout=70)


def teardown_cluster(hosts) -> None:
    """Takes all resources down and unloads the module; /mars and the disks keep what is in them."""
    for host in reversed(list(hosts)):
        host.run("[ ! -e /proc/sys/mars ] || marsadm down all", timeout=90)
    for host in hosts:
        unload_module(host)
        host.run("umount /mars 2>/dev/null", check=False)


def _disk(host: Host, disk: str) -> str:
    return disk if disk.startswith("/") else host.disk(disk).dev


def create_resource(host: Host, name: str = "data", disk: str = "data", timeout: float = 60) -> str:
    """Creates a resource with its primary on `host` and gives its device's path.

    `disk` is the serial of one of the host's disks, or a path.
    """
    host.run(f"marsadm create-resource {name} {_disk(host, disk)} --timeout {timeout:.0f}", timeout + 10)
    host.run(f"marsadm wait-resource {name} is-device-on --timeout {timeout:.0f}", timeout + 10)
    device = f"/dev/mars/{name}"
    host.run(f"[ -b {device} ]")
    return device


def join_resource(host: Host, name: str = "data", disk: str = "data", timeout: float = 60) -> None:
    """Makes a disk of `host` a replica; the sync has begun when it returns, not ended (wait_synced)."""
    host.run(f"marsadm join-resource {name} {_disk(host, disk)} --timeout {timeout:.0f}", timeout + 10)
