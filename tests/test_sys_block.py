# SPDX-License-Identifier: GPL-2.0-or-later
"""Bios, block devices and disks of the system layer (src/sys) in a real kernel."""

import time

import pytest

from marsvm import DiskSpec
from marsvm import wait_until
from test_sys import PROC
from test_sys import Selftest

# pylint: disable=redefined-outer-name

DEV = "/dev/mars/t0"
LIMIT = 240
# Two disks: an ordinary one and one with blocks of 4 KiB.
DISKS = (DiskSpec("plain", 1 << 30), DiskSpec("block4k", 1 << 30, block=4096))


@pytest.fixture
def machine(mars_hosts):
    (host,) = mars_hosts(1, disks=DISKS)
    host.run("modprobe dm-mod; dmsetup remove_all -f", check=False)
    return host


@pytest.fixture
def selftest(machine):
    test = Selftest(machine)
    yield test
    machine.run(f"umount /mnt/t; echo stop > {PROC}/disk", check=False)
    test.remove()


@pytest.fixture(params=["plain", "block4k"])
def lower(request, machine):
    return machine.disk(request.param).dev


@pytest.fixture
def disk(selftest, lower):
    """A disk that passes everything on to the one below."""
    selftest.host.run(f"echo pass {lower} > {PROC}/disk")
    return DEV


def queue(host, name):
    return int(host.run(f"cat '/sys/block/mars!t0/queue/{name}'").out)


@pytest.mark.parametrize("name", ["block-open", "block-many", "block-groups", "block-zeroes", "block-finish-race"])
def test_case(selftest, lower, name):
    selftest.case(name, lower, timeout=LIMIT)


def test_errors_of_the_disk_come_back(selftest, machine):
    lower = machine.disk("plain").dev
    machine.run(f"printf '0 2048 linear {lower} 0\\n2048 2048 error\\n' | dmsetup create broken")
    selftest.case("block-errors", "/dev/" + machine.run("dmsetup info -c --noheadings -o blkdevname broken").out)
    machine.run("dmsetup remove broken")
    machine.allow("Buffer I/O error", "attempt to access beyond end")


def test_a_disk_comes_and_goes_while_it_is_used(selftest, machine):
    loops = [
        "while :; do : < /dev/mars/t1; done",
        "while :; do dd if=/dev/mars/t1 of=/dev/null bs=64k count=4 status=none; done",
        "while :; do dd if=/dev/zero of=/dev/mars/t1 bs=64k count=4 status=none oflag=direct; done",
        "while :; do dd if=/dev/zero of=/dev/mars/t1 bs=4k count=4 status=none; sync; done",
        "while :; do cat /sys/block/mars!t1/size /sys/block/mars!t1/queue/* /proc/diskstats /proc/partitions; done",
    ]
    jobs = [machine.start(f"bash -c '{loop}' >/dev/null 2>&1", check=False) for loop in loops]
    try:
        selftest.case("disk-churn", "150", timeout=LIMIT)
    finally:
        for job in jobs:
            job.kill()
    machine.allow("I/O error", "lost async page write")


