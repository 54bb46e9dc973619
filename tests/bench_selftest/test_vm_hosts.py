# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench itself: machines, commands, links, power, disks."""

import pathlib
import time

import pytest

from marsvm import AgentTimeout
from marsvm import Cluster
from marsvm import CommandFailed
from marsvm import HostReset
from marsvm import HostSpec
from marsvm import lane
from marsvm import scaled
from marsvm import tap
from marsvm import wait_until

# Feature bits of virtio's network card.
GUEST_TSO4, HOST_TSO4 = 7, 11


def test_hosts_run_the_stock_kernel_and_see_each_other(mars_hosts):
    a, b = mars_hosts(2)
    for host in (a, b):
        host.run("[ $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource) = tsc ]")
        host.run("[ $(cat /sys/block/vda/ro) = 1 ] && mountpoint -q /proc && touch /usr/x && rm /usr/x")
    assert a.run("hostname").out == "hosta"
    a.run("ping -c 1 -W 5 hostb")
    b.run(f"ping -c 1 -W 5 {a.ip}")


def test_commands_have_status_output_input_and_a_time_limit(mars_hosts):
    (a,) = mars_hosts(1)
    r = a.run("cat; echo bad >&2; exit 3", stdin="in\n", check=False)
    assert (r.rc, r.stdout, r.stderr) == (3, "in\n", "bad\n")
    assert a.run(["printf", "%s", "a b'c"]).stdout == "a b'c"
    assert a.run(r"printf '\377\000'").stdout == b"\xff\0"
    assert a.run("kill -9 $$", check=False).rc == -9
    with pytest.raises(CommandFailed) as failed:
        a.run("echo why; false")
    assert "why" in str(failed.value)

    # The whole process group ends, and the answer says where it hung.
    with pytest.raises(CommandFailed) as late:
        a.run("sleep 1234 & sleep 1234", timeout=0.3)
    assert late.value.result.timed_out and "sleep" in late.value.result.stuck
    assert a.run("pgrep -x sleep", check=False).rc == 1

    # What goes on in the background does not keep a finished command waiting.
    start = time.monotonic()
    a.run("sleep 777 & echo done")
    assert time.monotonic() - start < scaled(5)


def test_commands_run_at_the_same_time(mars_hosts):
    (a,) = mars_hosts(1)
    a.run("mkfifo " + " ".join(f"/tmp/go{i}" for i in range(8)))
    jobs = [a.start(f"read x < /tmp/go{i}; echo $x") for i in range(8)]
    slow = a.start("echo begun; exec sleep 1000")
    wait_until(lambda: slow.output()[0] == "begun\n", 10, "output of a running command")
    assert slow.running
    assert slow.kill().rc == -9
    # All of them are in the middle of it, and are let go in another order.
    for i in reversed(range(8)):
        a.run(f"echo {i} > /tmp/go{i}")
    assert [job.wait().out for job in jobs] == [str(i) for i in range(8)]


def test_the_agent_answers_under_load(mars_hosts):
    (a,) = mars_hosts(1)
    busy = [a.start("while :; do :; done") for _ in range(4)]
    start = time.monotonic()
    a.run("true")
    assert time.monotonic() - start < scaled(10)
    for job in busy:
        job.kill()


def test_files_go_in_and_out(mars_hosts):
    (a,) = mars_hosts(1)
    data = bytes(range(256)) * 5000
    a.put(data, "/root/file", mode=0o600)
    assert a.get("/root/file") == data
    assert a.get("/root/file", offset=1000, length=10) == data[1000:1010]
    assert a.run("stat -c '%a %s' /root/file; sha256sum < /root/file | cut -c1-8").out.split()[:2] == [
        "600",
        str(len(data)),
    ]
    a.put(pathlib.Path(__file__), "/root/self.py")
    assert a.run("wc -l < /root/self.py").out


def test_a_link_is_cut_silently_or_with_its_carrier_and_heals(mars_hosts):
    cut_and_heal(*mars_hosts(2))


@pytest.mark.skipif(not tap.works(), reason="no /dev/net/tun here: the benchmark goes without offload, too")
def test_a_link_with_offload_passes_large_segments_and_is_cut_likewise():
    with Cluster(2, HostSpec(disks=()), offload=True) as (a, b):
        features = a.run(f"cat /sys/class/net/{a.interface(b)}/device/features").out
        assert features[HOST_TSO4] == features[GUEST_TSO4] == "1", features
        cut_and_heal(a, b)
        b.power_cut()
        b.boot()
        wait_until(lambda: a.run("ping -c 1 -W 1 hostb"), 20, "the wire finds the new machine")


