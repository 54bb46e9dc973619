# SPDX-License-Identifier: GPL-2.0-or-later
"""The secondary dies while it syncs, fetches and replays: it goes on by itself, and ends up equal."""

import pytest

import marscluster
from marscase import DEVICE
from marscase import cluster_of_two
from marscase import equal
from marscase import number
from marscase import progress
from marscase import restart
from marscase import seeded
from marsvm import wait_until

CRASHES = number("MARS_CRASHES", 10)

LOAD = (
    f"fio --name=w --thread --filename={DEVICE} --rw=randwrite --bsrange=4k-64k --iodepth=4 --ioengine=libaio --direct=1 "
    "--rate=4m --time_based --runtime=3600 --size=100%"
)


@pytest.mark.timeout(300 + 120 * CRASHES)
def test_power_cuts_of_the_secondary(mars_hosts):
    random = seeded("power cuts: ")
    a, b = cluster_of_two(mars_hosts(2))
    for n in range(CRASHES):
        load = a.start(LOAD, check=False)
        if n % 2:
            # It has much to catch up when it comes back, and dies once more while it does.
            b.power_cut()
            progress(random.uniform(2, 5))
            a.run("marsadm log-rotate data")
            progress(random.uniform(1, 3))
            restart(b)
            progress(random.uniform(0, 1.5))
        else:
            progress(random.uniform(1, 5))
        assert load.running, load.output()
        b.power_cut()
        progress(random.uniform(0, 1))
        restart(b)
        load.kill()
        seconds = marscluster.wait_replayed(b, marscluster.durable_end(a), timeout=90)
        print(f"round {n}: level after {seconds:.1f} s")
        problems = marscluster.logs_differ(a, b)
        assert not problems, f"after crash {n}: {problems}"
        a.run("marsadm log-rotate data; sleep 1; marsadm log-delete-all data")
    # Handing over finds out whether it thinks itself whole.
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=64k count=10 oflag=direct")
    marscluster.wait_synced([a, b])
    b.run("marsadm primary data --timeout 60", timeout=70)
    equal([a, b])


@pytest.mark.timeout(600)
def test_power_cuts_during_the_sync(mars_hosts):
    random = seeded("power cuts: ")
    a, b = cluster_of_two(mars_hosts(2), join=False)
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=100 seek=10 oflag=direct", timeout=90)
    # Some ten seconds for all of it.
    a.shape_link(b, rate="80mbit")
    marscluster.join_resource(b)
    last = 0
    for _ in range(2):
        wait_until(lambda: marscluster.member(b).synced > last + (8 << 20), 90, "the sync proceeds")
        progress(random.uniform(0, 1))
        last = marscluster.member(b).synced
        b.power_cut()
        a.run(f"dd if=/dev/urandom of={DEVICE} bs=64k seek=400 count=20 oflag=direct")
        restart(b)
    a.shape_link(b)
    marscluster.wait_synced([a, b])
    equal([a, b])
