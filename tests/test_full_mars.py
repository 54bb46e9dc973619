# SPDX-License-Identifier: GPL-2.0-or-later
"""/mars is full: the application goes on, replicas stay consistent, and later get only what was written meanwhile."""

import marscluster
import pytest
from marscase import DEVICE
from marscase import FILL
from marscase import MOUNT
from marscase import Writer
from marscase import cluster_of_two
from marscase import counter
from marscase import equal
from marscase import free
from marscase import lost
from marscase import mount
from marscase import progress
from marscase import refused
from marscase import restart
from marscase import starve
from marscase import state_of
from marscase import sums
from marscase import umount
from marscase import wait_state
from marsvm import lane
from marsvm import wait_until
from marsvm import util

MIB = 1 << 20
# Emergency levels begin at 8, 16, 24 and 32 MiB.
MARS = 256 * MIB

# Each round makes 256 KiB durable somewhere in a part of the device, and says how many milliseconds that took.
LOAD = f"""
n=0
while :; do
    s=${{EPOCHREALTIME/./}}
    dd if=/dev/urandom of={DEVICE} bs=64k count=4 seek=$((FIRST + n * 4 % COUNT)) conv=notrunc,fsync oflag=direct status=none || exit
    n=$((n + 1)); e=${{EPOCHREALTIME/./}}
    echo "n $n $(((e - s) / 1000))"
    sleep 0.02
done
"""


class Load:
    """Writes and flushes all the time, in the MiB from `first` on."""

    def __init__(self, host, first=0, mib=16):
        script = LOAD.replace("FIRST", str(first * 16)).replace("COUNT", str(mib * 16))
        self.job = host.start(script, check=False)
        wait_until(lambda: self.rounds, 30, "the load has started")

    def _lines(self):
        lines = self.job.output()[0].splitlines()
        return [tuple(map(int, line.split()[1:])) for line in lines if line.count(" ") == 2]

    @property
    def rounds(self):
        return len(self._lines())

    def worst(self, since=0):
        return max((ms for _, ms in self._lines()[since:]), default=0)

    def stop(self):
        assert self.job.running, f"the application failed: {self.job.output()}"
        self.job.kill()


def member_json(host, who):
    return next(m for m in marscluster.view_json(host, "data")["members"] if m["host"] == who.name)


def recovered(a, b, timeout=90):
    """Until logs are written again, and the replica has everything."""
    wait_state(a, "primary", timeout)
    wait_until(lambda: state_of(b).split(" ")[0] in ("replaying", "secondary"), timeout, f"recovery of {b.name}", 0.3)
    marscluster.wait_synced([a, b], timeout=timeout)


@pytest.mark.timeout(600)
def test_filled_from_outside_under_load(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2, mars=MARS))
    load = Load(a)
    progress(2)
    before = load.rounds
    starve(a)
    # The flush of every round is complete, without a log.
    at = load.rounds
    wait_until(lambda: load.rounds > at + 20, 60, "the application goes on")
    print(f"longest round: {load.worst(before)} ms")
    assert load.worst(before) < util.scaled(5000), "the application stood still"

    seen = member_json(a, a)
    assert seen["actual"]["emergency"] and seen["disk_state"] == "EmergencyMode", seen
    assert "log-delete-all" in seen["state_reason"]
    wait_state(b, "waiting", 30)
    assert "emergency" in state_of(b)
    elsewhere = member_json(b, a)
    assert elsewhere["actual"]["emergency"], elsewhere
    replica = member_json(b, b)
    assert replica["consistent"] and replica["synced"], replica
    stopped = marscluster.member(b).replay
    progress(2)
    assert marscluster.member(b).replay[:2] <= stopped[:2] or marscluster.member(b).replay.pos == 0

    sent = counter(a, "served_bytes")
    free(a)
    recovered(a, b)
    load.stop()
    marscluster.wait_synced([a, b])
    travelled = counter(b, "synced_bytes")
    dirty = b.run("dmesg | grep 'may have been written without a log' | tail -1").stdout
    print(f"recovery: {travelled >> 10} KiB of the disk travelled, {(counter(a, 'served_bytes') - sent) >> 10} KiB in all; {dirty}")
    # 16 MiB are written again and again; the device has 128.
    assert 0 < travelled <= 20 * MIB, travelled
    equal([a, b])


