# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs are deleted although a member that is away still needs them: it comes back by itself, and only what they wrote is
compared."""

import marscluster
import pytest
from marscase import DEVICE
from marscase import cluster_of_two
from marscase import counter
from marscase import create
from marscase import equal
from marscase import full
from marscase import progress
from marscase import refused
from marscase import restart
from marscase import seeded
from marscase import state_of
from marscase import tree
from marsvm import wait_until

MIB = 1 << 20


def write(host, mib, count=6):
    host.run(
        f"dd if=/dev/urandom of={DEVICE} bs=1M seek={mib} count={count} oflag=direct conv=notrunc,fsync status=none",
        timeout=90,
    )


def rotate(host):
    """Until the next log is written, and what the one before has is on the disk."""
    before = logs(host)[-1]
    host.run("marsadm log-rotate data")
    wait_until(lambda: marscluster.member(host).replay.number > before, 60, "the next log is written")


def logs(host):
    return sorted(int(name[4:13]) for name in host.run("cd /mars/resource-data && find . -name 'log-*' -type f -printf '%P\\n'").out.split())


def cluster_of_three(hosts):
    """The third one is a good replica, and then away."""
    a, b, c = hosts
    marscluster.setup_cluster(hosts)
    create(a)
    for host in (b, c):
        marscluster.join_resource(host)
    marscluster.wait_synced(hosts)
    for host in (a, b):
        host.cut_link(c)
    return a, b, c


def let_go(a, b):
    """Writes two logs that `b`, which is away, does not have, and deletes them."""
    write(a, 10)
    rotate(a)
    write(a, 60)
    rotate(a)
    write(a, 90)
    # Who was heard a moment ago is not taken for away.
    for option in ("", "--also-needed"):
        a.run(f"marsadm log-delete-all data {option}")
        assert len(logs(a)) >= 3, logs(a)
    newest = logs(a)[-1]
    said = a.run("marsadm log-delete-all data --also-needed --force --timeout 60", timeout=70)
    assert "hostb" in said.stderr and "deleted" in said.stdout, said
    wait_until(lambda: logs(a) == [newest], 30, "the logs are gone")
    wait_until(lambda: marscluster.member(a).log_end.number == newest, 30, "the primary goes on")


@pytest.mark.timeout(600)
def test_a_member_comes_back_after_its_logs_were_deleted(mars_hosts):
    a, b = cluster_of_two(mars_hosts(2))
    refused(b, "marsadm log-delete-all data --also-needed", "only the primary", "hosta")
    # Everybody has everything: the same as without the option.
    rotate(a)
    marscluster.wait_synced([a, b])
    a.run("marsadm log-delete-all data --also-needed")
    assert not marscluster.view_json(a, "data")["members"][0]["actual"]["dirty_bytes"]

    a.cut_link(b)
    let_go(a, b)
    dirty = tree(a)["resource-data/actual-hosta/dirty-bytes"]
    print(f"noted: {int(dirty) >> 10} KiB")
    assert 12 * MIB <= int(dirty) <= 24 * MIB
    # What is noted outlives a crash.
    a.power_cut()
    restart(a)
    marscluster.wait_device(a, timeout=90)
    assert tree(a)["resource-data/actual-hosta/dirty-bytes"] == dirty
    a.heal_link(b)
    wait_until(lambda: "were deleted on hosta" in b.run("dmesg").stdout, 90, "the replica goes on behind them", 0.3)
    marscluster.wait_synced([a, b], timeout=120)
    travelled = counter(b, "synced_bytes")
    print(f"{travelled >> 10} KiB of the disk travelled")
    assert 12 * MIB <= travelled <= 24 * MIB, travelled
    assert "everything is compared" not in b.run("dmesg").stdout
    wait_until(lambda: "have recovered" in a.run("dmesg").stdout, 30, "the map is cleared")
    wait_until(lambda: tree(a)["resource-data/actual-hosta/dirty-bytes"] == "0", 20, "it says so")
    # As good as any replica.
    write(a, 20, 1)
    marscluster.wait_synced([a, b])
    b.run("marsadm primary data --timeout 60", timeout=70)
    write(b, 30, 1)
    marscluster.wait_synced([b, a])
    equal([b, a])


@full
@pytest.mark.timeout(900)
def test_power_cuts_while_it_comes_back(mars_hosts):
    random = seeded("power cuts: ")
    a, b = cluster_of_two(mars_hosts(2))
    a.cut_link(b)
    let_go(a, b)
    # A part of the sync takes long enough to be hit.
    a.shape_link(b, rate="24mbit")
    a.heal_link(b)
    for _ in range(3):
        progress(random.uniform(1.5, 6))
        b.power_cut()
        restart(b)
    a.shape_link(b)
    marscluster.wait_synced([a, b], timeout=120)
    equal([a, b])


@full
@pytest.mark.timeout(600)
def test_the_new_primary_has_no_map(mars_hosts):
    """Then everything is compared, and nothing is guessed."""
    a, b, c = cluster_of_three(mars_hosts(3))
    write(a, 10)
    rotate(a)
    write(a, 20)
    rotate(a)
    marscluster.wait_synced([a, b])
    a.run("marsadm log-delete-all data --also-needed --force --timeout 60", timeout=70)
    wait_until(lambda: len(logs(b)) <= 1, 60, "the logs are gone there, too")
    b.run("marsadm primary data --timeout 60", timeout=70)
    write(b, 30)
    for host in (a, b):
        host.heal_link(c)
    progress(5)
    # It waits; its contents stay those of the past.
    member = next(m for m in marscluster.view_json(c, "data")["members"] if m["host"] == "hostc")
    assert member["consistent"] and member["synced"], member
    wait_until(lambda: "invalidate" in state_of(c), 60, "it says what to do")
    c.run("marsadm invalidate data --timeout 60", timeout=70)
    marscluster.wait_synced([b, a, c], timeout=120)
    marscluster.down([a, b, c])
    assert not marscluster.differences([b, c])


@pytest.mark.timeout(900)
def test_room_in_emergency_mode_at_the_expense_of_one_of_two_replicas(mars_hosts):
    """The logs of a member that is away fill the resource's share of /mars. When they are let go, logging begins again; the
    member that was there gets what was written without a log, and the other one, later, all that it lacks."""
    a, b, c = cluster_of_three(mars_hosts(3))
    write(a, 8, 10)
    rotate(a)
    write(a, 24, 10)
    rotate(a)
    write(a, 16, 2)
    a.run("marsadm set-space-limit data 12")
    wait_until(lambda: state_of(a).startswith("emergency"), 60, "the logs exceed the limit")
    assert "space-limit" in state_of(a)
    # Without a log.
    write(a, 40, 4)
    wait_until(lambda: state_of(b).startswith("waiting"), 60, "the replica waits")
    # It says so while it still gets the last logs; only the other one is to lack any.
    link = f"readlink /mars/resource-data/replay-{b.name}"
    wait_until(lambda: b.run(link).out.split("-")[1] >= "000000003", 60, "the replica has the logs before the last one")
    a.run("marsadm log-delete-all data --also-needed --force --timeout 60", timeout=70)
    wait_until(lambda: state_of(a) == "primary", 60, "it logs again", 0.3)
    marscluster.wait_synced([a, b], timeout=120)
    write(a, 60, 2)
    for host in (a, b):
        host.heal_link(c)
    marscluster.wait_synced([a, b, c], timeout=180)
    for host, most in ((b, 8), (c, 96)):
        travelled = counter(host, "synced_bytes")
        print(f"{host.name}: {travelled >> 10} KiB of the disk travelled")
        assert travelled <= most * MIB
        assert "everything is compared" not in host.run("dmesg").stdout
    # Who has replayed something behind the last gap has passed it.
    write(a, 70, 1)
    wait_until(lambda: "have recovered" in a.run("dmesg").stdout, 30, "the map is cleared")
    marscluster.wait_synced([a, b, c])
    marscluster.down([a, b, c])
    for host in (b, c):
        found = marscluster.differences([a, host])
        assert not found, (host.name, found)
