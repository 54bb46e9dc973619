# SPDX-License-Identifier: GPL-2.0-or-later
"""Mistakes, damage and malice: each gets its clear error, nothing crashes and nothing is lost."""

import collections
import json
import pathlib

import pytest

import marscluster
from marscase import DEVICE
from marscase import cluster_of_two
from marscase import create
from marscase import equal
from marscase import number
from marscase import refused
from marscase import seeded
from marscase import settled
from marscase import tree
from marsvm import wait_until

FUZZ_SECONDS = number("MARS_FUZZ_SECONDS", 10)
# At the same time; each waits for answers most of the time.
FUZZERS = 3
FUZZER = pathlib.Path(__file__).parent / "lib/marscase/fuzz.py"


def test_wrong_commands_are_refused_with_a_reason(mars_hosts):
    a, b = mars_hosts(2)
    # Without /mars the module does not do anything, and says so.
    refused(a, "marsadm create-cluster --ip 10.77.0.1", "/mars")
    result = a.run("modprobe mars", check=False, timeout=30)
    said = result.stderr + a.dmesg()
    assert "/mars" in said and "mount" in said, f"modprobe without /mars does not say what is missing:\n{said}"
    a.run("rmmod mars", check=False)

    a.mount_mars()
    b.mount_mars()
    # Without the module.
    refused(a, "marsadm create-resource data /dev/vdc", "create-cluster|module|modprobe")
    for host in (a, b):
        marscluster.load_module(host)
    a.run("marsadm create-cluster --ip 10.77.0.1", timeout=60)
    before = a.run("readlink /mars/uuid; cat /mars/cluster-key").out
    refused(a, "marsadm create-cluster --ip 10.77.0.1", "already|exists")
    assert a.run("readlink /mars/uuid; cat /mars/cluster-key").out == before

    # The wrong key.
    b.put("5a" * 31 + "77\n", "/root/wrong", 0o600)
    refused(b, f"marsadm join-cluster hosta {a.ip} --ip {b.ip} --key-file /root/wrong --timeout 20", "key")
    assert not b.run("[ -e /mars/uuid ]", check=False).ok, "a refused join leaves nothing"
    assert "ips/ip-hostb" not in tree(a, "ips")
    b.put("not a key\n", "/root/none", 0o600)
    refused(b, f"marsadm join-cluster hosta {a.ip} --ip {b.ip} --key-file /root/none --timeout 20", "key")
    refused(b, f"marsadm join-cluster hosta 10.77.0.77 --ip {b.ip} --key-file /root/wrong --timeout 5", "10.77.0.77")
    marscluster.join_cluster(b, a)
    for host in (a, b):
        host.run("marsadm wait-cluster --timeout 60", timeout=70)

    # Disks.
    refused(a, "marsadm create-resource data /dev/vdc data 2G", "small|larger|bytes")
    refused(a, "marsadm create-resource data /dev/none", "/dev/none")
    refused(a, "marsadm create-resource data /etc/hosts", "block")
    refused(a, f"marsadm create-resource data {a.disk('mars').dev}", "use|mounted|busy")
    refused(a, "marsadm create-resource ../x /dev/vdc", "name")
    assert not a.run("ls -d /mars/resource-*", check=False).ok, "refused resources leave nothing"
    create(a)
    before = tree(a)
    refused(a, "marsadm create-resource data /dev/vdc data 64M", "already|exists")
    refused(a, "marsadm create-resource other /dev/vdc", "use|busy|data")
    wait_until(lambda: marscluster.view_json(b)["resources"], 30, "hostb knows the resource")
    refused(b, "marsadm create-resource data /dev/vdc data 128M", "already|exists|join-resource")
    b.run("modprobe loop; truncate -s 64M /root/small.img && losetup /dev/loop0 /root/small.img")
    refused(b, "marsadm join-resource data /dev/loop0 --timeout 20", "too small")
    b.run("losetup -d /dev/loop0; truncate -s 128M /root/small.img && losetup --sector-size 4096 /dev/loop0 /root/small.img")
    refused(b, "marsadm join-resource data /dev/loop0 --timeout 20", "blocks of 4096 bytes, resource 'data' in 512")
    after = tree(a)
    for key in ("primary", "size", "data-hosta", "syncstatus-hosta"):
        path = f"resource-data/{key}"
        assert after[path] == before[path]
    # The device was there all the time.
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=4 oflag=direct")
    b.run("losetup -d /dev/loop0")
    marscluster.join_resource(b)
    marscluster.wait_synced([a, b])
    equal([a, b])


def test_second_create_is_refused(mars_hosts):
    (a,) = mars_hosts(1)
    marscluster.setup_cluster([a])
    create(a)
    before = tree(a)
    refused(a, f"marsadm create-resource data {a.disk('data').dev} data 128M", "already|exists")
    assert tree(a)["resource-data/size"] == before["resource-data/size"]
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=4 oflag=direct")


