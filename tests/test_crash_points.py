# SPDX-License-Identifier: GPL-2.0-or-later
"""The host dies at each named point of the engine (src/engine/inject.rs): before and after each durable step.

After the death everything is lost that no flush had made durable, at random: the disks are recorded. Then what was reported as
durable is there, the replica converges by itself, and the disks are the same byte by byte. The same where the host lives and
the point fails, waits, stalls, has no memory, or spoils what it has in its hands.

MARS_POINTS: how many points are looked at, chosen at random (MARS_SEED repeats a choice); "all"; or names with commas. For faults
also with the action, "append-write truncate=512", and the workload, if it is not that of the point: "… @getting_room".
"""

import contextlib
import dataclasses
import os
import time
import typing

import pytest

import marscluster
from marscase import DEVICE
from marscase import FILL
from marscase import MOUNT
from marscase import Writer
from marscase import inject
from marscase import lost
from marscase import mount
from marscase import progress
from marscase import seeded
from marscase import starve
from marscase import sums
from marscase import wait_state
from marsvm import Host
from marsvm import Job
from marsvm import VmError
from marsvm import util
from marsvm import wait_until

POINTS = os.environ.get("MARS_POINTS", "10")
SIZE = "48M"
LOGS = "/mars/resource-data/log-*"

# Writes without any flush, and some of zeros.
LOAD = (
    f"cd {MOUNT} && mkdir -p load && cd load && while :; do dd if=/dev/urandom of=f$((RANDOM % 3)) bs=64k count=40 status=none; "
    f"sleep 0.2; done"
)