def test_data_of_all_sizes_and_shapes(machine, disk):
    common = f"--filename={disk} --verify=crc32c --verify_fatal=1 --group_reporting --minimal"
    block = queue(machine, "logical_block_size")
    for job in (
        f"--name=direct --rw=randrw --bsrange={block}-3m --blockalign={block} --direct=1 --ioengine=libaio"
        " --iodepth=16 --size=96m",
        "--name=cached --rw=randwrite --bs=4k --fsync=8 --ioengine=psync --size=8m",
        f"--name=small --rw=randrw --bs={block} --direct=1 --ioengine=libaio --iodepth=64 --size={2000 * block}",
    ):
        machine.run(f"fio {job} {common}", timeout=LIMIT)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system(machine, disk, kind):
    force = {"ext4": "-F", "xfs": "-f"}[kind]
    check = {"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}[kind]
    machine.run(f"mkfs.{kind} -q {force} {disk} && mkdir -p /mnt/t && mount {disk} /mnt/t", timeout=LIMIT)
    machine.run("cp -r /usr/share /mnt/t/ && sync && echo 3 > /proc/sys/vm/drop_caches", timeout=LIMIT)
    machine.run("diff -r /usr/share /mnt/t/share", timeout=LIMIT)
    assert f"mounted {kind}; opened by mount(" in machine.run(f"cat {PROC}/holder").out
    machine.run(f"umount /mnt/t && {check} {disk}", timeout=LIMIT)
    assert machine.run(f"cat {PROC}/holder").out == ""


def test_a_disk_looks_as_it_should(machine, disk, lower):
    stat = machine.run("cat '/sys/block/mars!t0/size'").out
    assert stat == machine.run(f"cat /sys/block/{lower.removeprefix('/dev/')}/size").out
    assert queue(machine, "logical_block_size") in (512, 4096)
    assert queue(machine, "max_sectors_kb") == queue(machine, "max_hw_sectors_kb") == 1024
    assert queue(machine, "discard_max_bytes") == queue(machine, "write_zeroes_max_bytes") == 0
    assert queue(machine, "fua") == 1 and queue(machine, "stable_writes") == 0
    assert machine.run("cat '/sys/block/mars!t0/queue/write_cache'").out == "write back"
    # No partitions, whatever is written.
    machine.run(f"echo 'start=2048' | sfdisk -q --no-reread {disk}; blockdev --rereadpt {disk}; sleep 0.2", check=False)
    assert machine.run("ls /dev/mars").out == "t0"
    assert not machine.run(f"blkdiscard {disk}", check=False).ok
    machine.run(f"blkdiscard -z -o 0 -l 1M {disk}")


def test_it_is_counted(machine, disk):
    def stats():
        fields = machine.run("cat '/sys/block/mars!t0/stat'").out.split()
        return [int(f) for f in fields]

    before = stats()
    machine.run(f"dd if={disk} of=/dev/null bs=1M count=16 iflag=direct status=none")
    machine.run(f"dd if=/dev/zero of={disk} bs=1M count=8 oflag=direct status=none")
    # A bio that is switched off while it is under way, or on, must not be counted half.
    machine.run(f"fio --name=x --filename={disk} --rw=randrw --bs=4k --direct=1 --ioengine=libaio --iodepth=32"
                " --time_based --runtime=3 --minimal & for i in $(seq 100); do for x in 0 1; do"
                " echo $x > '/sys/block/mars!t0/queue/iostats'; done; done; wait", timeout=LIMIT)
    after = stats()
    assert after[2] - before[2] >= 16 << 11 and after[6] - before[6] >= 8 << 11
    assert after[8] == 0, "nothing is in flight"


def test_who_has_it_open(machine, disk):
    def holder():
        return machine.run(f"cat {PROC}/holder").out

    def remove():
        return machine.run(f"echo begin-removal > {PROC}/disk", check=False)

    assert holder() == ""
    job = machine.start(f"bash -c 'exec 7<{disk}; exec sleep 1000'", check=False)
    wait_until(lambda: "opened by" in holder(), 10, what="the opener")
    assert holder().startswith(("opened by bash(", "opened by sleep("))
    assert "busy" in remove().stderr
    removed = machine.run("rmmod mars_selftest", check=False)
    assert "in use" in removed.stderr
    job.kill()
    wait_until(lambda: holder() == "", 10, what="the end of the opener")

    assert remove().ok
    assert "No such device" in machine.run(f": < {disk}", check=False).stderr
    machine.run(f"echo cancel-removal > {PROC}/disk")
    machine.run(f": < {disk}")

    # Claimed by the device mapper.
    sectors = machine.run(f"blockdev --getsz {disk}").out
    machine.run(f"dmsetup create above --table '0 {sectors} linear {disk} 0'")
    assert holder().startswith("claimed; opened by dmsetup(")
    assert "busy" in remove().stderr
    machine.run("dmsetup remove above")
    assert remove().ok


def test_size_changes_are_seen(machine, disk):
    machine.run(f"echo size 8388608 > {PROC}/disk")
    assert machine.run(f"blockdev --getsize64 {disk}").out == "8388608"
    assert not machine.run(f"dd if={disk} of=/dev/null bs=1M skip=8 count=1 iflag=direct status=none"
                           " | grep -q .", check=False).ok


def test_taken_away_while_it_is_mounted(machine, selftest, disk):
    machine.run(f"mkfs.ext4 -q -F {disk} && mkdir -p /mnt/t && mount {disk} /mnt/t", timeout=LIMIT)
    machine.run("cp -r /usr/share/common-licenses /mnt/t/ || cp -r /etc /mnt/t/")
    # Waits for the last opener.
    job = machine.start(f"echo stop > {PROC}/disk", check=False)
    wait_until(lambda: not machine.run("ls '/sys/block/mars!t0'", check=False).ok, 60, what="the disk is gone")
    time.sleep(1)
    assert job.running
    machine.allow("EXT4-fs", "Buffer I/O error", "JBD2", "Aborting journal", "device offline")
    machine.run("umount /mnt/t", check=False)
    assert job.wait().ok


def test_bios_that_are_not_completed_properly_fail(machine, selftest):
    machine.allow("mars_c_may_wait_for_io|mars_c_bio_read_through")
    machine.run(f"echo careless {machine.disk('plain').dev} > {PROC}/disk")
    for _ in range(3):
        for args in (f"if={DEV} of=/dev/null iflag=direct", f"if=/dev/zero of={DEV} oflag=direct"):
            result = machine.run(f"dd {args} bs=4k count=1 status=none", check=False)
            assert not result.ok and "rror" in result.stderr or "space" in result.stderr
    log = machine.run("dmesg").out
    assert "accepted" not in log and "was allowed" not in log and "a list of one" not in log
    assert log.count("a bio was dropped instead of completed") == 1


def test_little_memory(mars_hosts):
    """The disk makes progress when there is hardly any memory left."""
    (machine,) = mars_hosts(1, disks=DISKS, mem=320)
    Selftest(machine)
    machine.run(f"echo pass {machine.disk('plain').dev} > {PROC}/disk")
    machine.run(f"mkswap {DEV} && swapon {DEV}", timeout=LIMIT)
    machine.run("mkdir -p /mnt/ram && mount -t tmpfs -o size=400m none /mnt/ram")
    machine.run("seq 30000000 | head -c 260000000 > /mnt/ram/f && seq 30000000 | head -c 260000000 | cmp - /mnt/ram/f",
                timeout=LIMIT)
    assert int(machine.run("awk '/pswpout/ {print $2}' /proc/vmstat").out) > 10000
    assert "opened by swapon(" in machine.run(f"cat {PROC}/holder").out
    machine.allow("page allocation failure")
    machine.run("umount /mnt/ram")
    machine.run(f"swapoff -a && echo stop > {PROC}/disk && rmmod mars_selftest", timeout=LIMIT)


def test_nothing_is_left(machine):
    """Round after round, the memory of the kernel stays what it was."""
    lower = machine.disk("plain").dev

    def round_():
        selftest = Selftest(machine)
        for name in ("block-open", "block-groups", "block-finish-race", "block-many"):
            selftest.case(name, lower, timeout=LIMIT)
        selftest.case("disk-churn", "40", timeout=LIMIT)
        for _ in range(10):
            machine.run(f"echo pass {lower} > {PROC}/disk; dd if={DEV} of=/dev/null bs=1M count=4 status=none;"
                        f"dd if=/dev/zero of={DEV} bs=1M count=4 status=none; echo stop > {PROC}/disk")
        selftest.remove()
        return machine.memory_snapshot()

    round_()
    first = round_()
    last = [round_() for _ in range(2)][-1]
    assert last["vmalloc_lines"] == []
    for name, count in first["slabs"].items():
        if name.startswith(("kmalloc", "bio", "biovec", "bdev_cache", "task_struct", "filp", "request_queue", "blkdev")):
            assert last["slabs"].get(name, 0) < count + 400, (name, count, last["slabs"].get(name))
    assert last["SUnreclaim"] < first["SUnreclaim"] + (2 << 20)
