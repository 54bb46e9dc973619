# SPDX-License-Identifier: GPL-2.0-or-later
"""The module comes and goes, with everything done in between, and leaves nothing behind."""

import pytest

import marscluster
from marscase import DEVICE
from marscase import SIZE
from marscase import mount
from marscase import number
from marscase import sums
from marscase import umount
from marscase import write_files

# What the kernel itself may keep (caches of its allocators, of file systems). A round that leaks anything of what it
# handles, be it one buffer of 64 KiB, would show much more after a few rounds.
SLACK = 3 << 20
# Objects of one slab cache.
OBJECTS = 400
ROUNDS = number("MARS_REPEAT", 3)


def one_round(a, b, first):
    for host in (a, b):
        marscluster.load_module(host)
    for host in (a, b):
        host.run("marsadm wait-cluster --timeout 60", timeout=70)
    a.run(f"marsadm create-resource data {a.disk('data').dev} data {SIZE} --timeout 60", timeout=70)
    marscluster.wait_device(a)
    a.run(f"mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {DEVICE}" if first else f"e2fsck -fp {DEVICE}")
    marscluster.join_resource(b)
    mount(a)
    a.run("rm -rf /mnt/files")
    write_files(a, "files", 10)
    a.run("marsadm log-rotate data")
    expected = sums(a, "files")
    umount(a)
    marscluster.wait_synced([a, b])
    b.run("marsadm primary data --timeout 60", timeout=70)
    mount(b)
    assert sums(b, "files") == expected
    umount(b)
    marscluster.wait_synced([a, b])
    marscluster.down([a, b])
    a.run("marsadm leave-resource data --timeout 60", timeout=70)
    b.run("marsadm secondary data; marsadm leave-resource data --timeout 60", timeout=70)
    b.run("marsadm delete-resource data --timeout 60", timeout=70)
    for host in (a, b):
        host.run("rmmod mars", timeout=60)
        assert not host.run("ps ax -o comm | grep ^mars_", check=False).out, "threads are left"


@pytest.mark.timeout(120 + 120 * ROUNDS)
def test_loaded_and_unloaded_again_and_again(mars_hosts):
    a, b = mars_hosts(2)
    marscluster.setup_cluster([a, b])
    for host in (a, b):
        host.run("rmmod mars", timeout=60)
    one_round(a, b, first=True)
    # Everything that is only made once has been made.
    before = [host.memory_snapshot() for host in (a, b)]
    for _ in range(ROUNDS - 1):
        one_round(a, b, first=False)
    for host, start in zip((a, b), before, strict=True):
        end = host.memory_snapshot()
        assert end["vmalloc_mars"] == 0, end["vmalloc_lines"]
        for name in ("SUnreclaim", "VmallocUsed", "Percpu", "KernelStack"):
            grown = end[name] - start[name]
            assert grown < SLACK, f"{host.name}: {name} grew by {grown} in {ROUNDS - 1} rounds"
        used = start["MemAvailable"] - end["MemAvailable"]
        assert used < 4 * SLACK, f"{host.name}: {used} bytes of memory are missing"
        more = {
            n: (start["slabs"].get(n, 0), count)
            for n, count in end["slabs"].items()
            if n.startswith(("kmalloc", "bio", "biovec")) and count - start["slabs"].get(n, 0) > OBJECTS
        }
        assert not more, f"{host.name}: objects before and after: {more}"
