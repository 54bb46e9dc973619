# SPDX-License-Identifier: GPL-2.0-or-later
"""The primary dies in the middle of writes: everything that was made durable is there after the reboot, here and there."""

import pytest

import marscluster
from marscase import DEVICE
from marscase import MOUNT
from marscase import Writer
from marscase import cluster_of_two
from marscase import equal
from marscase import lost
from marscase import mount
from marscase import number
from marscase import progress
from marscase import seeded
from marscase import sums
from marscase import umount
from marsvm import wait_until

CRASHES = number("MARS_CRASHES", 10)


def restart(host):
    """After a crash, what the start of the system does."""
    host.boot()
    host.mount_mars()
    host.run("modprobe mars", timeout=30)


def check_file_system(host):
    """Replaying the journal is allowed, repairs are not."""
    # Mounting replays the journal; what is left must be clean.
    mount(host)
    umount(host)
    result = host.run(f"e2fsck -f -n {DEVICE}", check=False, timeout=60)
    assert result.rc == 0, f"the file system is damaged:\n{result.stdout}{result.stderr}"


@pytest.mark.timeout(300 + 120 * CRASHES)
def test_power_cuts_of_the_primary(mars_hosts):
    random = seeded("power cuts: ")
    a, b = cluster_of_two(mars_hosts(2))
    mount(a)
    known = {}
    for n in range(CRASHES):
        # Other writes than those with an fsync go on at the same time.
        a.run(f"rm -rf {MOUNT}/load")
        load = a.start(
            f"mkdir {MOUNT}/load && cd {MOUNT}/load && while :; do dd if=/dev/urandom of=f bs=64k count=160; done",
            check=False,
        )
        writer = Writer(a, f"round{n}")
        wait_until(lambda: writer.look() >= 3, 60, "files are written")
        if random.random() < 0.5:
            a.run("marsadm log-rotate data")
        progress(random.uniform(0, 4))
        writer.look()
        safe = writer.safe
        assert load.running and writer.running
        a.power_cut()
        print(f"round {n}: {len(safe)} files were safe")

        restart(a)
        marscluster.wait_device(a, timeout=90)
        check_file_system(a)
        mount(a)
        # Only the last few rounds are kept: the disk is small.
        known[f"round{n}"] = safe
        for folder, files in known.items():
            problems = lost(files, sums(a, folder), crashed=True)
            assert not problems, f"after crash {n}, in {folder}: {problems}"
        if len(known) > 2:
            folder = next(iter(known))
            del known[folder]
            a.run(f"rm -r {MOUNT}/{folder}")
        marscluster.wait_synced([a, b])

    umount(a)
    marscluster.wait_synced([a, b])
    equal([a, b])


@pytest.mark.timeout(600)
def test_takeover_after_the_primary_died(mars_hosts):
    """What had arrived at the secondary is a whole file system; the old primary follows when it comes back."""
    a, b = cluster_of_two(mars_hosts(2))
    mount(a)
    writer = Writer(a, "old")
    wait_until(lambda: writer.look() >= 5, 60, "files are written")
    # These are at the secondary for sure; those that the writer may replace later are not looked at.
    safe = {name: digest for name, digest in writer.safe.items() if int(name[1:]) % 4 != 1}
    assert safe
    end = marscluster.durable_end(a)
    marscluster.wait_replayed(b, end)
    a.power_cut()
    b.run("marsadm pause-fetch data --timeout 30; marsadm primary --force data --timeout 60", timeout=100)
    check_file_system(b)
    mount(b)
    found = sums(b, "old")
    assert not lost(safe, found), lost(safe, found)
    umount(b)
