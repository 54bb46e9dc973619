# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job: what is written on one host is on the other, which can take over at any time and lose nothing."""

import marscluster
from marscase import DEVICE
from marscase import MOUNT
from marscase import cluster_of_two
from marscase import create
from marscase import equal
from marscase import mount
from marscase import progress
from marscase import refused
from marscase import restart
from marscase import settled
from marscase import sums
from marscase import umount
from marscase import write_files
from marsvm import lane
from marsvm import wait_until


def test_files_follow_and_roles_change(mars_hosts):
    a, b = mars_hosts(2)
    marscluster.setup_cluster([a, b])
    create(a)
    a.run(f"mkfs.ext4 -q {DEVICE}")
    mount(a)
    # Written before the replica exists: comes by sync. Afterwards: by logs.
    write_files(a, "before")
    marscluster.join_resource(b)
    write_files(a, "during")
    marscluster.wait_synced([a, b])
    write_files(a, "after")
    expected = sums(a)
    assert len(expected) == 60
    assert not b.run(f"[ -e {DEVICE} ]", check=False).ok, "a secondary has no device"
    umount(a)

    b.run("marsadm primary data")
    mount(b)
    assert sums(b) == expected
    assert not a.run(f"[ -e {DEVICE} ]", check=False).ok
    b.run(f"rm -r {MOUNT}/during")
    write_files(b, "there")
    expected = sums(b)
    umount(b)

    a.run("marsadm primary data")
    mount(a)
    assert sums(a) == expected
    umount(a)
    marscluster.wait_synced([a, b])
    equal([a, b])
    a.run("marsadm up data; marsadm wait-resource data is-device-on --timeout 60")
    mount(a)
    assert sums(a) == expected
    umount(a)


def test_logs_are_rotated_and_deleted_under_load(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2))
    rate = 40 if lane.DEBUG else 300
    job = a.start(
        f"fio --name=w --thread --filename={DEVICE} --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 "
        f"--rate_iops={rate} --time_based --runtime=600 --size=100%"
    )
    for _ in range(6):
        number = marscluster.member(a).log_end.number
        a.run("marsadm log-rotate data")
        wait_until(lambda: marscluster.member(a).log_end.number > number, 30, "the log is rotated")
        progress(1.5)
        a.run("marsadm log-delete-all data")
    assert job.running, job.wait(check=False)
    job.kill()
    marscluster.wait_synced([a, b])

    # What everybody has is not kept: at most the log in use and the one before it.
    def few():
        a.run("marsadm log-delete-all data")
        for host in (a, b):
            logs = host.run("find /mars/resource-data -type f -name 'log-*' | wc -l").out
            assert int(logs) <= 2, f"{logs} logs on {host.name}"
        return True

    wait_until(few, 30, "logs that nobody needs are deleted", 1)
    equal([a, b])


def test_p1_rotation_amid_fast_writes_loses_nothing(mars_hosts):
    """A peer must never be told an end of a log that is not the final one: it would go on with the next log too early."""
    a, b = cluster_of_two(mars_hosts(2))
    job = a.start(f"for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of={DEVICE} bs=64k count=400 oflag=direct || exit; done", timeout=120)
    rotations = 0
    while job.running:
        a.run("for i in 1 2 3 4 5; do marsadm log-rotate data; sleep 0.1; done")
        rotations += 5
    job.wait()
    assert marscluster.member(a).log_end.number > 5, f"logs were not rotated in {rotations} tries"
    marscluster.wait_synced([a, b])
    assert marscluster.view_json(b, "data")["split_brain"] == []
    equal([a, b])