@pytest.mark.timeout(600)
def test_filled_by_mars_itself_while_the_peer_is_away(mars_hosts):
    # All of it has to be replayed.
    a, b = cluster_of_two(mars_hosts(2, mars=MARS // 2 if lane.DEBUG else MARS))
    a.cut_link(b)
    load = Load(a)
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=48 seek=32 oflag=direct conv=notrunc status=none", timeout=90)
    # The logs of what is written again and again are what fills /mars.
    burn = a.start(
        f"while :; do dd if=/dev/urandom of={DEVICE} bs=1M count=16 seek=16 oflag=direct conv=notrunc status=none || exit; done",
        check=False,
    )
    wait_state(a, "emergency", 180)
    progress(3)
    assert burn.running and load.job.running
    worst = load.worst()
    burn.kill()
    print(f"longest round: {worst} ms")
    end = marscluster.member(a).log_end

    # The peer comes back, gets the logs, and they can go. Nobody does anything.
    a.heal_link(b)
    wait_until(lambda: marscluster.member(b).replay.number >= end.number, 120, "the replica has the logs", 0.5)
    recovered(a, b, 120)
    load.stop()
    marscluster.wait_synced([a, b])
    print(f"recovery: {counter(b, 'synced_bytes') >> 10} KiB of the disk travelled, {counter(b, 'fetched_bytes') >> 10} KiB of logs")
    assert counter(b, "synced_bytes") <= 40 * MIB
    equal([a, b])


@pytest.mark.timeout(900)
def test_crashes_in_emergency_mode_and_in_recovery(mars_hosts):
    """What fsync said is safe is there after each crash, although no log has it."""
    a, b = cluster_of_two(mars_hosts(2, mars=MARS))
    mount(a)
    writer = Writer(a, "before")
    wait_until(lambda: writer.look() >= 5, 60, "files are written")
    starve(a)
    known = {"before": writer}
    for n in range(2):
        during = Writer(a, f"during{n}")
        wait_until(lambda: during.look() >= 8, 60, "files are written in emergency mode")
        for w in known.values():
            if w.running:
                w.look()
        during.look()
        known[f"during{n}"] = during
        safe = {folder: w.safe for folder, w in known.items()}
        a.power_cut()
        restart(a)
        marscluster.wait_device(a, timeout=90)
        wait_state(a, "emergency", 30)
        mount(a)
        for folder, files in safe.items():
            problems = lost(files, sums(a, folder), crashed=True)
            assert not problems, f"after crash {n}, in {folder}: {problems}"
    replica = member_json(b, b)
    assert replica["consistent"] and replica["synced"], replica

    free(a)
    wait_until(lambda: "without a log" in b.run("dmesg").stdout, 60, "the replica asks for the map", 0.1)
    a.power_cut()
    restart(a)
    marscluster.wait_device(a, timeout=90)
    recovered(a, b)
    mount(a)
    for folder, files in safe.items():
        problems = lost(files, sums(a, folder), crashed=True)
        assert not problems, f"in {folder}: {problems}"
    umount(a)
    marscluster.wait_synced([a, b])
    print(f"recovery: {counter(b, 'synced_bytes') >> 10} KiB of the disk travelled")
    equal([a, b])


@pytest.mark.timeout(600)
def test_second_gap_before_the_replica_has_recovered_from_the_first(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2, mars=MARS))
    a.cut_link(b)
    for n in range(2):
        load = Load(a, first=n * 20)
        starve(a)
        at = load.rounds
        wait_until(lambda: load.rounds > at + 10, 60, "the application goes on")
        load.stop()
        free(a)
        wait_state(a, "primary", 60)
        # What was written without a log is written again with one, so replaying it too early would be seen.
        a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=8 seek={n * 20 + 4} oflag=direct conv=notrunc status=none")
    a.heal_link(b)
    recovered(a, b)
    # It may be said several times, until replay stops.
    gaps = b.run("dmesg | grep -o 'getting what was written without a log before .*' | sort -u | wc -l").out
    assert int(gaps) == 2, gaps
    travelled = counter(b, "synced_bytes")
    print(f"recovery: {travelled >> 10} KiB of the disk travelled")
    # Each time what both gaps have touched, at most, and not the whole of 128 MiB.
    assert 0 < travelled <= 2 * 48 * MIB, travelled
    wait_until(lambda: "have recovered" in a.run("dmesg").stdout, 30, "the map is cleared")
    wait_until(lambda: member_json(a, a)["actual"]["dirty_bytes"] == 0, 20, "it says so")
    equal([a, b])


@pytest.mark.timeout(600)
def test_a_resize_does_not_pass_a_gap(mars_hosts):
    """What was written without a log is not known to be on a replica because the new part of the resource is."""
    a, b = mars_hosts(2, mars=MARS)
    cluster_of_two((a, b), "64M")
    b.run("marsadm pause-sync data")
    starve(a)
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M seek=8 count=4 oflag=direct conv=fsync,notrunc status=none")
    free(a)
    wait_state(a, "primary", 60)
    wait_state(b, "waiting", 60)
    a.run("marsadm resize data 96M --timeout 60", timeout=70)
    b.run("marsadm resume-sync data")
    wait_until(lambda: marscluster.member(b).is_synced, 90, "all of it is synced")
    recovered(a, b)
    marscluster.wait_synced((a, b), timeout=90)
    equal([a, b])


def test_down_reload_and_handover_in_emergency_mode(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2, mars=MARS))
    starve(a)
    mount(a)
    writer = Writer(a, "files")
    wait_until(lambda: writer.look() >= 8, 60, "files are written in emergency mode")
    writer.stop()
    umount(a)
    result = b.run("marsadm primary data --timeout 10", check=False, timeout=40)
    assert not result.ok and "emergency mode" in result.stderr, result

    a.run("marsadm down data --timeout 30", timeout=40)
    a.run("rmmod mars", timeout=30)
    a.run("modprobe mars", timeout=30)
    a.run("marsadm up data --timeout 30", timeout=40)
    marscluster.wait_device(a)
    wait_state(a, "emergency", 30)
    mount(a)
    assert not lost(writer.safe, sums(a, "files"))
    umount(a)
    a.run("marsadm secondary data --timeout 30", timeout=40)
    free(a)
    # The gap is still open: only the old primary can end it.
    progress(3)
    assert marscluster.member(b).state.split(" ")[0] != "syncing"
    a.run("marsadm primary data --timeout 30", timeout=40)
    recovered(a, b)
    b.run("marsadm primary data --timeout 60", timeout=70)
    mount(b)
    assert not lost(writer.safe, sums(b, "files"))
    umount(b)
    marscluster.wait_synced([a, b])
    equal([a, b])


