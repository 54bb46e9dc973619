# SPDX-License-Identifier: GPL-2.0-or-later
"""One long run of random writes: many times the write buffer, so that nothing can be put off."""

import dataclasses
import statistics
import typing

from . import fio
from . import jobs
from .targets import Target

JOB = jobs.BY_NAME["randwrite-4k-qd16"]
LOG = "/root/sustained"


@dataclasses.dataclass(frozen=True)
class Sustained:
    """Operations per second at the beginning and at the end."""

    target: str
    job: str
    seconds: float
    mib: float
    # How many times over the write buffer was filled.
    buffers: float
    first_iops: float
    last_iops: float
    # The last half in relation to the raw disk's (short) runs; None if that was not measured.
    ratio_to_raw: float | None
    replica_level_s: float


def measure(target: Target, seconds: float, buffer_mb: int, raw: typing.Sequence[float]) -> Sustained:
    target.select()
    target.settle()
    host = target.primary
    host.run(f"rm -f {LOG}*")
    command = fio.command(target.device, JOB, seconds, 0, 11, fio.log_options(LOG))
    result = fio.parse(host.run(command, timeout=3 * seconds + 60).stdout, JOB)
    level = target.settle()
    samples = fio.series(host.run(f"cat {LOG}_iops.*.log").stdout)
    end = samples[-1][0]
    start = end - seconds * 1000
    last = fio.throughput(samples, end - seconds * 500, end)
    return Sustained(
        target=target.name,
        job=JOB.name,
        seconds=seconds,
        mib=result.mib,
        buffers=result.mib / buffer_mb if buffer_mb else 0.0,
        first_iops=fio.throughput(samples, start, start + seconds * 250),
        last_iops=last,
        ratio_to_raw=last / statistics.median(raw) if raw else None,
        replica_level_s=level,
    )
