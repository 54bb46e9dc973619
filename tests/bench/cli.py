# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of scripts/bench."""

import argparse
import dataclasses
import functools
import json

from marsvm import payload
from marsvm import util

from . import checks
from . import jobs
from . import report
from . import run
from . import targets

DESCRIPTION = """\
Measures the raw disk, a MARS resource with its replica following, and DRBD with protocols A and C, in the same two
virtual machines, in one run. Writes build/bench/latest.json (for machines) and latest.md (for people). The exit status
is 0 unless something broke; a claim that is not met is reported, and is an error only with --strict.
Documentation/benchmarks.md says how to read the figures."""


def _list(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(w for w in text.split(",") if w))
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"'{word}' is none of {', '.join(known)}")
    return words


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="scripts/bench", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="a run of less than four minutes instead of half an hour")
    p.add_argument("--targets", type=functools.partial(_list, targets.NAMES), metavar="T,...", help=", ".join(targets.NAMES))
    p.add_argument("--jobs", type=functools.partial(_list, tuple(jobs.BY_NAME)), metavar="J,...", help=", ".join(jobs.BY_NAME))
    p.add_argument("--seconds", type=float, help="duration of each run of fio")
    p.add_argument("--repetitions", type=int, help="of each job on each target (default: 3)")
    p.add_argument("--buffer-mb", type=int, help="write buffer of MARS (default: as shipped)")
    p.add_argument("--sustained-seconds", type=float, help="duration of the long run; 0: leave it out")
    p.add_argument("--lag-seconds", type=int, help="duration of the steady load; 0: leave it out")
    p.add_argument("--cut-seconds", type=float, help="how long the link is cut; 0: leave it out")
    p.add_argument("--cut-rate", type=int, help="writes per second meanwhile (default: half of what DRBD A reached)")
    p.add_argument("--recovery-mib", type=int, help="log to be recovered; 0: leave it out")
    p.add_argument("--recovery-disk", type=int, metavar="MIB/S", help="limit of the disks in that part (default: 100); 0: none")
    p.add_argument("--only-recovery", action="store_true", help="nothing but that part")
    p.add_argument("--strict", action="store_true", help="a claim that is not met is an error")
    return p


def plan(args: argparse.Namespace) -> run.Plan:
    base = run.QUICK if args.quick else run.Plan()
    changes = {
        "targets": () if args.only_recovery else args.targets,
        "jobs": args.jobs,
        "seconds": args.seconds,
        "repetitions": args.repetitions,
        "buffer_mb": args.buffer_mb,
        "sustained_seconds": args.sustained_seconds,
        "lag_seconds": args.lag_seconds,
        "cut_half": args.cut_seconds,
        "cut_rate": args.cut_rate,
        "recovery_mib": args.recovery_mib or (run.Plan().recovery_mib if args.only_recovery else args.recovery_mib),
        "recovery_repetitions": args.repetitions,
        "recovery_disk_mib_s": args.recovery_disk,
    }
    return dataclasses.replace(base, **{k: v for k, v in changes.items() if v is not None})


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    what = plan(args)
    if "mars" in what.targets or what.recovery_mib:
        for path in (payload.module_path(), payload.tool_path("marsadm")):
            if not path.exists():
                print(f"bench: {path} does not exist: run 'make', or leave MARS out with --targets")
                return 1

    bench = run.Bench(what, functools.partial(print, flush=True))
    bench.run()
    results = bench.results()
    found = checks.checks(results)
    results["checks"] = [dataclasses.asdict(c) for c in found]
    text = report.render(results, found)
    folder = util.BUILD / "bench"
    for name, content in (("latest.json", json.dumps(results, indent=1) + "\n"), ("latest.md", text)):
        tmp = folder / (name + ".tmp")
        tmp.write_text(content)
        tmp.rename(folder / name)
    print("\n" + text)
    print(f"written: {folder}/latest.json, latest.md; consoles in {folder}/vm")
    if results["broken"] or results["kernel_problems"]:
        return 1
    return 1 if args.strict and any(c.passed is False for c in found) else 0
