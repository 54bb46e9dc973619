# SPDX-License-Identifier: GPL-2.0-or-later
"""How far the replica is behind at a slow, steady load.

The primary writes blocks with a number and the time; the secondary looks for the next one on the disk below its replica
and notes when it is there. A block counts as arrived only when all blocks before it have arrived. The time in between
is by how much an application that took over on the secondary would find itself put back.
"""

import dataclasses
import random
import statistics

from . import stats
from . import tools
from .targets import Target

PORT = 9099
POLL_US = 4000
# The watcher starts before the writer and waits this much longer than that writes.
PATIENCE = 20
BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Lag:
    """Delays in milliseconds from just before the write was submitted until it is on the replica's disk."""

    target: str
    rate: int
    seconds: int
    written: int
    arrived: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    # How long the application itself waited for a write.
    write_p50_ms: float
    # The clocks of the two guests cannot be compared more exactly than this.
    clock_error_ms: float


def _pairs(text: str) -> list[tuple[int, int, int]]:
    return [tuple(int(word) for word in line.split()) for line in text.splitlines()]


def _offset(target: Target) -> tuple[int, int]:
    """Clock of the secondary minus clock of the primary, and the round trip in which it was asked (ns)."""
    a, b = target.hosts
    server = b.start(f"{tools.PROBE} clock-server {PORT} 20", timeout=60, check=False)
    try:
        offset, trip = a.run(f"sleep 0.3; {tools.PROBE} clock {b.ip} {PORT} 100").out.split()
    finally:
        server.kill()
    return int(offset), int(trip)


def measure(target: Target, rate: int, seconds: int, size: int) -> Lag:
    a, b = target.hosts
    target.select()
    target.settle()
    run = random.getrandbits(63)
    count = rate * seconds
    slots = 1 << count.bit_length()
    series = f"{run} {count} {slots} {size // slots // BLOCK * BLOCK}"
    before = _offset(target)
    limit = seconds + PATIENCE
    watcher = b.start(
        f"{tools.PROBE} watch {b.disk(target.disk).dev} {series} {limit} {POLL_US}", timeout=limit + 60
    )
    written = _pairs(
        a.run(f"sleep 1; {tools.PROBE} write {target.device} {series} {rate}", timeout=2 * seconds + 60).stdout
    )
    seen = _pairs(watcher.wait().stdout)
    after = _offset(target)
    # The clocks may drift apart a little.
    offset = (before[0] + after[0]) / 2
    error = (before[1] + after[1]) / 4 + abs(before[0] - after[0]) / 2
    delays = [(at - submitted - offset) / 1e6 for _, submitted, at in seen]
    if not delays:
        raise ValueError(f"{target.name}: none of {len(written)} blocks arrived within {limit} s")
    return Lag(
        target=target.name,
        rate=rate,
        seconds=seconds,
        written=len(written),
        arrived=len(seen),
        p50_ms=statistics.median(delays),
        p99_ms=stats.percentile(delays, 0.99),
        max_ms=max(delays),
        write_p50_ms=statistics.median((done - submitted) / 1e6 for _, submitted, done in written),
        clock_error_ms=error / 1e6,
    )
