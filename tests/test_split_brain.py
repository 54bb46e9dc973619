# SPDX-License-Identifier: GPL-2.0-or-later
"""Handover against resistance, failover by force, and two histories of one resource."""

import random

import pytest

import marscluster
from marscase import DEVICE
from marscase import cluster_of_two
from marscase import equal
from marscase import mount
from marscase import progress
from marscase import refused
from marscase import state_of
from marscase import sums
from marscase import umount
from marscase import write_files
from marsvm import wait_until


def test_handover_of_a_device_in_use_is_refused(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2))
    mount(a)
    write_files(a, "files", 5)
    marscluster.wait_synced([a, b])
    holder = f"resource-data/actual-{a.name}/device-holder"
    wait_until(lambda: "mounted" in marscluster.links(b, [holder]).get(holder, ""), 30, "the peer knows who holds it")
    text = refused(b, "marsadm primary data --timeout 30", "hosta", r"open", r"mounted ext4")
    assert "HINT" in text
    # Nothing has changed: the primary, its file system, the replication.
    for host in (a, b):
        assert marscluster.links(host, ["resource-data/primary"]) == {"resource-data/primary": "hosta"}
    assert not b.run(f"[ -e {DEVICE} ]", check=False).ok
    write_files(a, "more", 5)
    expected = sums(a)
    marscluster.wait_synced([a, b])

    # The same for a holder that is no file system.
    umount(a)
    holding = a.start(f"exec 3<{DEVICE}; sleep 1000", check=False)
    wait_until(lambda: "opened by" in marscluster.links(b, [holder]).get(holder, ""), 30, "and knows it again")
    # By the name it had when it opened the device.
    refused(b, "marsadm primary data --timeout 30", "hosta", r"opened by bash\(\d+\)")
    refused(a, "marsadm secondary data --timeout 10", r"opened by bash\(\d+\)")
    holding.kill()
    wait_until(lambda: b.run("marsadm primary data --timeout 60", timeout=70, check=False).ok, 60, "handover", 2)
    mount(b)
    assert sums(b) == expected
    umount(b)
    marscluster.wait_synced([a, b])
    equal([a, b])


@pytest.mark.timeout(600)
def test_two_administrators_at_once_get_one_primary(mars_hosts):
    hosts = a, b = cluster_of_two(mars_hosts(2))
    won = {a.name: 0, b.name: 0, "nobody": 0}
    for n in range(8):
        # The one who waits longest comes into the middle of the other's handover.
        jobs = [h.start(f"sleep {random.uniform(0, 1.5):.2f}; marsadm primary data --timeout 30", timeout=60, check=False) for h in hosts]
        for job in jobs:
            job.wait(check=False)
        wait_until(lambda: len({h.run("readlink /mars/resource-data/primary").out for h in hosts}) == 1, 30, "both know the same")
        name = a.run("readlink /mars/resource-data/primary").out
        primary = next((h for h in hosts if h.name == name), None)
        won[primary.name if primary else "nobody"] += 1
        if primary is None:
            primary = a
            a.run("marsadm primary data --timeout 60", timeout=70)
        marscluster.wait_device(primary)
        primary.run(f"dd if=/dev/urandom of={DEVICE} bs=64k seek={n} count=1 oflag=direct conv=notrunc status=none")
        marscluster.wait_synced(hosts)
        assert not marscluster.view_json(a, "data")["split_brain"]
    print(f"primary became: {won}")
    equal(hosts)


