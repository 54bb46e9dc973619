# SPDX-License-Identifier: GPL-2.0-or-later
"""The report for people: build/bench/latest.md, also printed."""

import typing

from . import text
from .checks import Check

LABELS = {"raw": "raw disk", "mars": "MARS", "drbd-a": "DRBD A", "drbd-c": "DRBD C"}
# A floor that moves more than this means that something else used the host.
QUIET = 0.15
# Delayed acknowledgements: a known artefact, see Documentation/benchmarks.md.
STALL_US = (38_000, 46_000)


def _buffer(mib: int) -> str:
    return f"limited to {mib} MiB" if mib else "as shipped: an eighth of the memory"


def _grid(rows: list[dict[str, typing.Any]], cell: typing.Callable[[dict[str, typing.Any]], str]) -> str:
    targets = list(dict.fromkeys(r["target"] for r in rows))
    jobs = list(dict.fromkeys(r["job"] for r in rows))
    by_key = {(r["job"], r["target"]): r for r in rows}
    head = ["job", *(LABELS[t] for t in targets)]
    return text.table(head, ([j, *(cell(by_key[j, t]) if (j, t) in by_key else "-" for t in targets)] for j in jobs))


def remarks(results: dict[str, typing.Any]) -> list[str]:
    """What makes the figures of this run worth less."""
    out = []
    floors = results["floors"]["raw_iops"]
    if floors and max(floors) > min(floors) * (1 + QUIET):
        out.append(
            f"The host was not quiet: the raw disk alone made {min(floors):,} to {max(floors):,} IOPS at different times. "
            "Do not quote these figures."
        )
    if results["mode"] != "full":
        out.append("A short run: good for seeing that everything works, too short for quoting.")
    if results["versions"].get("accelerator") == "tcg":
        out.append("Emulated processors (TCG): only ratios mean something, and those are dominated by processor time.")
    for row in results["results"]:
        if row["target"].startswith("drbd") and STALL_US[0] <= row["p50_us"]["median"] <= STALL_US[1]:
            out.append(
                f"{LABELS[row['target']]}, {row['job']}: a median of {row['p50_us']['median'] / 1000:.0f} ms looks like "
                "delayed acknowledgements of TCP, not like DRBD. Do not quote it."
            )
    return out