def test_pause_and_resume(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2))
    mount(a)

    b.run("marsadm pause-replay data --timeout 30")
    marscluster.wait_stopped(b, "replaying")
    before = marscluster.member(b)
    write_files(a, "one")
    end = marscluster.durable_end(a)
    wait_until(lambda: marscluster.member(b).fetched.reaches(end), 60, "fetched while replay is paused")
    assert marscluster.member(b).replay == before.replay, "replay goes on although it is paused"
    b.run("marsadm resume-replay data --timeout 30")
    settled(b, end)

    b.run("marsadm pause-fetch data --timeout 30")
    # Nothing in the tree says that nobody fetches any more.
    progress(2)
    before = marscluster.member(b)
    write_files(a, "two")
    end = marscluster.durable_end(a)
    progress(2)
    now = marscluster.member(b)
    assert (now.fetched, now.replay) == (before.fetched, before.replay), "fetch goes on although it is paused"
    b.run("marsadm resume-fetch data --timeout 30")
    settled(b, end)
    expected = sums(a)
    umount(a)
    marscluster.wait_synced([a, b])
    b.run("marsadm primary data --timeout 60", timeout=70)
    mount(b)
    assert sums(b) == expected
    umount(b)
    marscluster.wait_synced([a, b])
    equal([a, b])


def test_sync_can_be_paused_and_invalidate_starts_it_anew(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2))
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=100 oflag=direct", timeout=90)
    marscluster.wait_synced([a, b])
    # Something that no log knows of: only a sync can find it.
    b.run("marsadm down data --timeout 60", timeout=70)
    b.run("dd if=/dev/urandom of=/dev/vdc bs=1M seek=20 count=100 oflag=direct", timeout=90)
    # It must not be over before it is paused.
    a.shape_link(b, rate="40mbit")
    b.run("marsadm up data --timeout 60; marsadm invalidate data --timeout 60", timeout=130)
    wait_until(lambda: marscluster.member(b).synced > 4 << 20, 60, "the sync proceeds")
    b.run("marsadm pause-sync data --timeout 60", timeout=70)
    # What was under way is finished.
    marscluster.wait_stopped(b, "syncing")
    paused = marscluster.member(b)
    assert not paused.is_synced
    progress(3)
    assert marscluster.member(b).synced == paused.synced, "the sync goes on although it is paused"
    refused(b, "marsadm primary --force data --timeout 20", "incomplete")
    a.shape_link(b)
    b.run("marsadm resume-sync data --timeout 60", timeout=70)
    # Written while it is synced.
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=64k seek=100 count=300 oflag=direct", timeout=90)
    marscluster.wait_synced([a, b])
    equal([a, b])


def test_disks_of_different_blocks(mars_hosts):
    a, b = mars_hosts(2)
    marscluster.setup_cluster([a, b])
    # What is written over smaller blocks could not be replayed here; so the device has these blocks wherever it is.
    a.run("modprobe loop; truncate -s 64M /root/disk.img && losetup --sector-size 4096 /dev/loop0 /root/disk.img")
    a.run("marsadm create-resource data /dev/loop0 --timeout 60", timeout=70)
    marscluster.join_resource(b)
    marscluster.wait_synced([a, b])
    block_size = "cat '/sys/block/mars!data/queue/logical_block_size'"
    assert a.run(block_size).out == "4096"
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=4k seek=1000 count=300 oflag=direct", timeout=90)
    b.run("marsadm primary data --timeout 60", timeout=70)
    assert b.run(block_size).out == "4096"
    b.run(f"dd if=/dev/urandom of={DEVICE} bs=4k seek=1200 count=300 oflag=direct", timeout=90)
    marscluster.wait_synced([a, b])
    marscluster.down([a, b])
    found = [h.run(f"head -c 64M {disk} | sha256sum").out for h, disk in ((a, "/dev/loop0"), (b, b.disk("data").dev))]
    assert found[0] == found[1]


def test_resize_amid_a_sync(mars_hosts):
    """What came to the resource after the sync had begun is compared, too."""
    a, b = mars_hosts(2)
    marscluster.setup_cluster([a, b])
    create(a, "64M")
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=64 oflag=direct status=none", timeout=90)
    b.run(f"dd if=/dev/urandom of={b.disk('data').dev} bs=1M count=96 oflag=direct status=none", timeout=90)
    a.shape_link(b, rate="40mbit")
    marscluster.join_resource(b)
    wait_until(lambda: marscluster.member(b).synced > 4 << 20, 60, "the sync proceeds")
    a.run("marsadm resize data 96M --timeout 60", timeout=70)
    assert not marscluster.member(b).is_synced
    a.shape_link(b)
    marscluster.wait_synced([a, b])
    # A good replica stays one as far as it went, also when the logs of its sync are long gone.
    for _ in range(3):
        a.run("marsadm log-rotate data; sleep 1")
        marscluster.wait_synced([a, b])
    a.run("marsadm log-delete-all data; sleep 1")
    before = b.run("dmesg | grep -c 'sync complete'").out
    a.run("marsadm resize data 112M --timeout 60", timeout=70)
    wait_until(lambda: b.run("dmesg | grep -c 'sync complete'").out != before, 60, "the rest is synced")
    compared = b.run("dmesg | grep -o '[0-9]* bytes compared' | tail -1").out
    assert compared == f"{16 << 20} bytes compared", compared
    marscluster.wait_synced([a, b])
    equal([a, b])


