# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether replicas are equal: their disks byte by byte, and their log files.

Disks are compared on the host, in the files behind them. That is exactly what the disks hold; a guest that reads its
disk without O_DIRECT may see its own stale buffer cache instead.
"""

import mmap
import os
import typing

from marsvm import Host

from .state import LogPos
from .state import links
from .state import member

CHUNK = 4 << 20


def down(hosts, name: str = "data", timeout: float = 90) -> None:
    """Takes a resource down on all hosts that run, the primary last."""
    for host in sorted((h for h in hosts if h.is_on), key=lambda h: member(h, name).primary):
        host.run(f"marsadm down {name} --timeout {timeout:.0f}", timeout=timeout + 10)
        host.run("sync")


def _blocks(path, size: int) -> typing.Iterator[bytes | memoryview]:
    """The first `size` bytes, past the page cache where the file system of the host can do that."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        fd = os.open(path, os.O_RDONLY)
    try:
        buffer = mmap.mmap(-1, CHUNK)
        at = 0
        while at < size:
            got = os.preadv(fd, [buffer], at)
            assert got > 0, f"{path} ends at {at}"
            got = min(got, size - at)
            yield memoryview(buffer)[:got]
            at += got
    finally:
        os.close(fd)


def differences(hosts, name: str = "data", disk: str = "data", limit: int = 20) -> list[tuple[int, int]]:
    """Where the disks of the first host and of any other one differ: (offset, length), at most `limit`.

    Only meaningful while nothing writes. Compared is what belongs to the resource.
    """
    first, *others = hosts
    size = int(links(first, [f"resource-{name}/size"])[f"resource-{name}/size"])
    found: list[tuple[int, int]] = []
    for other in others:
        at = 0
        pairs = zip(_blocks(first.disk(disk).path, size), _blocks(other.disk(disk).path, size), strict=True)
        for one, two in pairs:
            assert len(one) == len(two), "short read"
            if one != two:
                for start in range(0, len(one), 4096):
                    if one[start : start + 4096] != two[start : start + 4096]:
                        found.append((at + start, 4096))
                        if len(found) >= limit:
                            return found
            at += len(one)
    return found


def replica_equal(hosts, name: str = "data", disk: str = "data") -> bool:
    """Takes the resource down everywhere and compares the disks; says where they differ, if they do."""
    hosts = list(hosts)
    down(hosts, name)
    found = differences(hosts, name, disk)
    assert not found, f"the disks of {', '.join(h.name for h in hosts)} differ at (offset, length): {found}"
    return True


def _log_sizes(host: Host, name: str) -> dict[str, int]:
    out = host.run(f"cd /mars/resource-{name} && find . -maxdepth 1 -type f -name 'log-*' -printf '%f %s\\n'").stdout
    return {file: int(size) for file, size in (line.split() for line in out.splitlines())}


def logs_differ(source: Host, copy: Host, name: str = "data") -> list[str]:
    """What is wrong with the log files that `copy` fetched from `source`; [] if nothing is.

    The log that is still being written may be longer on one side than on the other: what is common must be equal, and
    the rest must not be claimed by anybody.
    """
    ours, theirs = _log_sizes(source, name), _log_sizes(copy, name)
    replayed = LogPos.parse(links(copy, [f"resource-{name}/replay-{copy.name}"]).get(f"resource-{name}/replay-{copy.name}"))
    problems = []
    common = sorted(set(ours) & set(theirs))
    if not common:
        problems.append(f"{source.name} and {copy.name} have no log in common: {sorted(ours)}, {sorted(theirs)}")
    for file in common:
        length = min(ours[file], theirs[file])
        sums = [
            h.run(f"head -c {length} /mars/resource-{name}/{file} | sha256sum", timeout=600).out.split()[0]
            for h in (source, copy)
        ]
        if sums[0] != sums[1]:
            problems.append(f"{file}: the first {length} bytes differ between {source.name} and {copy.name}")
        if replayed and file == f"log-{replayed.number:09}-{replayed.creator}" and replayed.pos > length:
            problems.append(f"{file}: {copy.name} has replayed {replayed.pos} bytes, but has only {length}")
    return problems