@pytest.mark.timeout(600)
def test_a_clock_that_is_years_late_takes_no_role(mars_hosts):
    """It believes nothing that is new to it; as long as a peer tells it something, it must not go on as before."""
    a, b = cluster_of_two(mars_hosts(2))
    marscluster.wait_synced([a, b])
    a.power_cut()
    b.run("marsadm pause-fetch data --timeout 30; marsadm primary --force data --timeout 60", timeout=100)
    mount(b)
    write_files(b, "there", 2)
    a.boot()
    a.mount_mars()
    a.run("date -s 2019-05-01 && modprobe mars", timeout=30)
    late = f"readlink /mars/resource-data/actual-{a.name}/is-late"
    wait_until(lambda: a.run(late).out == "1", 60, "it says that its clock is late")
    assert "its clock is more than 30 days ahead of this host's" in a.run("dmesg").stdout
    # Longer than a former primary waits for its peers. Both words about the role are from times that it takes for wrong, so the
    # newer one counts; what it has nothing of at all it does not take.
    progress(15)
    assert not a.run(f"[ -e {DEVICE} ]", check=False).ok
    assert not state_of(a).startswith("primary"), state_of(a)
    text = a.run("marsadm view data 2>&1", check=False).stdout
    assert "30 days ahead" in text, text
    a.run(f"date -s @{b.run('date +%s').out}")
    wait_until(lambda: a.run("readlink /mars/resource-data/primary").out == b.name, 60, "it hears who is primary")
    progress(3)
    assert not a.run(f"[ -e {DEVICE} ]", check=False).ok
    umount(b)


def split_brain_on(host):
    data = marscluster.view_json(host, "data")
    text = host.run("marsadm view data 2>&1").stdout
    return bool(data["split_brain"]) and "SPLIT BRAIN of resource" in text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("loser", ["hosta", "hostb"])
def test_split_brain_is_reported_and_nothing_is_lost_until_invalidate(mars_hosts, loser):
    a, b = cluster_of_two(mars_hosts(2))
    mount(a)
    write_files(a, "common", 5)
    marscluster.wait_synced([a, b])
    common = sums(a)

    a.cut_link(b)
    # An old primary that nobody hears cannot be asked to let go.
    refused(b, "marsadm primary data --timeout 20 --window 5", timeout=60)
    b.run("marsadm pause-fetch data --timeout 30; marsadm primary --force data --timeout 60", timeout=100)
    mount(b)
    assert sums(b) == common, "what had arrived before the cut is there"
    write_files(b, "there", 5)
    of_b = sums(b)
    write_files(a, "here", 5)
    of_a = sums(a)

    a.heal_link(b)
    for host in (a, b):
        wait_until(lambda: split_brain_on(host), 60, f"split brain is reported on {host.name}", 1)
    b.run("marsadm resume-fetch data --timeout 20", check=False)
    progress(5)
    # Nobody lost anything: each side goes on with its own history.
    assert sums(a) == of_a
    assert sums(b) == of_b
    write_files(a, "here2", 2)
    write_files(b, "there2", 2)
    of = {"hosta": sums(a), "hostb": sums(b)}
    for host in (a, b):
        assert split_brain_on(host)
        umount(host)

    winner, other = (b, a) if loser == "hosta" else (a, b)
    if winner is a:
        # Who is to go on is decided by hand, not by who was last.
        refused(a, "marsadm primary data --timeout 20", "SPLIT BRAIN")
        b.run("marsadm down data --timeout 60", timeout=70)
        a.run("marsadm pause-fetch data --timeout 30; marsadm primary --force data --timeout 60", timeout=100)
    else:
        a.run("marsadm secondary data --timeout 60", timeout=70, check=False)
    mount(winner)
    assert sums(winner) == of[winner.name]
    other.run("marsadm up data --timeout 20", timeout=40, check=False)
    other.run("marsadm invalidate data --timeout 60", timeout=70)
    write_files(winner, "afterwards", 3)
    marscluster.wait_synced([winner, other])

    def healed():
        for host in (a, b):
            assert marscluster.view_json(host, "data")["split_brain"] == []
        return True

    wait_until(healed, 60, "no split brain is reported any more", 1)
    expected = sums(winner)
    umount(winner)
    marscluster.wait_synced([winner, other])
    other.run("marsadm primary data --timeout 60", timeout=70)
    mount(other)
    assert sums(other) == expected
    umount(other)
    marscluster.wait_synced([winner, other])
    equal([winner, other])
