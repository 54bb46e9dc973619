# SPDX-License-Identifier: GPL-2.0-or-later
"""What MARS claims, in one table, and whether this run shows it."""

import dataclasses
import typing

# (job, in relation to, at least)
RATIOS = (
    ("randwrite-4k-qd16", "drbd-a", 3.0),
    ("randwrite-4k-qd16", "raw", 0.35),
    ("randwrite-4k-qd1-fsync", "raw", 0.25),
    ("randread-4k-qd1", "raw", 0.9),
    ("randread-4k-qd16", "raw", 0.9),
)
LAG_MS = 500.0
CUT_RATIO = 0.95
RECOVERY_RATIO = 0.5
RECOVERY_MIB = 1024


@dataclasses.dataclass(frozen=True)
class Check:
    """One claim. `passed` is None if it was not measured in this run."""

    claim: str
    threshold: str
    value: str
    passed: bool | None

    @property
    def word(self) -> str:
        return {True: "PASS", False: "FAIL", None: "-"}[self.passed]


def checks(results: dict[str, typing.Any]) -> list[Check]:
    """`results` is the document of latest.json."""
    out = []
    ratios = {(r["job"], r["base"]): r["iops"]["median"] for r in results["ratios"] if r["target"] == "mars"}
    for job, base, least in RATIOS:
        value = ratios.get((job, base))
        out.append(
            Check(
                f"{job}: MARS / {base}",
                f">= {least:g}",
                "not measured" if value is None else f"{value:.2f}",
                None if value is None else value >= least,
            )
        )
    lag = next((x for x in results["replica_lag"] if x["target"] == "mars"), None)
    out.append(
        Check(
            f"replica behind at {lag['rate'] if lag else 50} writes per second, p99",
            f"< {LAG_MS:.0f} ms",
            f"{lag['p99_ms']:.0f} ms" if lag else "not measured",
            lag["p99_ms"] < LAG_MS and lag["arrived"] == lag["written"] if lag else None,
        )
    )
    cut = next((x for x in results["link_cut"] if x["target"] == "mars"), None)
    out.append(
        Check(
            "link cut: throughput without / with the secondary",
            f">= {CUT_RATIO:g}",
            f"{cut['ratio']:.3f}" if cut else "not measured",
            cut["ratio"] >= CUT_RATIO if cut else None,
        )
    )
    out.append(
        Check(
            "link healed: the secondary catches up by itself",
            "yes",
            f"{cut['behind_mib']:.0f} MiB in {cut['catch_up_s']:.0f} s" if cut else "not measured",
            True if cut else None,
        )
    )
    for case in ("sequential", "random"):
        # A shorter tail says nothing about a long one.
        row = next((x for x in results["recovery"] if x["case"] == case and x["log_mib"]["min"] >= RECOVERY_MIB), None)
        value = row["ratio"]["median"] if row else None
        out.append(
            Check(
                f"recovery of 1 GiB of {case} writes: MARS / writing to the raw disk",
                f">= {RECOVERY_RATIO:g}",
                "not measured" if value is None else f"{value:.2f}",
                None if value is None else value >= RECOVERY_RATIO,
            )
        )
    return out