@pytest.mark.timeout(300 + 4 * FUZZ_SECONDS)
def test_garbage_on_every_port(mars_hosts):
    seed = seeded("fuzzing: ").getrandbits(32)
    a, b = cluster_of_two(mars_hosts(2))
    b.put(FUZZER, "/root/fuzz.py")
    uuid = a.run("readlink /mars/uuid").out
    before = a.memory_snapshot()
    load = a.start(
        f"fio --name=w --thread --filename={DEVICE} --rw=randwrite --bs=4k --iodepth=4 --ioengine=libaio --direct=1 "
        f"--rate_iops=50 --time_based --runtime={FUZZ_SECONDS + 60} --size=100%",
        check=False,
    )
    command = f"python3 /root/fuzz.py {a.ip} {FUZZ_SECONDS} SEED {uuid} /mars/cluster-key"
    jobs = [b.start(command.replace("SEED", str(seed + n)), timeout=FUZZ_SECONDS + 60) for n in range(FUZZERS)]
    counts = collections.Counter()
    for job in jobs:
        counts.update(json.loads(job.wait().stdout))
    print(json.dumps(counts, indent=1, sort_keys=True))
    assert load.running, "the application's writes go on"
    load.kill()
    assert counts.get("welcomed 4"), "the fuzzer never got in"
    assert counts.get("answer 0x5"), "bad requests are answered"
    # Replication works as before, and what strangers took has been given back.
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=8 oflag=direct")
    marscluster.wait_synced([a, b])

    def quiet():
        after = a.memory_snapshot()
        grown = after["SUnreclaim"] - before["SUnreclaim"]
        assert grown < 16 << 20, f"{grown} bytes of slabs more than before"
        threads = int(a.run("ps ax -o comm | grep -c ^mars_h", check=False).out)
        assert threads < 20, f"{threads} handlers are left"
        return True

    wait_until(quiet, 60, "memory and threads of strangers are given back", 2)
    equal([a, b])


@pytest.mark.timeout(600)
def test_flipped_byte_in_a_log(mars_hosts):
    random = seeded("flips: ")
    a, b = cluster_of_two(mars_hosts(2))
    b.run("marsadm pause-replay data --timeout 30")
    marscluster.wait_stopped(b, "replaying")
    replayed = marscluster.member(b).replay
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=64k count=64 oflag=direct")
    end = marscluster.durable_end(a)
    wait_until(lambda: marscluster.member(b).fetched.reaches(end), 60, "fetched")
    log = f"/mars/resource-data/log-{end.number:09}-hosta"
    start = replayed.pos if replayed.number == end.number else 0

    # A copy, checked by the tool: every flipped byte is found.
    b.run(f"head -c {end.pos} {log} > /root/log && marslog verify /root/log", timeout=60)
    for _ in range(5):
        at = random.randrange(start, end.pos)
        old = b.get("/root/log", at, 1)
        b.run(f"printf '\\x{old[0] ^ 0x10:02x}' | dd of=/root/log bs=1 seek={at} conv=notrunc status=none")
        refused(b, "marslog verify /root/log", rc=1)
        b.run(f"printf '\\x{old[0]:02x}' | dd of=/root/log bs=1 seek={at} conv=notrunc status=none")
    b.run("marslog verify /root/log", timeout=60)

    # In the log that is about to be replayed: found, fetched again, and never applied.
    for _ in range(3):
        at = random.randrange(start, end.pos)
        old = b.get(log, at, 1)
        b.run(f"printf '\\x{old[0] ^ 1 << random.randrange(8):02x}' | dd of={log} bs=1 seek={at} conv=notrunc status=none")
    b.run("sync")
    b.run("marsadm resume-replay data --timeout 30")
    settled(b, end)
    said = b.dmesg()
    assert "damaged" in said or "defect" in said or "corrupt" in said, f"nothing is said of the damage:\n{said[-2000:]}"
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=64k count=16 oflag=direct")
    marscluster.wait_synced([a, b])
    equal([a, b])


def test_mars_is_unmounted_below_the_module(mars_hosts):
    """An empty directory is not a tree without resources, and nothing is written to the file system that it is on."""
    (a,) = mars_hosts(1)
    marscluster.setup_cluster([a])
    create(a)
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=64k count=4 oflag=direct status=none; marsadm secondary data; marsadm down data", timeout=60)
    a.run("umount /mars && sleep 12 && [ -z \"$(ls -A /mars)\" ]", timeout=60)
    assert "is it mounted?" in a.dmesg()
    a.mount_mars()
    a.run("marsadm up data --timeout 30; marsadm primary data --timeout 60", timeout=100)
    marscluster.wait_device(a)