@pytest.mark.timeout(600)
def test_a_handover_waits_for_what_was_written_without_a_log(mars_hosts):
    """Nothing is written any more, as before any handover: the log behind the gap is empty, so all of it is there at once."""
    a, b = cluster_of_two(mars_hosts(2, mars=MARS))
    b.run("marsadm pause-sync data")
    starve(a)
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M seek=9 count=2 oflag=direct conv=fsync,notrunc status=none")
    read = f"dd if={DEVICE} bs=1M skip=9 count=2 iflag=direct status=none | sha256sum"
    kept = a.run(read).out
    free(a)
    wait_state(a, "primary")
    wait_until(lambda: marscluster.member(b).replay.number == marscluster.member(a).log_end.number, 30, "the replica is before the gap")
    refused(b, "marsadm primary data --timeout 8", r"replay is at log-\S+,0")
    wait_state(a, "primary")
    assert a.run(read).out == kept
    b.run("marsadm resume-sync data")
    # Until all is compared, the replica is incomplete, and no handover is possible at all.
    wait_until(lambda: marscluster.member(b).replay.pos > 0, 60, "the gap is passed")
    marscluster.wait_synced([a, b], timeout=90)
    b.run("marsadm primary data --timeout 90", timeout=100)
    assert b.run(read).out == kept
    marscluster.wait_synced([a, b])
    equal([a, b])