def cut_and_heal(a, b):
    ping = "ping -c 1 -W 1 hostb"
    carrier = f"cat /sys/class/net/{a.interface(b)}/carrier"
    a.run(ping)
    a.cut_link(b)
    assert a.run(ping, check=False).rc == 1
    assert a.run(carrier).out == "1"
    a.heal_link(b)
    wait_until(lambda: a.run(ping), 20, "the link is whole again")
    b.isolate(carrier=True)
    wait_until(lambda: a.run(carrier).out == "0", 10, "the carrier is lost")
    assert a.run(ping, check=False).rc != 0
    b.heal_link(a)
    wait_until(lambda: a.run(ping), 20, "the link is whole again")


def test_a_link_can_be_long(mars_hosts):
    a, b = mars_hosts(2)
    a.shape_link(b, delay_ms=150, rate="10mbit")
    # Both directions, hence twice the delay.
    out = a.run("ping -c 2 -W 5 hostb").out
    assert float(out.rsplit("=", 1)[1].split("/")[0]) >= 295, out
    a.shape_link(b)
    assert "netem" not in a.run("tc qdisc show").out


def test_disks_survive_power_cut_crash_and_reboot_and_the_link_stays_cut(mars_hosts):
    a, b = mars_hosts(2)
    a.mount_mars()
    data = a.disk("data").dev
    a.run(f"echo kept > /mars/file; sync; echo block | dd of={data} bs=512 conv=sync oflag=direct 2>&1")
    a.cut_link(b)
    a.power_cut()
    a.boot()
    assert a.run("ping -c 1 -W 1 hostb", check=False).rc == 1
    a.heal_link(b)
    wait_until(lambda: a.run("ping -c 1 -W 1 hostb"), 20, "the wire finds the new machine")
    a.mount_mars()
    assert a.run("cat /mars/file").out == "kept"
    assert a.run(f"dd if={data} bs=5 count=1 status=none").out == "block"

    job = a.start("sleep 1000", check=False)
    a.crash("sysrq")
    with pytest.raises(HostReset):
        job.wait()
    assert not a.run("mount").out.count("/mars")
    a.mount_mars()
    assert a.run("cat /mars/file").out == "kept"
    a.reboot()
    a.mount_mars()
    assert a.run("cat /mars/file").out == "kept"
    assert "recovery complete" not in a.dmesg()


def test_copies_of_a_booted_machine_are_not_twins(mars_hosts):
    a, b = mars_hosts(2)
    own = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1"
    seen = [h.run(own).out.splitlines() for h in (a, b)]
    a.crash()
    seen.append(a.run(own).out.splitlines())
    assert len({s[0] for s in seen}) == len({s[1] for s in seen}) == 3
    for host in (a, b):
        assert abs(float(host.run("date +%s.%N").out) - time.time()) < scaled(5)


def test_a_real_boot(mars_hosts):
    (a,) = mars_hosts(1)
    a.power_cut()
    a.boot(cold=True)
    assert "Linux version" in a.log()
    a.run("ip addr show lo | grep -q 10.77.0.1")


def test_shutdown_and_boot(mars_hosts):
    (a,) = mars_hosts(1)
    a.mount_mars()
    a.run("echo 1 > /mars/x")
    a.shutdown()
    assert not a.is_on
    a.boot()
    a.mount_mars()
    assert a.run("cat /mars/x").out == "1"


def test_a_new_host_has_empty_disks(mars_hosts):
    (a,) = mars_hosts(1)
    assert a.run("mountpoint -q /mars", check=False).rc != 0
    a.mount_mars()
    assert a.run("ls -A /mars").out == "lost+found"
    assert a.run(f"cmp -n 1048576 {a.disk('data').dev} /dev/zero").ok


def test_a_paused_host_does_not_answer(mars_hosts):
    (a,) = mars_hosts(1)
    a.pause()
    job = a.start("echo late")
    with pytest.raises(AgentTimeout):
        job.wait(timeout=0.5)
    a.resume()
    assert job.wait().out == "late"


def test_kernel_modules_for_tests_are_there(mars_hosts):
    (a,) = mars_hosts(1)
    names = "dm-flakey dm-log-writes dm-delay null_blk brd loop tls sch_netem sch_tbf"
    a.run(f"modprobe -a {names}", timeout=60)
    if not lane.DEBUG:
        # Only what is measured against it needs it.
        a.run("modprobe drbd; modprobe -r drbd", timeout=60)
    dev = a.disk("data").dev
    size = a.run(f"blockdev --getsz {dev}").out
    a.run(f"dmsetup create f --table '0 {size} flakey {dev} 0 1 0' && dmsetup remove f")
    for tool in ("fio", "drbdadm", "mkfs.xfs", "fuser", "lsof", "tcpdump", "lvs"):
        a.run(f"command -v {tool}")


def test_memory_numbers(mars_hosts):
    (a,) = mars_hosts(1)
    m = a.memory_snapshot()
    assert m["Slab"] > 0 and m["VmallocUsed"] > 0 and m["slabs"]["dentry"] > 0
    assert m["vmalloc_mars"] == 0
