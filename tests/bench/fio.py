# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs fio in a guest and reads what it says."""

import dataclasses
import json
import shlex
import typing

from marsvm import Host

from .jobs import Job

# Averages are logged for intervals of this length.
BIN_MS = 500


@dataclasses.dataclass(frozen=True)
class Sample:
    """One run of one job."""

    iops: float
    mib_s: float
    p50_us: float
    p99_us: float
    mib: float
    worst_us: float = 0.0


def command(device: str, job: Job, seconds: float, ramp: float, seed: int, extra: typing.Sequence[str] = ()) -> str:
    words = [
        "fio", "--name=bench", f"--filename={device}", "--direct=1", "--group_reporting",
        *job.options(), f"--randseed={seed}", "--time_based", f"--runtime={seconds * 1000:.0f}ms",
        f"--ramp_time={ramp * 1000:.0f}ms", "--percentile_list=50:99", "--output-format=json",
        *extra,
    ]  # fmt: skip
    return shlex.join(words)


def parse(text: str, job: Job) -> Sample:
    """From fio's JSON. Where each write is followed by an fsync, the latency is that of both."""
    # Remarks may stand before it.
    document = json.loads(text[text.index("{") :])
    (result,) = document["jobs"]
    if result["error"]:
        raise ValueError(f"fio ended with error {result['error']}")
    side = result["write" if job.is_write else "read"]
    p50, p99 = (_percentile(side["clat_ns"], p) for p in ("50.000000", "99.000000"))
    worst = float(side["clat_ns"]["max"])
    if job.fsync:
        sync = result["sync"]["lat_ns"]
        p50 += _percentile(sync, "50.000000")
        p99 += _percentile(sync, "99.000000")
        worst = max(worst, float(sync["max"]))
    return Sample(
        iops=float(side["iops"]),
        mib_s=side["bw_bytes"] / (1 << 20),
        p50_us=p50 / 1000,
        p99_us=p99 / 1000,
        mib=side["io_bytes"] / (1 << 20),
        worst_us=worst / 1000,
    )


def _percentile(section: dict[str, typing.Any], key: str) -> float:
    return float(section.get("percentile", {}).get(key, 0.0))


def run(host: Host, device: str, job: Job, seconds: float, ramp: float, seed: int) -> Sample:
    done = host.run(command(device, job, seconds, ramp, seed), timeout=4 * seconds + ramp + 60)
    return parse(done.stdout, job)


def log_options(path: str) -> list[str]:
    """For a log of the throughput over time, with the time of day in milliseconds."""
    return [f"--write_iops_log={path}", f"--log_avg_msec={BIN_MS}", "--log_unix_epoch=1"]


def series(text: str) -> list[tuple[float, float]]:
    """(end of an interval in ms, operations per second in it), from fio's log; intervals without any are missing."""
    lines = (line.split(",") for line in text.splitlines() if line.strip())
    return sorted((float(words[0]), float(words[1])) for words in lines)


def throughput(samples: list[tuple[float, float]], start: float, end: float) -> float:
    """Mean operations per second between two moments (ms)."""
    done = 0.0
    for at, value in samples:
        done += value * max(0.0, min(at, end) - max(at - BIN_MS, start))
    return done / (end - start)


def by_second(samples: list[tuple[float, float]], start: float, end: float) -> list[float]:
    """The same for all seconds in between, each half a second later than the one before."""
    steps = int((end - start) // BIN_MS) - 1
    return [throughput(samples, start + n * BIN_MS, start + n * BIN_MS + 1000) for n in range(max(steps, 0))]
