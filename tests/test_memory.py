# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is short, or everything is overloaded: nothing hangs, nothing is lost, all buffers keep within their bounds."""

import dataclasses
import pathlib

import marscluster
import marscase
import pytest
from marscase import DEVICE
from marscase import MOUNT
from marscase import cluster_of_two
from marscase import create
from marscase import equal
from marscase import mount
from marscase import number
from marscase import progress
from marscase import sums
from marscase import umount
from marsvm import HostSpec
from marsvm import default_disks
from marsvm import lane
from marsvm import program
from marsvm import wait_until
from marsvm.util import scaled

MIB = 1 << 20
# Seconds; make torture: an hour.
OVERLOAD = number("MARS_OVERLOAD", 30)
# Besides the write buffer: batches kept for peers (16 MiB), not flushed yet (8), zeros for two logs (8), and what is on
# its way through a connection, a batch, or the spare one of the logger (8 together).
BESIDE = 40 * MIB
HOG = pathlib.Path(marscase.__file__).with_name("hog.rs")
# Little for a kernel with modules, a file system in memory below all others, and programs.
SMALL = HostSpec(mem=224, disks=default_disks(mars=2 << 30, data=1 << 30))


def meminfo(host, key: str) -> int:
    """In MiB."""
    return int(host.run(f"sed -n 's/^{key}: *//p' /proc/meminfo").out.split()[0]) // 1024


def payload_bytes(host) -> int:
    """All memory that the module has for data."""
    return int(host.run("sed -n 's/^payload_bytes //p' /proc/sys/mars/info").out)


@pytest.mark.timeout(900)
def test_swap_on_the_device(mars_hosts):
    """What memory is freed by must not itself have to wait for memory."""
    (a,) = mars_hosts(1, spec=SMALL)
    # The kernel's own swap code has no page for the table of a cluster of swap entries; it takes another cluster.
    a.allow(r"page allocation failure: order:0, mode:0xc0de0\(GFP_KERNEL\|__GFP_HIGH", r"^\[[^\]]*\] Call Trace:")
    if lane.DEBUG:
        # With what SLUB adds there, virtio's lists of a request need several pages in a row; it goes on without.
        a.allow(r"page allocation failure: order:[1-9], mode:0x40820\(GFP_ATOMIC")
    marscluster.setup_cluster([a])
    create(a, "900M")
    a.put(program.build(HOG).read_bytes(), "/root/hog", 0o755)
    a.run(f"mkswap {DEVICE} && swapon {DEVICE}", timeout=60)
    total = meminfo(a, "MemTotal")
    # The journal of /mars is always busy, and those who have begun a change there may wait for memory.
    noise = a.start("while sleep 0.1; do date > /mars/noise; sync /mars/noise; done", check=False, timeout=600)
    out = a.run(f"/root/hog {min(2 * total, 800)} 1; grep ^pswpout /proc/vmstat", timeout=300).out
    print(out)
    swapped = int(out.split()[-1]) // 256
    assert swapped > total, f"no more than {swapped} MiB were swapped out"
    noise.kill()
    logs = int(a.run("ls /mars/resource-data | grep -c ^log-").out)
    print(f"{logs} logs")
    # A log is not made longer while memory is short; the next one begins.
    assert logs > 2, "no log was rotated"
    a.run(f"swapoff {DEVICE}", timeout=300)
    marscluster.down([a], timeout=120)
    marscluster.unload_module(a)


@pytest.mark.timeout(900)
def test_dirty_pages_ten_times_the_write_buffer(mars_hosts):
    buffer, dirty = 4, 48
    a, b = mars_hosts(2, spec=HostSpec(mem=512, disks=default_disks(mars=2 << 30, data=512 * MIB)))
    for host in (a, b):
        host.mount_mars()
        marscluster.load_module(host, write_buffer_mb=buffer)
    cluster_of_two((a, b))
    mount(a)
    # Nothing is written before it is asked for.
    a.run("cd /proc/sys/vm && echo 90 > dirty_ratio && echo 85 > dirty_background_ratio && echo 0 > dirty_writeback_centisecs")
    digest = a.run(f"head -c {dirty}M /dev/urandom | tee {MOUNT}/much | sha256sum", timeout=120).out.split()[0]
    found = meminfo(a, "Dirty")
    assert found >= 10 * buffer, f"{found} MiB are dirty"
    job = a.start("sync", timeout=300)
    most = 0
    while job.running:
        most = max(most, payload_bytes(a))
        progress(0.3)
    job.wait()
    print(f"{found} MiB were dirty, at most {most >> 20} MiB in buffers")
    assert most <= buffer * MIB + BESIDE, f"{most} bytes with a buffer of {buffer} MiB"
    a.run("echo 3 > /proc/sys/vm/drop_caches")
    assert sums(a)["./much"] == digest
    umount(a)
    a.run(f"e2fsck -fn {DEVICE}", timeout=60)
    marscluster.wait_synced([a, b])
    equal([a, b])


# One write after the other, each durable; says for how long the longest has taken, in ms.
_FSYNCS = f"""
most=0 n=0
while [ ! -e /tmp/enough ]; do
    from=${{EPOCHREALTIME/./}}
    dd if=/dev/zero of={MOUNT}/others/f bs=4k count=1 seek=$((n % 100)) conv=fsync,notrunc status=none || exit
    took=$(((${{EPOCHREALTIME/./}} - from) / 1000)); n=$((n + 1))
    [ $took -le $most ] || most=$took
    echo "$n $most"
done
"""

