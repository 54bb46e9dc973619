# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies the tree onto the replicated file system, with the link to the replica cut in the middle."""

import dataclasses
import time

import marscluster
from marscluster import LogPos
from marscluster import behind
from marsvm import Host

from .show import MIB
from .show import Show
from .show import mib

# Parts of the copy at which the link is cut and, at the latest, healed.
CUT_AT, HEAL_AT = 0.35, 0.7
CUT_SECONDS = 8.0
# The first part only fills the page cache of the guest.
WARM = 0.12
# Under load from elsewhere the speed varies; a copy that waits for the network would stand still.
SLOWEST = 0.7


@dataclasses.dataclass(frozen=True)
class Look:
    """One look at everything; amounts in bytes since the start."""

    at: float
    copied: int
    logged: int | None
    fetched: int | None
    replayed: int | None
    link: str


class Copy:
    """The copy as it goes on."""

    def __init__(self, show: Show, a: Host, b: Host, size: int, target: str):
        self.show, self.a, self.b, self.size, self.target = show, a, b, size, target
        self.looks: list[Look] = []
        self.link = "up"
        self.cut_seconds = 0.0
        self.seconds = 0.0
        self._used_before = self._used()
        self._start = marscluster.durable_end(a)

    def _used(self) -> int:
        blocks, free, unit = (int(w) for w in self.a.run(f"stat -f -c '%b %f %S' {self.target}").out.split())
        return (blocks - free) * unit

    def look(self) -> Look:
        """What the application has written, and how far log, fetch and replay are."""
        # The primary second: what the secondary has is then never more than what the primary knows of.
        secondary, primary = marscluster.member(self.b), marscluster.member(self.a)

        def since(pos: LogPos | None) -> int | None:
            return behind(pos, self._start, primary.ends)

        look = Look(
            time.monotonic(),
            max(0, self._used() - self._used_before),
            since(primary.log_end),
            since(secondary.fetched),
            since(secondary.replay),
            self.link,
        )
        self.looks.append(look)
        lag = None if look.logged is None or look.replayed is None else max(0, look.logged - look.replayed)
        self.show.progress(
            f"   copied {mib(look.copied)} of {mib(self.size)} MiB | logged {mib(look.logged)}"
            f" | fetched {mib(look.fetched)} | replayed {mib(look.replayed)} | behind {mib(lag)} | link {look.link}"
        )
        return look

    def run(self, command: str) -> None:
        """Runs the copy to its end, its last byte on the disk."""
        start = time.monotonic()
        job = self.a.start(command, timeout=240)
        cut_at = None
        try:
            while job.running:
                look = self.look()
                share = look.copied / self.size
                if self.link == "up" and cut_at is None and share >= CUT_AT:
                    self.a.cut_link(self.b)
                    cut_at, self.link = time.monotonic(), "CUT"
                    self.show.line(f"   --- the link is cut at {share:.0%} of the copy")
                elif self.link == "CUT" and (share >= HEAL_AT or time.monotonic() - cut_at >= CUT_SECONDS):
                    self._heal(cut_at)
                time.sleep(0.7)
        finally:
            if self.link == "CUT":
                self._heal(cut_at)
        job.wait()
        self.seconds = time.monotonic() - start
        self.look()

    def _heal(self, cut_at: float) -> None:
        self.a.heal_link(self.b)
        self.cut_seconds, self.link = time.monotonic() - cut_at, "up"
        self.show.line(f"   --- the link is healed after {self.cut_seconds:.1f} s")

    def speed(self, cut: bool) -> float | None:
        """MiB per second with the link up before the cut, or with the link cut."""
        first_cut = next((i for i, x in enumerate(self.looks) if x.link == "CUT"), len(self.looks))
        if cut:
            # From the look just before the cut to the first one after it.
            part = [x for x in self.looks[max(0, first_cut - 1) :] if x.link == "CUT"]
            part = self.looks[max(0, first_cut - 1) : first_cut + len(part)]
        else:
            part = [x for x in self.looks[:first_cut] if x.copied >= WARM * self.size]
        if len(part) < 2 or part[-1].at <= part[0].at:
            return None
        return (part[-1].copied - part[0].copied) / (part[-1].at - part[0].at) / MIB

    def proves_independence(self) -> tuple[bool, str]:
        """Whether the copy went on at its speed while nothing reached the replica."""
        up, cut = self.speed(False), self.speed(True)
        if up is None or cut is None:
            return False, "the copy was too fast for being measured: the link was not cut in the middle of it"
        text = f"{up:.1f} MiB/s with the link up, {cut:.1f} MiB/s with the link cut"
        lags = [x.logged - x.replayed for x in self.looks if x.link == "CUT" and None not in (x.logged, x.replayed)]
        if lags:
            text += f", the replica up to {mib(max(lags))} MiB behind"
        return cut >= SLOWEST * up, text
