# SPDX-License-Identifier: GPL-2.0-or-later
"""Power is lost at any instant: what was acknowledged as durable is there, the rest is a prefix of what was written.

Log file system and data volumes lie on one recorded disk, so that each state is one that a real disk may have.
MARS_STATES says how many states are looked at (make torture: thousands).
"""

import io

import pytest

from marscase import number
from marscase import progress
from marscase import seeded
from marscase import history
from marscase import powerloss
from marsvm import wait_until

STATES = number("MARS_STATES", 24)
# Of each so many states, one loses power a second time, while it recovers.
TWICE = 4


def test_a_prefix_is_told_from_what_is_none():
    total = 64
    size = total * history.BLOCK
    now, before = history.contents(3, 40, total), history.contents(3, 39, total)
    assert history.prefix(io.BytesIO(now), size, 3) == 40
    assert history.prefix(io.BytesIO(bytes(size)), size, 3) == 0
    start, count = history.place(3, 40, total)
    at = start * history.BLOCK
    # Torn within a block.
    torn = now[: at + 512] + before[at + 512 : at + history.BLOCK] + now[at + history.BLOCK :]
    # The last write is there, one of those before it is not.
    for other in range(39, 0, -1):
        first, n = history.place(3, other, total)
        if first + n <= start or first >= start + count:
            break
    old = history.contents(3, other - 1, total)
    a, b = first * history.BLOCK, (first + n) * history.BLOCK
    hole = now[:a] + old[a:b] + now[b:]
    for image in (torn, hole):
        with pytest.raises(history.NoPrefix):
            history.prefix(io.BytesIO(image), size, 3)
    # Where only flushed writes count, what came after may be torn, but nothing may be older.
    assert history.holds(io.BytesIO(torn), size, 3, 39) == 40
    for image in (torn, hole):
        with pytest.raises(history.NoPrefix):
            history.holds(io.BytesIO(image), size, 3, 40)


@pytest.mark.timeout(300 + 30 * STATES)
def test_p1_p2_any_state_after_a_loss_of_power_recovers(mars_hosts):
    rng = seeded("power loss: ")
    (host,) = mars_hosts(1, powerloss.spec(record=True))
    work = powerloss.Workload(host, rng.randrange(1 << 32))
    recording, known = work.record(12)
    print(f"{len(recording.entries)} requests, {len(recording.flushes())} flushes, last known: {known[-1].block_writes} writes, {len(known[-1].files)} files")
    assert known[-1].block_writes > 50 and len(known[-1].files) > 3, "the workload has done too little"
    host.kill()
    judge_all(mars_hosts, work, recording, known, rng, ordered=True)


@pytest.mark.timeout(300 + 30 * STATES)
def test_p2_any_state_after_a_loss_of_power_recovers_also_in_emergency_mode(mars_hosts):
    """/mars fills up, applications go on, it gets room again: what was flushed is there after a loss of power at any time."""
    rng = seeded("power loss: ")
    (host,) = mars_hosts(1, powerloss.spec(record=True))
    work = powerloss.Workload(host, rng.randrange(1 << 32))
    recording, known = work.record(12, full=True)
    print(f"{len(recording.entries)} requests, {len(recording.flushes())} flushes, last known: {known[-1].block_writes} writes, {len(known[-1].files)} files")
    host.kill()
    judge_all(mars_hosts, work, recording, known, rng, ordered=False)


def judge_all(mars_hosts, work, recording, known, rng, ordered):
    """Looks at STATES states that a loss of power during the recorded run may leave."""
    (second,) = mars_hosts(1, powerloss.spec(record=False))
    (third,) = mars_hosts(1, powerloss.spec(record=True))
    judge = powerloss.Judge(second, work.seed)
    for n, cut in enumerate(powerloss.states(recording, rng, STATES, known[0].at)):
        need = powerloss.acknowledged(known, cut.at)
        if n % TWICE == TWICE - 1:
            cut = again(third, cut, rng)
        judge.load(cut)
        last = judge.recover(need, f"state {n}: {cut}", ordered)
        print(f"state {n}: {cut}: {len(need.files)} files, {need.block_writes} <= {last} writes")


def again(host, cut, rng):
    """Power is lost once more, while `host` recovers from `cut`; gives a state that the disk may then have."""
    host.power_cut()
    disk = host.disk("one")
    cut.write(disk.path)
    host.boot()
    recording = disk.recording()
    host.start(powerloss.start_command(host), check=False)
    wait_until(lambda: recording.update() > 0, 60, "the start has begun", 0.02)
    progress(rng.uniform(0, 2))
    host.power_cut()
    recording.update()
    return recording.cut(rng.randint(0, len(recording.entries)), rng)
