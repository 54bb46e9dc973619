# SPDX-License-Identifier: GPL-2.0-or-later
"""The network fails under load: the primary does not notice, and the replica catches up by itself."""

import marscluster
import pytest
from marscase import DEVICE
from marscase import cluster_of_two
from marscase import equal
from marscase import progress
from marsvm import wait_until


def written(job):
    """Requests that fio has completed so far."""
    lines = [l for l in job.output()[0].splitlines() if l.startswith("n ")]
    return int(lines[-1].split()[1]) if lines else 0


# Writes of 4 KiB at a steady rate; after each hundred, says how many there were.
LOAD = f"""
n=0
while dd if=/dev/urandom of={DEVICE} bs=4k count=50 seek=$((n % 20000)) oflag=direct conv=notrunc status=none; do
    n=$((n + 50)); echo n $n; sleep 0.1
done
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("carrier", [False, True], ids=["silent", "carrier"])
def test_link_cut_under_load(mars_hosts, carrier):
    a, b = cluster_of_two(mars_hosts(2))
    job = a.start(LOAD, check=False)
    wait_until(lambda: written(job) > 0, 30, "the load has started")
    first = written(job)
    progress(6)
    connected = written(job) - first

    a.cut_link(b, carrier=carrier)
    progress(1)
    first = written(job)
    progress(12)
    alone = (written(job) - first) / 2
    # The real measure is in make bench; here, on a busy machine, a primary that waits for anybody would be near 0.
    assert alone > connected * 0.5, f"{connected} writes in 6 s with the peer, {alone} without"
    stopped = marscluster.member(b).replay
    assert not stopped.reaches(marscluster.member(a).log_end), "the link was not cut"
    a.run("marsadm log-rotate data --timeout 20")
    progress(2)

    a.heal_link(b)
    # Nobody does anything; and it catches up while the load goes on.
    wait_until(lambda: not marscluster.member(b).replay == stopped, 60, "the replica goes on by itself")
    assert job.running
    job.kill()
    marscluster.wait_synced([a, b])
    equal([a, b])
