# SPDX-License-Identifier: GPL-2.0-or-later
"""What the symlink tree says. Looking is one cheap process in the guest: it may be done while something is measured."""

import dataclasses
import json
import re
import time
import typing

from marsvm import Host
from marsvm import wait_until

# A primary publishes the end of its log at least twice a second.
PUBLISHED_WITHIN = 1.2


class LogPos(typing.NamedTuple):
    """A position in a log; compared by the number of the log, then by bytes."""

    number: int
    pos: int
    creator: str

    @staticmethod
    def parse(value: str | None) -> "LogPos | None":
        """From the value of a link: replay-*, log-end, fetch-pos."""
        found = re.match(r"log-(\d+)-([^,]+),(\d+)", value or "")
        return LogPos(int(found[1]), int(found[3]), found[2]) if found else None

    def reaches(self, other: "LogPos") -> bool:
        return self[:2] >= other[:2]

    def __str__(self) -> str:
        return f"log {self.number} of {self.creator} at {self.pos}"


def links(host: Host, paths: typing.Iterable[str]) -> dict[str, str]:
    """Values of links below /mars; those that do not exist, or are deleted, are left out. `*` in a path is a pattern."""
    words = list(paths)
    assert all(re.fullmatch(r"[\w./*-]+", w) for w in words), words
    out = host.run(f"cd /mars && find {' '.join(words)} -maxdepth 0 -printf '%p\\t%l\\n' 2>/dev/null; true").stdout
    pairs = (line.split("\t", 1) for line in out.splitlines() if "\t" in line)
    return {path: value for path, value in pairs if value not in ("", ".deleted")}


def _end(version: str) -> tuple[int, int]:
    """Number and length of a log, from a version link: DIGEST,log-NUMBER-HOST,LENGTH:…"""
    found = re.match(r"[^,]*,log-(\d+)-[^,]+,(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclasses.dataclass(frozen=True)
class Member:
    """A member of a resource, as it describes itself on its own host."""

    host: str
    size: int | None
    synced: int
    replay: LogPos | None
    log_end: LogPos | None
    fetched: LogPos | None
    write_back: int
    state: str
    primary: bool
    # Where each log ends, by its number, as far as this member has it; the newest may still grow.
    ends: dict[int, int]

    @property
    def is_synced(self) -> bool:
        return self.size is not None and self.synced >= self.size


def member(host: Host, name: str = "data") -> Member:
    """The state of `host`'s own replica."""
    res, me = f"resource-{name}", host.name
    keys = {
        "size": f"{res}/size",
        "synced": f"{res}/syncstatus-{me}",
        "replay": f"{res}/replay-{me}",
        "log_end": f"{res}/actual-{me}/log-end",
        "fetched": f"{res}/actual-{me}/fetch-pos",
        "write_back": f"{res}/actual-{me}/write-back",
        "state": f"{res}/actual-{me}/state",
        "primary": f"{res}/actual-{me}/is-primary",
    }
    found = links(host, [*keys.values(), f"{res}/version-*-{me}"])
    values = {key: found.get(path) for key, path in keys.items()}
    return Member(
        host=me,
        size=int(values["size"]) if values["size"] else None,
        synced=int(values["synced"] or 0),
        replay=LogPos.parse(values["replay"]),
        log_end=LogPos.parse(values["log_end"]),
        fetched=LogPos.parse(values["fetched"]),
        write_back=int(values["write_back"] or 0),
        state=values["state"] or "",
        primary=values["primary"] == "1",
        ends=dict(_end(value) for path, value in found.items() if "/version-" in path),
    )


def behind(end: LogPos | None, pos: LogPos | None, ends: typing.Mapping[int, int] | None = None) -> int | None:
    """Bytes of log from `pos` to `end`; `ends` (Member.ends of the primary) says how long the logs in between are."""
    if end is None or pos is None:
        return None
    if pos.reaches(end):
        return 0
    lengths = [(ends or {}).get(n) for n in range(pos.number, end.number)]
    if None in lengths:
        return None
    return sum(lengths) + end.pos - pos.pos


def view_json(host: Host, name: str | None = None) -> typing.Any:
    """The document of `marsadm view --json`; with `name`, that resource of it."""
    document = json.loads(host.run("marsadm view --json").stdout)
    if name is None:
        return document
    return next(r for r in document["resources"] if r["name"] == name)


def wait_device(host: Host, name: str = "data", timeout: float = 60) -> str:
    """Until the device is there."""
    device = f"/dev/mars/{name}"
    wait_until(lambda: host.run(f"[ -b {device} ]", check=False).ok, timeout, f"{device} on {host.name}", 0.3)
    return device


def primary_of(hosts, name: str = "data") -> Host:
    """The only one of `hosts` that is primary."""
    found = [h for h in hosts if h.is_on and member(h, name).primary]
    assert len(found) == 1, f"exactly one primary of {name}, not {found}"
    return found[0]


def durable_end(primary: Host, name: str = "data") -> LogPos:
    """The end of the primary's log, after everything that was written so far is in it."""
    device = f"/dev/mars/{name}"
    link = f"/mars/resource-{name}/actual-{primary.name}/log-end"
    out = primary.run(
        f"sync; sync {device} && echo 1 > /proc/sys/mars/trigger && sleep {PUBLISHED_WITHIN} && readlink {link}",
        timeout=120,
    ).out
    end = LogPos.parse(out)
    assert end, f"{link} on {primary.name} is no position: {out!r}"
    return end


def wait_replayed(host: Host, end: LogPos, name: str = "data", timeout: float = 120, interval: float = 0.2) -> float:
    """Until `host`'s disk is synced and holds everything up to `end`; gives the seconds that took."""
    start = time.monotonic()

    def level():
        m = member(host, name)
        assert m.is_synced, f"{host.name} has synced {m.synced} of {m.size} bytes; state {m.state!r}"
        assert m.replay and m.replay.reaches(end), f"{host.name} has replayed {m.replay}, not {end}; state {m.state!r}"
        return True

    wait_until(level, timeout, f"{host.name} has replayed {end}", interval)
    return time.monotonic() - start


def wait_stopped(host: Host, what: str, name: str = "data", timeout: float = 30) -> None:
    """Until `host` is no longer "replaying" or "syncing", after that was paused."""
    path = f"resource-{name}/actual-{host.name}/is-{what}"
    wait_until(lambda: links(host, [path]).get(path) == "0", timeout, f"{host.name} is not {what} any more", 0.2)


def wait_synced(hosts, name: str = "data", timeout: float = 120) -> LogPos:
    """Until all other members have everything that was written on the primary before the call."""
    hosts = list(hosts)
    primary = primary_of(hosts, name)
    for _ in range(2):
        end = durable_end(primary, name)
        for host in hosts:
            if host is not primary:
                wait_replayed(host, end, name, timeout)
        # A busy host may publish its end later than durable_end waits for that.
        if member(primary, name).log_end == end:
            break
    return end