@pytest.mark.timeout(600)
def test_forced_failover_in_emergency_mode_is_a_split_brain(mars_hosts):
    """What no log has is a history of its own: never overwritten without the administrator's word."""
    a, b = cluster_of_two(mars_hosts(2, mars=MARS))
    mount(a)
    before = Writer(a, "before")
    wait_until(lambda: before.look() >= 4, 60, "files are written")
    before.stop()
    marscluster.wait_synced([a, b])
    starve(a)
    during = Writer(a, "during")
    wait_until(lambda: during.look() >= 4, 60, "files are written in emergency mode")
    a.power_cut()
    b.run("marsadm pause-fetch data --timeout 30; marsadm primary --force data --timeout 60", timeout=100)
    mount(b)
    assert not lost(before.safe, sums(b, "before"))
    b.run(f"echo b > {MOUNT}/b; sync {MOUNT}/b")
    umount(b)

    restart(a)
    wait_state(a, "split-brain", 60)
    progress(3)
    assert state_of(a).startswith("split-brain")
    wait_until(lambda: marscluster.view_json(b, "data")["split_brain"], 30, "the split brain is seen on the other host")
    free(a)
    a.run("marsadm invalidate data --timeout 60", timeout=70)
    b.run("marsadm up data --timeout 30", timeout=40)
    marscluster.wait_synced([b, a], timeout=120)
    equal([b, a])


@pytest.mark.timeout(600)
def test_failover_without_room_before_a_gap(mars_hosts):
    """Nothing of the log that the replica stands in could be replayed here, and there is no room for a log of its own."""
    a, b = cluster_of_two(mars_hosts(2, mars=MARS))
    mount(a)
    writer = Writer(a, "before")
    wait_until(lambda: writer.look() >= 4, 60, "files are written")
    writer.stop()
    umount(a)
    marscluster.wait_synced([a, b])
    b.run("marsadm pause-sync data")
    starve(a)
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M seek=9 count=2 oflag=direct conv=fsync,notrunc status=none")
    free(a)
    wait_state(a, "primary")
    wait_until(lambda: marscluster.member(b).replay.number == marscluster.member(a).log_end.number, 30, "the replica is before the gap")
    assert marscluster.member(b).replay.pos == 0
    a.cut_link(b)
    b.run("marsadm pause-fetch data --timeout 30")
    b.run(FILL, check=False, timeout=60)
    b.run("marsadm primary --force data --timeout 60", timeout=100)
    marscluster.wait_device(b)
    wait_state(b, "emergency")
    mount(b)
    assert not lost(writer.safe, sums(b, "before"))
    b.run(f"echo b > {MOUNT}/b; sync {MOUNT}/b")
    free(b)
    wait_state(b, "primary")
    umount(b)
    a.heal_link(b)
    wait_state(a, "split-brain", 60)
    a.run("marsadm secondary data --timeout 60; marsadm invalidate data --timeout 60", timeout=130, check=False)
    b.run("marsadm up data --timeout 30", timeout=40)
    marscluster.wait_synced([b, a], timeout=120)
    equal([b, a])