def render(results: dict[str, typing.Any], checks: list[Check]) -> str:
    setting, versions = results["setting"], results["versions"]
    part = []
    part.append("<!-- SPDX-License-Identifier: GPL-2.0-or-later -->\n# Benchmark")
    part.append(
        f"{results['time']}, {results['mode']} run of {results['seconds']} s. Kernel {versions.get('kernel', '?')}, "
        f"mars {versions.get('module') or '-'} ({versions.get('commit', '?')}), drbd {versions.get('drbd', '?')}, "
        f"QEMU {versions.get('qemu', '?')} with {versions.get('accelerator', '?')}, {versions.get('fio', '?')}, "
        f"{versions.get('host_cpu', '?')}.\n"
        f"{setting['machines']} ({setting['host_processors']} processors; QEMU {setting['processor']}). Network: {setting['network']}. "
        f"Disks: {setting['disks']}, {setting['size_mib']} MiB each. MARS has its log on {setting['mars_log']}, DRBD its metadata "
        f"{setting['drbd_metadata']}. The write buffer of MARS is {_buffer(setting['mars_write_buffer_mib'])}. "
        f"Each run of fio takes {setting['fio_seconds']:g} s after "
        f"{setting['fio_ramp_seconds']:g} s; medians (smallest-largest) of the repetitions."
    )
    if found := remarks(results):
        part.append("\n".join(f"* {r}" for r in found))
    rows = results["results"]
    if rows:
        part.append("## Ratios to the raw disk (of IOPS, within each repetition)")
        ratios = [r for r in results["ratios"] if r["base"] == "raw"]
        part.append(_grid(ratios, lambda r: text.spread(r["iops"])) if ratios else "The raw disk was not measured.")
        if ratios := [r for r in results["ratios"] if r["base"] == "drbd-a" and r["target"] == "mars"]:
            part.append("## MARS in relation to DRBD A")
            part.append(
                text.table(
                    ["job", "IOPS", "p99"],
                    ([r["job"], text.spread(r["iops"]), text.spread(r.get("p99_us"))] for r in ratios),
                )
            )
        part.append("## IOPS\n" + _grid(rows, lambda r: text.spread(r["iops"])))
        part.append("## MiB per second\n" + _grid(rows, lambda r: text.spread(r["mib_s"])))
        part.append(
            "## Latency in microseconds: median / 99th percentile\n"
            + _grid(rows, lambda r: f"{text.number(r['p50_us']['median'])} / {text.number(r['p99_us']['median'])}")
        )
        part.append(
            "## MiB written in a run / seconds until the replica was level afterwards\n"
            + _grid(
                [r for r in rows if "replica_level_s" in r and r["target"] != "raw"],
                lambda r: f"{text.number(r['written_mib'])} / {text.number(r['replica_level_s']['median'])}",
            )
        )
    for x in results["sustained"]:
        times = f", {x['buffers']:.0f} times its write buffer" if x["buffers"] else ""
        raw = f", {x['ratio_to_raw']:.2f} of the raw disk's" if x["ratio_to_raw"] is not None else ""
        part.append(
            f"## A long run\n{LABELS[x['target']]}, {x['job']} for {x['seconds']:.0f} s: {x['mib']:.0f} MiB{times}. "
            f"{x['first_iops']:,.0f} IOPS in the first quarter, {x['last_iops']:,.0f} in the last half{raw}; the replica was "
            f"level {x['replica_level_s']:.1f} s after the end."
        )
    if results["replica_lag"]:
        part.append("## How far the replica is behind at a steady, slow load, in milliseconds")
        part.append(
            text.table(
                ["target", "writes/s", "median", "p99", "largest", "arrived", "a write itself", "clock error"],
                (
                    [
                        LABELS[x["target"]], str(x["rate"]), f"{x['p50_ms']:.1f}", f"{x['p99_ms']:.1f}", f"{x['max_ms']:.1f}",
                        f"{x['arrived']}/{x['written']}", f"{x['write_p50_ms']:.2f}", f"{x['clock_error_ms']:.2f}",
                    ]
                    for x in results["replica_lag"]
                ),
            )  # fmt: skip
        )
    if results["link_cut"]:
        half = results["link_cut"][0]["half"]
        part.append(f"## The link is cut for {half:.0f} s under a steady load")
        part.append(
            text.table(
                ["target", "offered", "link up", "link cut", "ratio", "worst second", "longest write, ms",
                 "behind, MiB", "level after, s", "not usable, s"],
                (
                    [
                        LABELS[x["target"]], str(x["offered_iops"]), f"{x['up_iops']:.0f}", f"{x['cut_iops']:.0f}",
                        f"{x['ratio']:.3f}", f"{x['worst_second']:.2f}", f"{x['longest_write_ms']:.0f}",
                        f"{x['behind_mib']:.1f}", f"{x['catch_up_s']:.1f}", f"{x['unusable_s']:.1f}",
                    ]
                    for x in results["link_cut"]
                ),
            )  # fmt: skip
        )
    if rows := results["recovery"]:
        limit = rows[0]["disk_limit_mib_s"]
        part.append(
            "## Recovery of a long log tail, and writing as much to the raw disk in sequence\nDisks: "
            + (f"limited to {limit} MiB/s each" if limit else "as fast as the host")
        )
        part.append(
            text.table(
                ["tail", "MiB of log", "recovery, s", "modprobe to device, s", "raw, MiB/s", "recovery, MiB/s", "ratio"],
                (
                    [x["case"], *(text.spread(x[f]) for f in ("log_mib", "seconds", "device_s", "raw_mib_s", "mib_s", "ratio"))]
                    for x in rows
                ),
            )
        )
    floors = results["floors"]
    if floors["raw_iops"]:
        part.append(
            "Floors over time: raw disk "
            + ", ".join(f"{x:,}" for x in floors["raw_iops"])
            + " IOPS"
            + ("; network " + ", ".join(f"{x:,}" for x in floors["network_mbit_s"]) + " Mbit/s" if floors["network_mbit_s"] else "")
            + "."
        )
    part.append("## Claims\n" + "\n".join(f"{c.word:5} {c.claim}: {c.value} (claimed: {c.threshold})" for c in checks))
    for target, reason in results["broken"].items():
        part.append(f"## {LABELS.get(target, target)} failed\n{reason}")
    for problem in results["kernel_problems"]:
        part.append(f"## Problem of a machine\n{problem}")
    return "\n\n".join(part) + "\n"