def smaller_than_its_disks(hosts):
    """A resource of 64 MiB, on disks whose contents differ behind that, too."""
    marscluster.setup_cluster(hosts)
    for host in hosts:
        host.run(f"dd if=/dev/urandom of={host.disk('data').dev} bs=1M count=96 oflag=direct status=none", timeout=90)
    create(hosts[0], "64M")
    marscluster.join_resource(hosts[1])
    return hosts


def test_resize_that_was_interrupted(mars_hosts):
    """A primary stays one, whatever was written of a resize; and a new part that never was one is compared when it becomes one."""
    a, b = smaller_than_its_disks(mars_hosts(2))
    marscluster.wait_synced([a, b])
    assert a.run("MARSADM_INJECT=size marsadm resize data 96M --timeout 60", check=False).rc == 99
    assert marscluster.member(a).synced == 96 << 20
    a.run("sync")
    a.power_cut()
    restart(a)
    marscluster.wait_device(a)
    b.run("marsadm primary data --timeout 60", timeout=70)
    wait_until(lambda: marscluster.member(a).synced == 64 << 20, 30, "what was never decided is taken back")
    b.run("marsadm resize data 96M --timeout 60", timeout=70)
    wait_until(lambda: marscluster.member(a).synced == 96 << 20, 60, "the new part is synced")
    assert a.run("dmesg | grep -o '[0-9]* bytes compared' | tail -1").out == f"{32 << 20} bytes compared"
    marscluster.wait_synced([b, a])
    equal([a, b])


def test_failover_amid_a_resize(mars_hosts):
    """The primary is lost while what the resource has grown by is copied: the replica goes on with what it had before."""
    a, b = smaller_than_its_disks(mars_hosts(2))
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=8 seek=20 oflag=direct conv=fsync status=none", timeout=90)
    marscluster.wait_synced([a, b])
    expected = a.run(f"sha256sum < {DEVICE}").out
    a.shape_link(b, rate="8mbit")
    a.run("marsadm resize data 96M --timeout 60", timeout=70)
    wait_until(lambda: marscluster.member(b).synced > 65 << 20, 60, "the new part is copied")
    a.power_cut()
    refused = b.run("marsadm primary data --timeout 60", timeout=70, check=False)
    assert refused.rc == 2 and "has grown" in refused.stderr and "64.000 MiB" in refused.stderr, refused
    assert marscluster.member(b).synced < 96 << 20
    b.run("marsadm pause-fetch data && marsadm primary --force data --timeout 60", timeout=70)
    marscluster.wait_device(b)
    assert b.run(f"blockdev --getsize64 {DEVICE}").out == str(64 << 20)
    assert b.run(f"sha256sum < {DEVICE}").out == expected
    restart(a)
    a.shape_link(b)
    wait_until(lambda: marscluster.member(a).synced == 64 << 20, 60, "the resize is taken back")
    marscluster.wait_synced([b, a])
    b.run("marsadm resize data 96M --timeout 60", timeout=70)
    marscluster.wait_synced([b, a])
    assert a.run("dmesg | grep -o '[0-9]* bytes compared' | tail -1").out == f"{32 << 20} bytes compared"
    equal([a, b])


def encrypt(host) -> None:
    """The data disk, as LUKS2 does it on disks with blocks of 4096 bytes."""
    disk = host.disk("data").dev
    table = f"0 $(blockdev --getsz {disk}) crypt aes-xts-plain64 {'5a' * 64} 0 {disk} 0 1 sector_size:4096"
    host.run(f"modprobe -a dm-mod dm-crypt && dmsetup create data --table \"{table}\" && dmsetup mknodes")