class Pair:
    """A cluster of two with a file system, a writer, and what must be in it."""

    def __init__(self, hosts, rng):
        self.a, self.b = hosts
        self.rng = rng
        # Whether hosts die at the points, or only something fails there.
        self.deadly = True
        self.known: dict[str, dict[str, str]] = {}
        self.round = 0
        self.writer: Writer | None = None
        self.load: Job
        a, b = self.a, self.b
        marscluster.setup_cluster([a, b])
        a.run(f"marsadm create-resource data {a.disk('data').dev} data {SIZE} --timeout 60", timeout=70)
        marscluster.wait_device(a)
        a.run(f"mkfs.ext4 -q -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 {DEVICE}", timeout=60)
        mount(a)
        marscluster.join_resource(b)
        marscluster.wait_synced([a, b])

    def write(self, least: int = 1) -> None:
        """Starts to write files with an fsync each, and other things without."""
        self.round += 1
        self.load = self.a.start(LOAD, check=False)
        self.writer = Writer(self.a, f"round{self.round}")
        writer = self.writer
        wait_until(lambda: writer.look() >= least, 60, "files are written", 0.1)

    def look(self) -> None:
        """Notes what is safe by now."""
        if self.writer:
            with contextlib.suppress(VmError):
                self.writer.look()
            self.known[self.writer.folder] = self.writer.safe

    def quiet(self) -> None:
        """Nobody writes any more."""
        self.look()
        if self.writer:
            for job in (self.writer.job, self.load):
                job.kill()
            self.writer = None
        self.a.run("sync", timeout=60)

    def leave(self) -> None:
        """The file system is not mounted, the host is secondary."""
        self.quiet()
        self.a.run(f"umount {MOUNT}")
        marscluster.wait_synced([self.a, self.b])
        self.a.run("marsadm secondary data --timeout 60", timeout=70)

    def hit(self, victim: Host, *rules: str, then: str = "", on: Host | None = None, timeout: float = 60) -> None:
        """With these rules, of which the last one counts, and after this command, something happens to the victim."""
        with self.death(victim):
            # It may die before the commands have ended.
            with contextlib.suppress(VmError):
                inject.arm(victim, *rules)
                if then:
                    (on or victim).start(then, check=False)
            self.wait_hit(victim, rules[-1], timeout)

    def wait_hit(self, victim: Host, rule: str, timeout: float = 60) -> None:
        end = time.monotonic() + util.scaled(timeout)
        while time.monotonic() < end:
            self.look()
            if self.deadly and victim.is_lost:
                return
            if not self.deadly and inject.points(victim)[rule.split()[0]].fired:
                # It may happen some more times, and what follows from it may begin.
                progress(2)
                inject.arm(victim, "reset")
                return
            time.sleep(0.1)
        # Chance may have decided so.
        assert "probability" in rule, f"{rule}: nothing happened on {victim.name}: {self.listing(victim)}"
        inject.arm(victim, "reset")

    @contextlib.contextmanager
    def death(self, victim: Host):
        """Inside, the victim dies, and so do the caches of its disks; or nothing of this, if that is not what is tested."""
        if not self.deadly:
            yield
            return
        with victim.expect_panic(inject.DEATH):
            yield
        if victim is self.a:
            self.writer = None
        print(f"    {victim.name} is dead, lost: {inject.lose_cache(victim, self.rng)}")

    @staticmethod
    def listing(host: Host) -> str:
        return host.run(f"grep -A99 rules {inject.FILE}; marsadm view data", check=False).stdout

    @staticmethod
    def start(host: Host) -> None:
        """What the start of the system does."""
        host.boot()
        host.mount_mars()
        host.run("modprobe mars", timeout=30)

    def verify(self) -> None:
        """Nothing is lost, and both are the same."""
        a, b = self.a, self.b
        if self.writer:
            assert self.writer.running and self.load.running, f"the application failed: {self.writer.job.output()}"
        for host in (a, b):
            if not host.is_on:
                self.start(host)
            inject.reset(host)
            host.run("rm -f /mars/filler*")
        for host in (a, b):
            host.run("marsadm up data --timeout 60", check=False, timeout=70)
        if not a.run(f"[ -b {DEVICE} ]", check=False).ok:
            # Who is designated may be nobody, if it died while it left.
            wait_until(lambda: a.run("marsadm primary data --timeout 20", check=False, timeout=40).ok, 120, "a is primary", 1)
            marscluster.wait_device(a)
        wait_state(a, "primary", 90)
        for command in ("resume-fetch", "resume-replay", "resume-sync"):
            # Refused as long as it has not heard that the primary's /mars has room again.
            resume = f"marsadm {command} data --timeout 20"
            wait_until(lambda r=resume: b.run(r, check=False, timeout=30).ok, 60, resume, 0.5)
        self.quiet()
        if not a.run(f"mountpoint -q {MOUNT}", check=False).ok:
            mount(a)
        for folder, files in self.known.items():
            found = sums(a, folder) if files else {}
            # The first of every four is replaced later: it may have been, since the last look.
            now = {n: found.get(f"./{n}", "") if int(n[1:]) % 4 == 1 else digest for n, digest in files.items()}
            problems = lost(now, found)
            assert not problems, f"{folder}: {problems}"
        marscluster.wait_synced([a, b], timeout=120)
        wait_until(lambda: not marscluster.differences([a, b]), 30, "the disks are the same", 0.5)
        self.known.clear()
        a.run(f"rm -rf {MOUNT}/round* {MOUNT}/load; marsadm log-rotate data; sleep 1; marsadm log-delete-all data", check=False)

    def has_no_old_logs(self) -> bool:
        """Deletes what nobody needs; whether only the log that is written is left on the primary."""
        self.a.run("marsadm log-delete-all data", check=False)
        return self.a.run(f"find {LOGS} -type f | wc -l").out == "1"

    def leave_all(self) -> None:
        self.quiet()
        self.a.run(f"umount {MOUNT}")
        marscluster.down([self.a, self.b])

    # --- situations ----------------------------------------------------------------------------------

    def number(self, host: Host) -> int:
        """Of the newest log."""
        return int(host.run(f"ls {LOGS} | tail -1").out.split("-")[2])


