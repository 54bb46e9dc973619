# SPDX-License-Identifier: GPL-2.0-or-later
"""The link to the secondary is cut under a write load: what does the application notice, and what comes after?

The load is offered at a fixed rate, which both systems can serve with the link up. (Without a limit, the primary would
become *faster* with the link cut, because in this set-up both machines share their processors.) Half of the time the
link is up, half of it it is cut, silently: packets vanish. Afterwards it is healed, without any load, and the time is
taken until the secondary has everything.
"""

import dataclasses
import statistics
import time

import marscluster
from marsvm import wait_until

from . import fio
from .jobs import Job
from .targets import Drbd
from .targets import Target

JOB = Job("cut", "randwrite", "4k", 16)
LOG = "/root/cut"


@dataclasses.dataclass(frozen=True)
class Cut:
    """Two halves of a load, of `half` seconds each."""

    target: str
    offered_iops: int
    half: float
    up_iops: float
    cut_iops: float
    ratio: float
    # The worst second of the cut half, relative to the median second with the link up.
    worst_second: float
    # The longest that the application waited for a single write.
    longest_write_ms: float
    behind_mib: float
    catch_up_s: float
    # Time during the catch-up in which the secondary could not have taken over.
    unusable_s: float


def _guest_ms(target: Target) -> float:
    """The guest's clock now; the round trip is a few milliseconds, a bin is 500."""
    return float(target.primary.run("date +%s.%N").out) * 1000


def measure(target: Target, rate: int, half: float, catch_up: float) -> Cut:
    a, b = target.hosts
    target.select()
    target.settle()
    lead, tail = 2.0, 2.0
    a.run(f"rm -f {LOG}*")
    command = fio.command(
        target.device, JOB, half * 2 + lead + tail, 0, 7,
        [f"--rate_iops={rate}", *fio.log_options(LOG)],
    )  # fmt: skip
    load = a.start(command, timeout=4 * half + 120)
    try:
        # fio needs a moment before it writes.
        wait_until(lambda: a.run("pgrep -x fio", check=False).ok, 20, "fio runs")
        time.sleep(lead + half)
        early = _guest_ms(target)
        a.cut_link(b)
        cut_at = (early + _guest_ms(target)) / 2
        result = fio.parse(load.wait().stdout, JOB)
        samples = fio.series(a.run(f"cat {LOG}_iops.*.log").stdout)
        behind = _behind_mib(target)
    finally:
        a.heal_link(b)
    start = time.monotonic()
    unusable = 0.0
    if isinstance(target, Drbd):
        last = start

        def level() -> bool:
            nonlocal unusable, last
            status, now = target.status(), time.monotonic()
            if "Inconsistent" in status.get("ds", ""):
                unusable += now - last
            last = now
            return target.is_level()

        wait_until(level, catch_up, "DRBD's secondary has caught up", 0.3)
    else:
        target.settle(catch_up)
    seconds = time.monotonic() - start
    span = half * 1000
    up, cut = fio.throughput(samples, cut_at - span, cut_at), fio.throughput(samples, cut_at, cut_at + span)
    usual = statistics.median(fio.by_second(samples, cut_at - span, cut_at))
    worst = min(fio.by_second(samples, cut_at, cut_at + span))
    return Cut(
        target=target.name,
        offered_iops=rate,
        half=half,
        up_iops=up,
        cut_iops=cut,
        ratio=cut / up if up else 0.0,
        worst_second=worst / usual if usual else 0.0,
        longest_write_ms=result.worst_us / 1000,
        behind_mib=behind,
        catch_up_s=seconds,
        unusable_s=unusable,
    )


def _behind_mib(target: Target) -> float:
    """What the secondary is missing at the end of the cut."""
    if isinstance(target, Drbd):
        status = target.status()
        # While DRBD has not yet noticed that the link is cut, the requests wait for their acknowledgement.
        return max(float(status.get("oos", "0")), 4 * float(status.get("pe", "0"))) / 1024
    end = marscluster.durable_end(target.primary)
    logs = marscluster.member(target.primary).ends
    lag = marscluster.behind(end, marscluster.member(target.secondary).replay, logs)
    return (lag or 0) / (1 << 20)