# In a group that may have little: pages of a file, as fast as they come, and more and more memory.
_GREEDY = f"""
echo $$ > /sys/fs/cgroup/greedy/cgroup.procs
dd if=/dev/zero of={MOUNT}/greedy bs=1M count=4000 status=none &
dd if=/dev/zero of={MOUNT}/direct bs=4M count=1000 oflag=direct status=none &
sleep 3
exec /root/hog 200 1
"""


@pytest.mark.timeout(900)
def test_a_group_without_memory_is_killed_amid_its_writes_and_others_go_on(mars_hosts):
    (a,) = mars_hosts(1, spec=HostSpec(mem=512, disks=default_disks(mars=4 << 30, data=1 << 30)))
    marscluster.setup_cluster([a], write_buffer_mb=16)
    create(a, "900M")
    a.run(f"mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {DEVICE}", timeout=60)
    mount(a)
    a.put(program.build(HOG).read_bytes(), "/root/hog", 0o755)
    a.run(
        f"mkdir {MOUNT}/others; cd /sys/fs/cgroup && echo +memory > cgroup.subtree_control && mkdir greedy && "
        "echo 48M > greedy/memory.max && echo 1 > greedy/memory.oom.group"
    )
    # This is wanted here, with its stack; on our own threads and outside of the group it is not.
    a.allow(r"invoked oom-killer", r"oom-kill:constraint=CONSTRAINT_MEMCG", r"^\[[^\]]*\] Call Trace:")
    others = a.start(_FSYNCS, check=False)
    for n in range(1, 3):
        a.start(_GREEDY, check=False)
        events = "sed -n 's/^oom_group_kill //p' /sys/fs/cgroup/greedy/memory.events"
        wait_until(lambda n=n: int(a.run(events).out) >= n, 120, "the group is out of memory")
        # Killed is who has given back what he had.
        wait_until(lambda: not a.run("cat /sys/fs/cgroup/greedy/cgroup.procs").out.strip(), 60, "the group is gone")
        a.run(f"rm -f {MOUNT}/greedy {MOUNT}/direct", timeout=120)
    a.run("touch /tmp/enough")
    count, most = others.wait(timeout=60).out.split()[-2:]
    print(f"{count} durable writes meanwhile, the longest took {most} ms")
    assert int(count) > 10, "nobody else got on"
    # Emulated and with much dirty data before it: that it is bounded, not how fast it is.
    assert int(most) < 30_000
    a.run("rmdir /sys/fs/cgroup/greedy")
    umount(a)
    a.run(f"e2fsck -fn {DEVICE}", timeout=120)
    marscluster.down([a])
    marscluster.unload_module(a)


# Together much more than the disk can do, with all kinds of appetite.
_OVERLOAD = f"""
fio --thread --filename={DEVICE} --direct=1 --time_based --runtime={OVERLOAD} --output-format=terse \
    --name=small --rw=randwrite --bs=4k --ioengine=libaio --iodepth=64 --numjobs=12 \
    --name=big --rw=write --bs=1M --ioengine=libaio --iodepth=8 --numjobs=3 \
    --name=hot --rw=randwrite --bs=4k --size=64k --ioengine=libaio --iodepth=4 --numjobs=2 \
    --name=durable --rw=randwrite --bs=8k --ioengine=psync --fsync=1 --numjobs=6 \
    --name=mixed --rw=randrw --bs=64k --ioengine=libaio --iodepth=16 --numjobs=2
"""


@pytest.mark.timeout(900 + 2 * OVERLOAD)
def test_overload(mars_hosts):
    """The buffer of the primary is always full. Nothing waits for ever, however little or much it wants, and the replica has it all in the end."""
    buffer = 8
    mars, data = default_disks(mars=4 << 30, data=300 * MIB)
    slow = dataclasses.replace(data, bps=8 * MIB)
    a, b = mars_hosts(2, spec=(HostSpec(mem=512, disks=(mars, slow)), HostSpec(mem=512, disks=(mars, data))))
    for host in (a, b):
        host.mount_mars()
        marscluster.load_module(host, write_buffer_mb=buffer)
        host.run(f"echo {int(scaled(10))} > /proc/sys/kernel/hung_task_timeout_secs")
    cluster_of_two((a, b))
    job = a.start(_OVERLOAD, timeout=OVERLOAD + 300)
    most = {a: 0, b: 0}
    full = looks = rotations = 0
    while job.running:
        for host in (a, b):
            most[host] = max(most[host], payload_bytes(host))
        looks += 1
        written_back = a.run("readlink /mars/resource-data/actual-$(uname -n)/write-back").out
        full += int(written_back) > buffer * MIB // 2
        if looks % 4 == 0:
            a.run("marsadm log-rotate data", timeout=120)
            a.run("marsadm log-delete-all data", timeout=120)
            rotations += 1
        progress(0.5)
    job.wait()
    print(f"{rotations} rotations, buffer full at {full} of {looks} looks, at most {most[a] >> 20} and {most[b] >> 20} MiB in buffers")
    assert full > looks // 3, "no overload"
    for host in (a, b):
        assert most[host] <= buffer * MIB + BESIDE, f"{most[host]} bytes in buffers of {host.name}"
    marscluster.wait_synced([a, b], timeout=300)
    assert "Emergency" not in a.run("marsadm view data").out
    equal([a, b])