Run = typing.Callable[[Pair, str], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """How a host comes to a point. `rule` is "POINT die" and conditions."""

    point: str
    run: Run
    after: int = 0


CASES: dict[str, Case] = {}


def case(*names: str, after: int = 0):
    """This is how one gets to these points; the first up to `after` times nothing happens."""

    def add(run: Run) -> Run:
        for name in names:
            assert name not in CASES, name
            CASES[name] = Case(name, run, after)
        return run

    return add


# --- the primary writes ----------------------------------------------------------------------------------


@case("append-memory", "append-write", "append-done", "flush-log", "flush-log-done", "flush-complete", after=20)
@case("link-write", "link-written", "write-memory", "admit-memory", "plan-memory", after=40)
@case("version-link", "replay-link", "replay-link-moved", "disk-flush", "disk-flushed", "publish", after=3)
@case("write-back", "write-back-done", "write-back-round", "logger-round", "net-send", "net-received", after=20)
@case("control-round", "peer-round", "merge-link", "scan", after=10)
@case("cluster-round", after=2)
@case("log-extend", after=1)
def writing(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.a, rule)


@case("write-back-zero")
def zeros(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.a, rule, then=f"rm -rf {MOUNT}/load; sync; fstrim {MOUNT}")


@case("log-rewrite")
def failed_flush(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.a, "flush-log error times=1", rule)


@case("log-create", "log-header", "log-create-sync", "log-created", "rotate", "log-close-cut", "log-close-sync", "rotated")
@case("dir-sync", "dir-synced")
def rotation(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.a, rule, then="marsadm log-rotate data")


@case("log-unlink", "log-unlinked")
def short_of_space(pair: Pair, rule: str) -> None:
    pair.write()
    first = pair.number(pair.a)
    pair.a.run("marsadm log-rotate data")
    wait_until(lambda: marscluster.member(pair.b).replay.number > first, 60, "the other host goes on")
    wait_until(lambda: marscluster.member(pair.a).replay.number > first, 60, "the old log is written back")
    # Emergency level 1: nothing is stopped.
    pair.hit(pair.a, rule, then="fallocate -l $(($(stat -f -c '%a * %S' /mars) - (7 << 20))) /mars/filler")


@case("serve-log")
def catching_up(pair: Pair, rule: str) -> None:
    pair.b.run("marsadm pause-fetch data --timeout 60", timeout=70)
    pair.write(3)
    # More than what is kept in memory for those that follow closely.
    pair.a.run(f"dd if=/dev/urandom of={MOUNT}/load/big bs=1M count=18 conv=fsync status=none", timeout=60)
    pair.hit(pair.a, rule, then="marsadm resume-fetch data", on=pair.b)


@case("serve-sync")
def serving_a_sync(pair: Pair, rule: str) -> None:
    spoil(pair)
    pair.write()
    pair.hit(pair.a, rule, then="marsadm invalidate data", on=pair.b)


# --- roles -------------------------------------------------------------------------------------------------


@case("leave-begin", "leave-device", "leave-closed", "leave-published", "leave-drained", "leave-link")
def leaving(pair: Pair, rule: str) -> None:
    pair.write()
    pair.quiet()
    pair.a.run(f"umount {MOUNT}")
    pair.hit(pair.a, rule, then="marsadm secondary data --timeout 60")


@case("recovered", "first-flush", "primary-links", "primary-device", "primary-ready")
def becoming(pair: Pair, rule: str) -> None:
    pair.write()
    pair.leave()
    pair.hit(pair.a, rule, then="marsadm primary data --timeout 60")


@case("recovery-settled", "recovery-cut")
def recovering(pair: Pair, rule: str) -> None:
    pair.write(3)
    pair.look()
    pair.a.power_cut()
    pair.writer = None
    inject.lose_cache(pair.a, pair.rng)
    pair.a.boot()
    pair.a.mount_mars()
    with pair.death(pair.a), contextlib.suppress(VmError):
        # The rule holds before anything happens.
        pair.a.run(f"modprobe mars && {inject.shell(rule)}", timeout=30)
        pair.wait_hit(pair.a, rule)


@case("clock-read", after=20)
def clock(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.a, rule)


# --- the secondary follows --------------------------------------------------------------------------------


@case("fetch-request", "fetch-write", "fetch-written", "replay-sync", "replay-read", "replay-admit", after=5)
@case("fetch-round", "replay-round", after=20)
def following(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.b, rule)


@case("replay-open-sync", "replay-settled", "switch-log", "switch-link")
def going_on(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.b, rule, then="marsadm log-rotate data", on=pair.a)


@case("replay-unfetched")
def replaying_without_fetching(pair: Pair, rule: str) -> None:
    pair.b.run("marsadm pause-replay data --timeout 60", timeout=70)
    pair.write(3)

    def has_more() -> bool:
        b = marscluster.member(pair.b)
        return b.fetched[:2] > b.replay[:2]

    wait_until(has_more, 60, "there is something to replay")
    pair.b.run("marsadm pause-fetch data --timeout 60; sync", timeout=70)
    pair.b.power_cut()
    pair.start(pair.b)
    pair.hit(pair.b, rule, then="marsadm resume-replay data --timeout 60")


@case("log-delete", "log-deleted")
def deletion(pair: Pair, rule: str) -> None:
    pair.write()
    first = pair.number(pair.a)
    pair.a.run("marsadm log-rotate data")
    for host in (pair.a, pair.b):
        wait_until(lambda h=host: marscluster.member(h).replay.number > first, 60, "all is replayed")
    pair.hit(pair.b, rule, then="while :; do marsadm log-delete-all data; sleep 1; done", on=pair.a)


@case("fetch-again")
def damage(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.b, "fetch-write flip times=1", rule)


@case("replay-rewrite")
def fetched_log_not_durable(pair: Pair, rule: str) -> None:
    pair.write()
    pair.hit(pair.b, "replay-sync error times=1", rule)


@case("switch-cut", "switch-cut-sync")
def long_copy(pair: Pair, rule: str) -> None:
    pair.write()
    pair.quiet()
    marscluster.wait_synced([pair.a, pair.b])
    pair.b.run(f"head -c 5000 /dev/urandom >> $(ls {LOGS} | tail -1)")
    pair.hit(pair.b, rule, then="marsadm log-rotate data", on=pair.a)


@case("fetch-begin-cut")
def torn_copy(pair: Pair, rule: str) -> None:
    pair.write()
    pair.b.run("marsadm down data --timeout 60", timeout=70)
    pair.b.run(f"head -c 5000 /dev/urandom >> $(ls {LOGS} | tail -1)")
    pair.hit(pair.b, rule, then="marsadm up data")


# --- the secondary syncs ----------------------------------------------------------------------------------


def spoil(pair: Pair) -> None:
    """Parts of the replica's disk are something else; it is down, and must be invalidated."""
    pair.b.run("marsadm down data --timeout 60", timeout=70)
    dev = pair.b.disk("data").dev
    pair.b.run(f"for i in 3 11 20 29 37; do dd if=/dev/urandom of={dev} bs=64k count=6 seek=$((i * 16)) oflag=direct conv=notrunc status=none; done")


@case("sync-start", "sync-begin", "sync-flush", "sync-finish", "sync-pos", "sync-durable", "dial")
@case("sync-read", "sync-write", "sync-round", after=2)
def syncing(pair: Pair, rule: str) -> None:
    spoil(pair)
    pair.write()
    pair.hit(pair.b, rule, then="marsadm invalidate data --timeout 60")


@case("sync-save")
def long_sync(pair: Pair, rule: str) -> None:
    spoil(pair)
    pair.write()
    pair.hit(pair.b, "sync-read delay=900", rule, then="marsadm invalidate data --timeout 60")


# --- emergency mode ---------------------------------------------------------------------------------------


@case("gap-open", "gap-opened", "gap-mark", "gap-marked", "gap-written", "dirty-write", "dirty-sync", "dirty-saved")
def becoming_full(pair: Pair, rule: str) -> None:
    pair.write(3)
    # One that is removed while /mars gets full makes room again, more than the load needs.
    wait_until(pair.has_no_old_logs, 60, "old logs are deleted", 0.5)
    pair.hit(pair.a, rule, then=FILL)


@case("gap-close", "gap-closed")
def getting_room(pair: Pair, rule: str) -> None:
    pair.write(3)
    starve(pair.a)
    pair.hit(pair.a, rule, then="rm -f /mars/filler*; sync")


@case("gap-ask", "gap-map")
def recovering_from_a_gap(pair: Pair, rule: str) -> None:
    pair.write(3)
    starve(pair.a)
    wait_state(pair.b, "waiting", 30)
    pair.hit(pair.b, rule, then="rm -f /mars/filler*; sync", on=pair.a, timeout=90)


def rotate_alone(pair: Pair) -> None:
    """A log is closed of which the other host does not have all. (It has no connection any more by which the primary could
    still read that from a file that has no name.)"""
    pair.b.run("marsadm pause-fetch data --timeout 60", timeout=70)
    pair.write(3)
    number = marscluster.member(pair.a).log_end.number
    pair.a.run("marsadm log-rotate data")
    wait_until(lambda: marscluster.member(pair.a).replay.number > number, 60, "the next log is written")


LET_GO = "marsadm log-delete-all data --also-needed --timeout 30"


@case("drop-marked")
def letting_logs_go(pair: Pair, rule: str) -> None:
    rotate_alone(pair)
    pair.hit(pair.a, rule, then=LET_GO)
    pair.b.run("marsadm resume-fetch data")


@case("jump-begin", "jump-link")
def coming_back_without_logs(pair: Pair, rule: str) -> None:
    rotate_alone(pair)
    pair.a.run(LET_GO, timeout=70)
    with pair.death(pair.b):
        with contextlib.suppress(VmError):
            inject.arm(pair.b, rule)
            pair.b.start("marsadm resume-fetch data", check=False)
        pair.wait_hit(pair.b, rule, 90)


@case("dirty-create")
def new_map(pair: Pair, rule: str) -> None:
    pair.write()
    pair.b.run("marsadm down data --timeout 60 && rm /mars/resource-data/local-dirty-map", timeout=70)
    pair.hit(pair.b, rule, then="marsadm up data")


# --- the tests ---------------------------------------------------------------------------------------------


def chosen(rng, names: list[str]) -> list[str]:
    if POINTS == "all":
        return names
    if POINTS.isdigit():
        return sorted(rng.sample(names, min(int(POINTS), len(names))), key=names.index)
    return POINTS.split(",")


def look_at(mars_hosts, names: list[str], rng, record: bool, rule: typing.Callable[[str], str]) -> None:
    """Comes to each of these points with the rule for it; all must be well afterwards."""
    failed = []
    pair = None
    for name in names:
        begin = time.monotonic()
        if pair is None:
            pair = Pair(mars_hosts(2, inject.spec(record)), rng)
            pair.deadly = record
        c = CASES[name.split()[0]]
        name, _, where = name.partition(" @")
        run = next(o.run for o in CASES.values() if o.run.__name__ == where) if where else c.run
        text = rule(name)
        # A rule with a time would be over before.
        after = rng.randint(0, c.after) if c.after and not where and "for=" not in text else 0
        text += f" after={after}" if after else ""
        print(f"  {text} ({run.__name__})", flush=True)
        try:
            run(pair, text)
            pair.verify()
        except (AssertionError, VmError) as e:
            if POINTS != "all":
                raise
            # All others are looked at as well, by new machines.
            print(f"    FAILED: {e}")
            failed.append(text)
            for host in (pair.a, pair.b):
                host.save_state()
                host.kill()
            pair = None
        else:
            print(f"    {time.monotonic() - begin:.1f} s", flush=True)
    print(f"{len(names)} points, {len(failed)} failed")
    assert not failed, failed


@pytest.mark.timeout(100000 if POINTS == "all" else 900)
def test_the_host_dies_at_a_point_and_nothing_is_lost(mars_hosts):
    rng = seeded(f"points: MARS_POINTS={POINTS} ")
    look_at(mars_hosts, chosen(rng, [n for n in CASES if n != "clock-read"]), rng, True, lambda name: f"{name} die")


# What each kind of point is made to do. Errors end by themselves, as those of a disk or a line that come back; a stall when
# the rules are taken back.
FAULTS = {
    "step": ("error times=3", "error=28 times=2", "nomem times=3", "delay=300 times=5", "stall times=1", "error probability=1/4 for=8000"),
    "memory": ("nomem times=10", "nomem probability=1/3 for=8000", "delay=100 times=5"),
    "pass": ("delay=300 times=5", "stall times=1"),
    "data": ("error times=2", "truncate=512 times=2", "truncate=5000 times=2", "flip times=2", "delay=300 times=5"),
    "clock": ("jump=4000 for=8000", "jump=-4000 for=8000"),
}

# What no program could find out: data that are spoilt in memory before or after their checksums count. For a log that
# the primary itself writes wrong there is a test of its own.
SILENT = {"append-write": "flip", "serve-sync": "flip"}


# Bugs of once: the map of emergency mode could not be written (its header is in the first two blocks) when a gap began, and
# when it ended.
FOUND = [
    "dirty-write error=28 times=2 range=0-8191 @becoming_full",
    "dirty-write error=5 times=3 range=0-8191 @getting_room",
]


@pytest.mark.timeout(100000 if POINTS == "all" else 900)
def test_something_fails_at_a_point_and_nothing_is_lost(mars_hosts):
    rng = seeded(f"faults: MARS_POINTS={POINTS} ")
    (host,) = mars_hosts(1, inject.spec(record=False))
    host.mount_mars()
    host.run("modprobe mars")
    kinds = {name: p.kind for name, p in inject.points(host).items()}
    host.run("rmmod mars")
    host.shutdown()

    def rule(name: str) -> str:
        if " " in name:
            return name
        # At random only where one comes by often.
        faults = [
            f
            for f in FAULTS[kinds[name]]
            if f.split()[0] != SILENT.get(name) and (CASES[name].after > 1 or "probability" not in f)
        ]
        return f"{name} {rng.choice(faults)}"

    names = chosen(rng, list(CASES))
    if POINTS.isdigit():
        # One fault more, of those that found something once.
        few = sorted(rng.sample(names, max(1, len(names) * 2 // 3)), key=names.index)
        names = [*few, rng.choice(FOUND)]
    elif POINTS == "all":
        names += FOUND
    look_at(mars_hosts, names, rng, False, rule)


def test_bit_flipped_on_its_way_into_the_log(mars_hosts):
    """The primary's own log is damaged. The application does not notice, the replica stops there, and says so."""
    pair = Pair(mars_hosts(2, inject.spec(record=False)), seeded())
    a, b = pair.a, pair.b
    pair.deadly = False
    pair.write(3)
    pair.hit(a, "append-write flip times=1 after=5")
    wait_state(b, "defective-log", 90)
    writer = pair.writer
    assert writer
    at = writer.look()
    wait_until(lambda: writer.look() > at + 3, 60, "the application goes on")
    assert "log-rotate" in marscluster.member(b).state
    # A new replica begins with the log that the primary is in: that must be another one.
    damaged = marscluster.member(b).replay
    a.run("marsadm log-rotate data")
    wait_until(lambda: marscluster.member(a).replay.number > damaged.number, 60, "the primary is in the next log")
    b.run("marsadm invalidate data --timeout 60", timeout=70)
    pair.verify()
    assert marscluster.member(b).replay.number > damaged.number
    # All lose their rules when the module goes, so nobody is stalled for ever.
    pair.leave_all()
    for host in (a, b):
        inject.arm(host, "cluster-round stall", "peer-round stall", "scan stall")
        progress(1)
        host.run("rmmod mars", timeout=30)


def test_every_point_has_a_case(mars_hosts):
    """No point without a workload that passes it, so none that is never reached."""
    (host,) = mars_hosts(1, inject.spec(record=False))
    host.mount_mars()
    host.run("modprobe mars")
    found = set(inject.points(host))
    assert found == set(CASES), found ^ set(CASES)
    # What a rule says that a point can't do is refused, and so is what is no rule.
    for line in ("rotate error", "flush-log flip", "clock-read die", "nowhere die", "flush-log die times=0"):
        result = host.run(inject.shell(line), check=False)
        assert not result.ok, line
    assert "# rules" in host.run(f"tail -n 1 {inject.FILE}").stdout