def test_encrypted_disks(mars_hosts):
    """They want whole blocks in memory, too; payloads lie at any multiple of 512 in a log."""
    a, b = mars_hosts(2)
    marscluster.setup_cluster([a, b])
    for host in (a, b):
        encrypt(host)
    a.run("marsadm create-resource data /dev/mapper/data --timeout 60", timeout=70)
    b.run("marsadm join-resource data /dev/mapper/data --timeout 60", timeout=70)
    write = f"dd if=/dev/urandom of={DEVICE} bs=4k count=100 oflag=direct conv=fsync status=none seek="
    for at in range(0, 3000, 1000):
        a.run(write + str(at), timeout=90)
    marscluster.wait_synced([a, b])
    # Recovery, too, writes what stands in a log.
    a.run(write + "5000", timeout=90)
    expected = a.run(f"dd if={DEVICE} bs=4k skip=5000 count=100 iflag=direct status=none | sha256sum").out
    a.power_cut()
    a.boot()
    a.mount_mars()
    encrypt(a)
    a.run("modprobe mars", timeout=30)
    marscluster.wait_device(a)
    assert a.run(f"dd if={DEVICE} bs=4k skip=5000 count=100 iflag=direct status=none | sha256sum").out == expected
    marscluster.wait_synced([a, b])
    marscluster.down([a, b])
    assert not marscluster.differences([a, b])


def test_view_for_machines(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2))
    for host in (a, b):
        document = marscluster.view_json(host)
        assert document["host"] == host.name
        assert document["module"]["loaded"]
        assert sorted(h["name"] for h in document["cluster"]["hosts"]) == ["hosta", "hostb"]

    def agreed():
        for host in (a, b):
            data = marscluster.view_json(host, "data")
            assert data["size"] == 128 << 20
            assert data["designated_primary"] == "hosta"
            assert data["actual_primaries"] == ["hosta"]
            assert data["split_brain"] == []
            members = {m["host"]: m for m in data["members"]}
            assert sorted(members) == ["hosta", "hostb"]
            assert members["hosta"]["role"] == "Primary"
            assert members["hostb"]["role"] == "Secondary"
            assert members["hostb"]["disk_state"] == "UpToDate"
            assert all(m["synced"] and m["consistent"] for m in members.values())
        return True

    wait_until(agreed, 30, "both hosts say the same of the resource", 1)


def test_everything_can_be_taken_apart(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2))
    refused(b, "marsadm leave-cluster", "resource|member")
    refused(a, "marsadm leave-resource data --timeout 20")
    refused(a, "marsadm delete-resource data --timeout 20", "member")

    b.run("marsadm down data --timeout 60 && marsadm leave-resource data --timeout 60", timeout=130)
    # The primary goes on without it.
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=10 oflag=direct")
    wait_until(
        lambda: [m["host"] for m in marscluster.view_json(a, "data")["members"] if m["is_member"]] == ["hosta"],
        30,
        "one member is left",
    )
    # It may come back.
    marscluster.join_resource(b)
    marscluster.wait_synced([a, b])
    equal([a, b])

    b.run("marsadm leave-resource data --timeout 60", timeout=70)
    a.run("marsadm secondary data --timeout 60; marsadm leave-resource data --timeout 60", timeout=130)
    a.run("marsadm delete-resource data --timeout 60", timeout=70)
    for host in (a, b):
        wait_until(lambda: marscluster.view_json(host)["resources"] == [], 30, "no resource is left")
        # Links with the same names only say that they were deleted.
        logs = host.run("find /mars -type f -name 'log-*'").out
        assert not logs, f"logs are left: {logs}"
    b.run("marsadm leave-cluster --timeout 60", timeout=70)
    wait_until(lambda: len(marscluster.view_json(a)["cluster"]["hosts"]) == 1, 30, "one host is left")

    # And all of it once more.
    create(a)
    marscluster.join_cluster(b, a)
    marscluster.join_resource(b)
    marscluster.wait_synced([a, b])
    equal([a, b])
