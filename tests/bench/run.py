# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the benchmark: machines, repetitions, scenarios, and what came out."""

import collections
import dataclasses
import datetime
import os
import pathlib
import time
import traceback
import typing

from marsvm import Cluster
from marsvm import VmError
from marsvm import accel
from marsvm import tap
from marsvm import util

from . import cut
from . import fio
from . import jobs
from . import lag
from . import recovery
from . import stats
from . import sustained
from . import targets
from . import tools

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be done. The defaults are the long run."""

    mode: str = "full"
    targets: tuple[str, ...] = targets.NAMES
    jobs: tuple[str, ...] = tuple(jobs.BY_NAME)
    repetitions: int = 3
    seconds: float = 3.0
    ramp: float = 0.5
    size_mb: int = 512
    log_mb: int = 3072
    # 0: as shipped.
    buffer_mb: int = 0
    lag_seconds: int = 20
    lag_targets: tuple[str, ...] = ("mars", "drbd-a", "drbd-c")
    lag_rate: int = 50
    sustained_seconds: float = 25.0
    cut_half: float = 60.0
    # 0: half of what DRBD A has reached before.
    cut_rate: int = 0
    catch_up: float = 180.0
    network: bool = True
    # Log to be recovered; 0: leave it out.
    recovery_mib: int = 1024
    recovery_repetitions: int = 3
    # What the disks of that machine can do; 0: what the host can.
    recovery_disk_mib_s: int = 100


QUICK = dataclasses.replace(
    Plan(),
    mode="quick",
    jobs=tuple(job.name for job in jobs.JOBS if job.quick),
    seconds=1.0,
    ramp=0.3,
    size_mb=256,
    lag_seconds=6,
    lag_targets=("mars", "drbd-a"),
    sustained_seconds=0,
    cut_half=5.0,
    network=False,
    recovery_mib=0,
)


class Broken(Exception):
    """No target is left that could be measured."""


class Bench:
    """Runs a plan. A target that fails is left out from then on; the others go on."""

    def __init__(self, plan: Plan, say: typing.Callable[[str], None] = print):
        self.plan = plan
        self.say = say
        self.start = time.monotonic()
        self.samples: dict[tuple[str, str], list[fio.Sample]] = collections.defaultdict(list)
        self.settles: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        self.floors: list[float] = []
        self.network: list[float] = []
        self.lags: list[lag.Lag] = []
        self.cuts: list[cut.Cut] = []
        self.sustained: list[sustained.Sustained] = []
        self.recoveries: list[recovery.Recovery] = []
        self.broken: dict[str, str] = {}
        self.kernel_problems: list[str] = []
        self.versions: dict[str, str] = {}
        self.disk_folder = str(util.disk_folder())
        # Real network cards take large segments and compute checksums; so do these, where the host allows it.
        self.offload = tap.works()
        self.live: list[targets.Target] = []

    # --- parts -----------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.say(f"[{time.monotonic() - self.start:5.0f} s] {text}")

    def attempt(self, target: targets.Target, what: str, work: typing.Callable[[], None]) -> bool:
        """Does something with a target, which is given up if that fails."""
        try:
            work()
            return True
        except (VmError, AssertionError, ValueError, KeyError) as e:
            reason = f"{what}: {type(e).__name__}: {e}"
            try:
                reason += f"\n{target.tell_state()}"
            except VmError:
                pass
            self.broken[target.name] = reason
            self.live.remove(target)
            self.note(f"{target.name} BROKEN: {reason}")
            if os.environ.get("MARS_BENCH_DEBUG"):
                traceback.print_exc()
            if not all(h.is_on for h in target.hosts):
                raise Broken("a machine is gone") from e
            return False

    def run(self) -> None:
        if self.plan.targets:
            self._side_by_side()
        if self.plan.recovery_mib:
            self._recovery()

    def _folder(self, name: str) -> pathlib.Path:
        folder = util.BUILD / "bench" / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("host*"):
            old.unlink()
        return folder

    def _side_by_side(self) -> None:
        plan = self.plan
        self.note(f"booting two machines ({plan.mode} run)")
        folder = self._folder("vm")
        spec = targets.machine(plan.size_mb * MIB, plan.log_mb * MIB)
        with Cluster(2, spec, log_dir=folder, offload=self.offload) as cluster:
            hosts = list(cluster)
            try:
                self._measure(hosts)
            except Broken as e:
                self.note(f"given up: {e}")
            finally:
                for host in hosts:
                    self.kernel_problems += host.check()

    def _recovery(self) -> None:
        plan = self.plan
        self.note(f"booting a machine whose log will have {plan.recovery_mib} MiB to recover")
        spec = recovery.machine(plan.recovery_mib, plan.recovery_disk_mib_s)
        with Cluster(1, spec, log_dir=self._folder("vm-recovery")) as cluster:
            host = cluster[0]
            try:
                self.versions = self.versions or tools.versions(host)
                bed = recovery.Bed(host, plan.recovery_mib)
                bed.prepare()
                for number in range(plan.recovery_repetitions):
                    for case in recovery.CASES:
                        found = bed.measure(case, number + 1)
                        self.recoveries.append(found)
                        self.note(
                            f"recovery, {case.name}: {found.log_mib:.0f} MiB of log in {found.seconds:.1f} s, "
                            f"{found.ratio:.2f} of the raw disk's {found.raw_mib_s:.0f} MiB/s"
                        )
            except (VmError, AssertionError, ValueError) as e:
                self.broken["recovery"] = f"{type(e).__name__}: {e}"
                self.note(f"recovery BROKEN: {e}")
            finally:
                self.kernel_problems += host.check()

    def _measure(self, hosts) -> None:
        plan = self.plan
        probe = tools.probe()
        for host in hosts:
            host.put(probe, tools.PROBE, 0o755)
        self._fill(hosts)
        self.live = [targets.make(name, hosts, plan.buffer_mb) for name in plan.targets]
        for target in list(self.live):
            begun = time.monotonic()
            if self.attempt(target, "set-up", target.prepare):
                self.note(f"{target.name} is ready ({time.monotonic() - begun:.1f} s)")
        self.versions = tools.versions(hosts[0])
        self._network(hosts)
        for number, order in enumerate(stats.orders(plan.targets, plan.repetitions)):
            self._floor(hosts)
            self._repetition(number, order)
        self._floor(hosts)
        if plan.sustained_seconds:
            for target in [t for t in self.live if t.name in ("mars", "drbd-a")]:
                self.attempt(target, "sustained load", lambda t=target: self._sustained(t))
        if plan.lag_seconds:
            for target in [t for t in self.live if t.name in plan.lag_targets]:
                self.attempt(target, "replica lag", lambda t=target: self._lag(t))
        if plan.cut_half:
            for target in [t for t in self.live if t.name in ("mars", "drbd-a")]:
                self.attempt(target, "link cut", lambda t=target: self._cut(t))
        self._network(hosts)

    def _fill(self, hosts) -> None:
        """Reading or overwriting holes of a file would be another thing than reading or overwriting blocks."""
        pattern = os.urandom(MIB)
        for host in hosts:
            for disk in host.disks:
                if disk.spec.serial in ("data", "raw", "drbd"):
                    with open(disk.path, "r+b") as file:
                        for _ in range(disk.spec.size // MIB):
                            file.write(pattern)

    def _network(self, hosts) -> None:
        if not self.plan.network:
            return
        a, b = hosts
        server = b.start("iperf3 -s -1 -p 5201", check=False, timeout=30)
        out = a.run(f"sleep 0.5; iperf3 -c {b.ip} -p 5201 -t 2 -f m | grep receiver", check=False).out
        server.kill()
        words = out.split()
        if "Mbits/sec" in words:
            self.network.append(float(words[words.index("Mbits/sec") - 1]))
            self.note(f"network: {self.network[-1]:.0f} Mbit/s")

    def _floor(self, hosts) -> None:
        sample = fio.run(hosts[0], hosts[0].disk("raw").dev, jobs.FLOOR, min(self.plan.seconds, 2.0), self.plan.ramp, 99)
        self.floors.append(sample.iops)
        self.note(f"floor: raw disk, {jobs.FLOOR.name}: {sample.iops:.0f} IOPS")

    def _repetition(self, number: int, order: list[str]) -> None:
        plan = self.plan
        if not self.live:
            raise Broken("no target is left")
        for job in (jobs.BY_NAME[name] for name in plan.jobs):
            for name in order:
                target = next((t for t in self.live if t.name == name), None)
                if target:
                    self.attempt(target, f"{job.name}, repetition {number + 1}", lambda t=target, j=job: self._sample(t, j, number))
            done = ", ".join(
                f"{name} {self.samples[name, job.name][-1].iops:.0f}" for name in plan.targets if self.samples[name, job.name]
            )
            self.note(f"{number + 1}/{plan.repetitions} {job.name:24} IOPS: {done}")
        for target in list(self.live):
            self.attempt(target, "cleaning", target.clean)

    def _sample(self, target: targets.Target, job: jobs.Job, number: int) -> None:
        target.select()
        sample = fio.run(target.primary, target.device, job, self.plan.seconds, self.plan.ramp, number + 1)
        settle = target.settle()
        self.samples[target.name, job.name].append(sample)
        if job.is_write:
            self.settles[target.name, job.name].append(settle)

    def _sustained(self, target: targets.Target) -> None:
        raw = [s.iops for s in self.samples.get(("raw", sustained.JOB.name), [])]
        found = sustained.measure(target, self.plan.sustained_seconds, self.plan.buffer_mb, raw)
        self.sustained.append(found)
        self.note(
            f"{target.name}: {found.mib:.0f} MiB of random writes at a stretch: {found.first_iops:.0f} IOPS in the first "
            f"quarter, {found.last_iops:.0f} in the last half"
        )

    def _lag(self, target: targets.Target) -> None:
        found = lag.measure(target, self.plan.lag_rate, self.plan.lag_seconds, self.plan.size_mb * MIB)
        self.lags.append(found)
        self.note(
            f"{target.name}: replica behind by {found.p50_ms:.1f} ms (median), {found.p99_ms:.1f} ms (p99), "
            f"clocks compared to {found.clock_error_ms:.2f} ms"
        )

    def _cut(self, target: targets.Target) -> None:
        rate = self.plan.cut_rate
        if not rate:
            reached = [s.iops for s in self.samples.get(("drbd-a", jobs.FLOOR.name), [])]
            rate = max(100, int(min(reached) / 2)) if reached else 500
        self.note(f"{target.name}: link cut in the middle of {2 * self.plan.cut_half:.0f} s with {rate} writes per second")
        found = cut.measure(target, rate, self.plan.cut_half, self.plan.catch_up)
        self.cuts.append(found)
        self.note(
            f"{target.name}: {found.up_iops:.0f} writes/s, with the link cut {found.cut_iops:.0f} (ratio {found.ratio:.3f}), "
            f"longest wait {found.longest_write_ms:.0f} ms; {found.behind_mib:.0f} MiB caught up in {found.catch_up_s:.1f} s"
        )

    # --- results ---------------------------------------------------------------------------------

    def results(self) -> dict[str, typing.Any]:
        """The document of latest.json, without its checks."""
        plan = self.plan
        fields = ("iops", "mib_s", "p50_us", "p99_us")
        rows = []
        for job in plan.jobs:
            for target in plan.targets:
                if samples := self.samples.get((target, job)):
                    row: dict[str, typing.Any] = {"target": target, "job": job, "repetitions": len(samples)}
                    for field in fields:
                        row[field] = stats.Spread.of(getattr(s, field) for s in samples).as_json()
                    row["written_mib"] = round(sum(s.mib for s in samples) / len(samples), 1)
                    if settles := self.settles.get((target, job)):
                        row["replica_level_s"] = stats.Spread.of(settles).as_json()
                    rows.append(row)
        return {
            "schema": 1,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.start),
            "mode": plan.mode,
            "versions": self.versions,
            "setting": {
                "machines": "2 virtual machines, 2 processors and 1 GiB of memory each, on the same host",
                "processor": " ".join(accel.arguments(accel.name())),
                "host_processors": os.cpu_count(),
                "host_load": round(os.getloadavg()[2], 1),
                "disks": f"virtio-blk, cache=writeback, raw files in {self.disk_folder}",
                "network": "tap devices on a bridge, with segmentation and checksum offload"
                if self.offload
                else "a socket between the machines, no offload",
                "size_mib": plan.size_mb,
                "mars_log": "a virtio disk of its own with ext4",
                "mars_write_buffer_mib": plan.buffer_mb,
                "drbd_metadata": "external, on a virtio disk of its own",
                "fio_seconds": plan.seconds,
                "fio_ramp_seconds": plan.ramp,
            },
            "results": rows,
            "ratios": self._ratios(),
            "floors": {"raw_iops": [round(x) for x in self.floors], "network_mbit_s": [round(x) for x in self.network]},
            "sustained": [dataclasses.asdict(x) for x in self.sustained],
            "replica_lag": [dataclasses.asdict(x) for x in self.lags],
            "link_cut": [dataclasses.asdict(x) for x in self.cuts],
            "recovery": recovery.summary(self.recoveries, plan.recovery_disk_mib_s),
            "broken": self.broken,
            "kernel_problems": self.kernel_problems,
        }

    def _ratios(self) -> list[dict[str, typing.Any]]:
        out = []
        for job in self.plan.jobs:
            for target in self.plan.targets:
                for base in ("raw", "drbd-a", "drbd-c"):
                    if base == target or target == "raw":
                        continue
                    row: dict[str, typing.Any] = {"job": job, "target": target, "base": base}
                    for field in ("iops", "p99_us"):
                        one, two = ([getattr(s, field) for s in self.samples.get((t, job), [])] for t in (target, base))
                        found = stats.ratios(one, two)
                        if found:
                            row[field] = found.as_json()
                    if "iops" in row:
                        out.append(row)
        return out

