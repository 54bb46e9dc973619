# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks fail, below the data or below the log, for a moment or for ever. Each time what is documented in
Documentation/durability.md happens; nothing hangs, nothing that was flushed is lost, and after the repair all disks are
equal again."""

import time

import pytest

import marscluster
from marscase import DEVICE
from marscase import equal
from marscase import free
from marscase import full
from marscase import progress
from marscase import refused
from marscase import settled
from marscase import starve
from marscase import starve_to_death
from marscase import state_of
from marscase import wait_state
from marscase.faults import DEAD
from marscase.faults import FAILS
from marscase.faults import GOOD
from marscase.faults import NOISE
from marscase.faults import UNREADABLE
from marscase.faults import Mapped
from marscase.faults import ScsiDebug
from marsvm import wait_until

SIZE = "64M"
MIB = 1 << 20


def write(host, mib: int, count: int = 2, check: bool = True):
    """Durable when it returns."""
    return host.run(
        f"dd if=/dev/urandom of={DEVICE} bs=1M seek={mib} count={count} oflag=direct conv=fsync,notrunc status=none",
        check=check,
        timeout=90,
    )


def digest(host, mib: int, count: int = 2) -> str:
    return host.run(f"dd if={DEVICE} bs=1M skip={mib} count={count} iflag=direct status=none | sha256sum").out


def cluster(hosts, *disks, size: str = SIZE, **tunables):
    """A resource on these disks, synced; the first host is primary."""
    a, *others = hosts
    marscluster.setup_cluster(hosts, **tunables)
    a.run(f"marsadm create-resource data {disks[0]} data {size} --timeout 60", timeout=70)
    marscluster.wait_device(a)
    for host, disk in zip(others, disks[1:], strict=True):
        marscluster.join_resource(host, disk=disk)
    if others:
        marscluster.wait_synced(hosts)


def down(host, seconds: float = 40) -> None:
    """`down` ends by itself, and the module can be unloaded."""
    start = time.monotonic()
    host.run(f"marsadm down data --timeout {seconds:.0f}", timeout=seconds + 10)
    assert state_of(host).startswith("detached")
    host.run("rmmod mars", timeout=60)
    print(f"{host.name}: down and unloaded in {time.monotonic() - start:.1f} s")


def up(host) -> None:
    host.run("modprobe mars", timeout=30)
    host.run("marsadm up data --timeout 60", timeout=70)


def test_the_primary_s_disk_fails(mars_hosts):
    a, b = mars_hosts(2)
    disk = Mapped(a, "data")
    cluster((a, b), disk.dev, b.disk("data").dev)
    write(a, 0, 20)
    marscluster.wait_synced((a, b))
    wait_until(lambda: marscluster.member(a).write_back == 0, 30, "all is on the disk")
    kept = digest(a, 4)

    # Writes fail, for a while: nobody but the administrator notices.
    disk.be(FAILS)
    write(a, 2)
    fresh = digest(a, 2)
    wait_state(a, "disk-error", 20)
    log = a.run("dmesg").out
    assert log.count("m-data failed") == 1, "reported once"
    write(a, 6)
    end = marscluster.durable_end(a)
    settled(b, end)
    assert not marscluster.member(a).replay.reaches(end), "the link passes what the disk does not have"
    disk.be(GOOD)
    wait_state(a, "primary", 30)
    wait_until(lambda: marscluster.member(a).replay.reaches(end), 30, "all is written back")
    assert digest(a, 2) == fresh

    # Reads fail: those that need the disk, and no others.
    disk.only(UNREADABLE, [(8 << 11, 2 << 11)])
    result = a.run(f"dd if={DEVICE} of=/dev/null bs=1M skip=8 count=2 iflag=direct status=none", check=False)
    assert "Input/output error" in result.stderr
    assert digest(a, 4) == kept
    # Half of it is in the buffer for as long as nothing can be written; the other half can be read.
    disk.only("error", [(9 << 11, 1 << 11)])
    write(a, 9, 1)
    digest(a, 8, 2)
    # The disk is asked for 256 KiB around 4 KiB of the buffer, which are all that it can't read.
    a.run(f"dd if={DEVICE} of=/dev/null bs=1M skip=8 count=2 iflag=direct status=none")
    disk.be(GOOD)
    wait_state(a, "primary", 30)

    # It is gone for good: the other host takes over, and nothing is lost.
    disk.be(DEAD)
    write(a, 12, 4)
    wait_state(a, "disk-error", 20)
    newest = digest(a, 12, 4)
    b.run("marsadm primary data --timeout 90", timeout=100)
    marscluster.wait_device(b)
    assert digest(b, 12, 4) == newest
    write(b, 30, 3)
    end = marscluster.durable_end(b)
    wait_state(a, "disk-error", 60)
    down(a)
    # A dead disk can't be attached, and that ends by itself, too.
    a.run("modprobe mars", timeout=30)
    a.run("marsadm up data --timeout 5", check=False, timeout=20)
    wait_state(a, "disk-error", 30)
    down(a)
    disk.be(GOOD)
    up(a)
    settled(a, end)
    equal([a, b])


def test_the_secondary_s_disk_fails(mars_hosts):
    a, b = mars_hosts(2)
    disk = Mapped(b, "data")
    cluster((a, b), a.disk("data").dev, disk.dev)
    disk.be(FAILS)
    write(a, 0, 4)
    end = marscluster.durable_end(a)
    wait_state(b, "disk-error", 30)
    assert not marscluster.member(b).replay.reaches(end)
    disk.be(GOOD)
    settled(b, end)
    wait_state(b, "replaying", 20)
    disk.be(DEAD)
    write(a, 8, 4)
    end = marscluster.durable_end(a)
    wait_state(b, "disk-error", 30)
    assert state_of(a).startswith("primary")
    # It is of no use as a primary, which does not keep it from being taken down.
    a.run("marsadm secondary data --timeout 60", timeout=70)
    b.run("marsadm primary data --timeout 15", check=False, timeout=40)
    wait_state(b, "disk-error", 30)
    down(b)
    disk.be(GOOD)
    b.run("modprobe mars", timeout=30)
    b.run("marsadm up data --timeout 60; marsadm primary data --timeout 60", timeout=130)
    marscluster.wait_device(b)
    write(b, 20)
    settled(a, marscluster.durable_end(b))
    equal([a, b])


def test_p1_a_disk_that_loses_its_cache_gets_everything_again(mars_hosts):
    """On both sides: the writes of two seconds vanish, and only the flush fails."""
    a, b = mars_hosts(2)
    disks = [ScsiDebug(a), ScsiDebug(b)]
    cluster((a, b), *[d.dev for d in disks])
    write(a, 0, 40)
    marscluster.wait_synced((a, b))
    for host, disk in zip((a, b), disks, strict=True):
        wait_until(lambda: marscluster.member(a).write_back == 0, 30, "all is on the disk")
        before = marscluster.member(host).replay
        disk.fail(*ScsiDebug.FLUSH)
        disk.forget_writes(True)
        a.run(f"fio --name=w --thread --filename={DEVICE} --rw=randwrite --bs=4k --ioengine=libaio --iodepth=4 --direct=1 "
              "--rate_iops=400 --time_based --runtime=3 --size=40m", timeout=60)
        wait_until(lambda: "flushing" in host.run("dmesg | grep failed", check=False).out, 20, "the flush has failed")
        disk.forget_writes(False)
        end = marscluster.durable_end(a)
        wait_state(host, "disk-error", 20)
        assert marscluster.member(host).replay == before, "nothing is durable"
        disk.heal(*ScsiDebug.FLUSH)
        settled(host, end)
    marscluster.wait_synced((a, b))
    marscluster.down((a, b))
    assert disks[0].digest(64) == disks[1].digest(64)


def extents(host, path: str) -> list[tuple[int, int]]:
    """Where a file lies on its disk, in sectors."""
    found = []
    for line in host.run(f"filefrag -v -b512 {path}").out.splitlines():
        words = line.replace("..", " ").replace(":", " ").split()
        if words and words[0].isdigit():
            found.append((int(words[3]), int(words[5])))
    return sorted(found)


def mars_on(host) -> Mapped:
    """/mars on a disk that can fail."""
    disk = Mapped(host, "mars")
    host.run(f"mkdir -p /mars && mount {disk.dev} /mars")
    return disk


def log_of(host) -> str:
    end = marscluster.member(host).log_end
    return f"/mars/resource-data/log-{end.number:09}-{end.creator}"


def test_the_disk_of_the_log_fails(mars_hosts):
    a, b = mars_hosts(2)
    disk = mars_on(a)
    cluster((a, b), a.disk("data").dev, b.disk("data").dev)
    write(a, 0, 2)
    marscluster.wait_synced((a, b))

    # Where the log lies, nothing can be written: flushes wait, and nothing is lost.
    a.run("sync /mars")
    disk.only(FAILS, extents(a, log_of(a)))
    job = a.start(f"dd if=/dev/urandom of={DEVICE} bs=1M seek=4 count=1 oflag=direct conv=fsync,notrunc status=none", timeout=90)
    wait_state(a, "disk-error", 20)
    assert job.running, "a flush was complete without a log"
    disk.be(GOOD)
    job.wait()
    wait_state(a, "primary", 20)
    settled(b, marscluster.durable_end(a))

    # What a peer has not fetched yet can't be read; it says so, and goes on when it can.
    b.run("marsadm pause-fetch data --timeout 30", timeout=40)
    write(a, 8, 30)
    end = marscluster.durable_end(a)
    disk.only(UNREADABLE, extents(a, log_of(a)))
    b.run("marsadm resume-fetch data --timeout 30", timeout=40)
    wait_until(lambda: "can't read" in state_of(b), 30, "the peer's trouble is seen")
    disk.be(GOOD)
    settled(b, end)

    # /mars is gone for good. Flushes fail after a while instead of hanging; the data on the disk can be read.
    kept = digest(a, 8)
    disk.be(FAILS)
    a.allow(*NOISE)
    start = time.monotonic()
    failed = write(a, 2, 1, check=False)
    print(f"the flush failed after {time.monotonic() - start:.1f} s")
    assert not failed.ok and "Input/output error" in failed.stderr
    assert digest(a, 8) == kept
    a.run("rmmod mars", timeout=60)
    a.run("umount /mars")
    disk.be(GOOD)
    a.run(f"e2fsck -fp {disk.dev}", check=False, timeout=60)
    a.run(f"mount {disk.dev} /mars && modprobe mars", timeout=60)
    marscluster.wait_device(a)
    assert digest(a, 8) == kept
    write(a, 2)
    marscluster.wait_synced((a, b))
    equal([a, b])


@pytest.mark.timeout(600)
def test_the_primary_s_disk_fails_in_emergency_mode(mars_hosts):
    """What is not on the disk then is nowhere else but in the buffer."""
    a, b = mars_hosts(2, mars=256 * MIB)
    disk = Mapped(a, "data")
    cluster((a, b), disk.dev, b.disk("data").dev)
    write(a, 0, 20)
    marscluster.wait_synced((a, b))
    starve_to_death(a)
    write(a, 1)

    # A flush waits for the disk, and is complete when the data is on it.
    disk.be(FAILS)
    job = a.start(f"dd if=/dev/urandom of={DEVICE} bs=1M seek=4 count=2 oflag=direct conv=fsync,notrunc status=none")
    wait_state(a, "disk-error", 20)
    progress(3)
    assert job.running, job.wait(check=False)
    disk.be(GOOD)
    job.wait(timeout=40)
    wait_state(a, "emergency", 30)
    flushed = digest(a, 4)
    assert a.run(f"dd if={disk.lower} bs=1M skip=4 count=2 iflag=direct status=none | sha256sum").out == flushed

    # Not for ever. What it was about is still there, and gets to the disk when that is possible.
    disk.be(FAILS)
    result = write(a, 8, check=False)
    assert "Input/output error" in result.stderr, result
    newest = digest(a, 8)
    assert digest(a, 4) == flushed
    # Emergency mode can't end before everything is on the disk.
    free(a)
    progress(6)
    assert state_of(a).startswith("disk-error"), state_of(a)
    assert not state_of(b).startswith("syncing"), state_of(b)
    disk.be(GOOD)
    wait_state(a, "primary", 60)
    write(a, 12)
    marscluster.wait_synced((a, b), timeout=90)
    assert digest(a, 8) == newest

    # A dead disk neither holds up `down` nor unloading; what no flush has confirmed is lost with it, and that is said.
    starve(a)
    write(a, 14)
    kept = digest(a, 14)
    disk.be(DEAD)
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M seek=16 count=1 oflag=direct conv=notrunc status=none")
    wait_state(a, "disk-error", 20)
    down(a)
    assert "what was not flushed is given up" in a.run("dmesg").out
    disk.be(GOOD)
    up(a)
    marscluster.wait_device(a)
    assert digest(a, 14) == kept
    free(a)
    wait_state(a, "primary", 60)
    marscluster.wait_synced((a, b), timeout=90)
    equal([a, b])


@full
def test_writes_fail_instead_of_hanging_when_a_dead_disk_has_filled_the_buffer(mars_hosts):
    (a,) = mars_hosts(1)
    disk = Mapped(a, "data")
    cluster((a,), disk.dev, write_buffer_mb=8)
    disk.be(DEAD)
    start = time.monotonic()
    result = a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=40 oflag=direct status=none", check=False, timeout=200)
    print(f"failed after {time.monotonic() - start:.1f} s")
    assert "Input/output error" in result.stderr
    refused(a, f"timeout 60 dd if=/dev/urandom of={DEVICE} bs=1M count=1 oflag=direct status=none", "Input/output error", timeout=100)
    down(a)
    disk.be(GOOD)
    up(a)
    marscluster.wait_device(a)
    write(a, 0, 40)


@full
@pytest.mark.parametrize("which", ["source", "target"])
def test_a_disk_fails_during_the_sync(mars_hosts, which):
    a, b = mars_hosts(2)
    disks = [Mapped(a, "data"), Mapped(b, "data")]
    cluster((a,), disks[0].dev)
    b.mount_mars()
    marscluster.load_module(b)
    marscluster.join_cluster(b, a)
    write(a, 0, 60)
    wait_until(lambda: marscluster.member(a).write_back == 0, 30, "all is on the disk")
    a.shape_link(b, rate="40mbit")
    bad = disks[which == "target"]
    marscluster.join_resource(b, disk=disks[1].dev)
    wait_until(lambda: marscluster.member(b).synced > 4 << 20, 60, "the sync proceeds")
    bad.be(UNREADABLE if which == "source" else DEAD)
    wait_until(lambda: state_of(b).startswith(("waiting", "disk-error")), 30, "the sync says why it waits")
    assert not marscluster.member(b).is_synced
    down(b)
    bad.be(GOOD)
    up(b)
    a.shape_link(b)
    marscluster.wait_synced((a, b))
    equal([a, b])


@full
def test_a_sync_whose_flush_fails_begins_again_where_it_was_durable(mars_hosts):
    a, b = mars_hosts(2)
    disk = ScsiDebug(b)
    cluster((a,), a.disk("data").dev)
    b.mount_mars()
    marscluster.load_module(b)
    marscluster.join_cluster(b, a)
    write(a, 0, 60)
    disk.fail(*ScsiDebug.FLUSH)
    disk.forget_writes(True)
    marscluster.join_resource(b, disk=disk.dev)
    wait_state(b, "disk-error", 60)
    disk.forget_writes(False)
    disk.heal(*ScsiDebug.FLUSH)
    marscluster.wait_synced((a, b))
    marscluster.down((a, b))
    size = 64 << 20
    with open(a.disk("data").path, "rb") as f:
        want = a.run("sha256sum", stdin=f.read(size)).out
    assert disk.digest(64) == want


@full
def test_one_place_that_can_t_be_written_holds_up_nothing_else(mars_hosts):
    a, b = mars_hosts(2)
    disk = Mapped(a, "data")
    cluster((a, b), disk.dev, b.disk("data").dev)
    # The device mapper asks a target that is only an error for no flush.
    disk.only(DEAD, [(5000, 8)])
    for n in range(4):
        write(a, n * 8, 8)
    settled(b, marscluster.durable_end(a))
    wait_state(a, "disk-error", 20)
    wait_until(lambda: marscluster.member(a).write_back < 4 << 20, 60, "the rest is written back")
    down(a)
    disk.be(GOOD)
    up(a)
    marscluster.wait_device(a)
    marscluster.wait_synced((a, b))
    equal([a, b])
