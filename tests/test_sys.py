# SPDX-License-Identifier: GPL-2.0-or-later
"""The system layer (src/sys) in a real kernel, by means of tests/kmod-selftest.

A case runs in a kernel thread; writing its name to /proc/sys/mars_selftest/run fails if it does.
Warnings of the kernel fail a test anyway.
"""

import re

import pytest

from marsvm import util
from marsvm import wait_until

MODULE = util.KERNEL_BUILD / "selftest" / "mars_selftest.ko"
PROC = "/proc/sys/mars_selftest"
LOOPBACK = ("127.0.0.1", "::1")


class Selftest:
    """The module in a machine."""

    def __init__(self, host):
        self.host = host
        host.put(MODULE.read_bytes(), "/root/mars_selftest.ko")
        host.run("insmod /root/mars_selftest.ko")

    def case(self, name, arg="", timeout=120):
        result = self.host.run(f"echo '{name} {arg}' > {PROC}/run", timeout=timeout, check=False)
        if not result.ok:
            log = self.host.run("dmesg | grep mars_selftest: | tail -n 20").out
            pytest.fail(f"{name} {arg}: {result.stderr}\n{log}", pytrace=False)

    def remove(self):
        self.host.run("rmmod mars_selftest", timeout=30)


@pytest.fixture
def machine(mars_hosts):
    if not MODULE.exists():
        pytest.fail(f"{MODULE} is not built: run make selftest", pytrace=False)
    (host,) = mars_hosts(1, raw=1 << 30)
    return host


@pytest.fixture
def selftest(machine):
    test = Selftest(machine)
    yield test
    test.remove()


def make_file_system(host, kind, folder="/mnt/t"):
    disk = host.disk("raw").dev
    host.run(f"umount {folder} 2>/dev/null; mkdir -p {folder}", check=False)
    if kind == "tmpfs":
        host.run(f"mount -t tmpfs -o size=300m none {folder}")
    elif kind == "xfs":
        host.run(f"mkfs.xfs -q -f {disk} && mount {disk} {folder}", timeout=120)
    elif kind == "ext4-4k-sectors":
        host.run(f"mkfs.ext4 -q -F -b 4096 {disk} && mount -o data=journal {disk} {folder}", timeout=120)
    else:
        host.run(f"mkfs.ext4 -q -F {disk} && mount {disk} {folder}", timeout=120)
    return folder


@pytest.fixture(params=["ext4", "xfs", "tmpfs"])
def folder(request, machine):
    path = make_file_system(machine, request.param)
    yield path
    machine.run(f"umount {path}")


@pytest.mark.parametrize("name", ["digests", "clocks", "threads", "events", "notifier-churn", "addresses", "detach"])
def test_case(selftest, name):
    selftest.case(name)


@pytest.mark.parametrize("name", ["stop-races", "stop-many", "event-storm"])
def test_threads_and_events_under_load(selftest, name):
    selftest.case(name, timeout=240)


def test_the_name_of_the_machine(selftest):
    selftest.case("nodename", selftest.host.run("uname -n").out)


def test_messages_are_limited(selftest):
    selftest.case("ratelimit")
    log = selftest.host.run("dmesg").out
    shown = re.findall(r"selftest: message (\d+)", log)[-11:]
    assert shown == [str(i) for i in range(10)] + ["50"], shown
    assert "40 messages like the next one were left out" in log


def test_sysctl_files(selftest):
    run = selftest.host.run
    assert run(f"cat {PROC}/number {PROC}/big").out.split() == ["7", str(1 << 40)]
    run(f"echo 10 > {PROC}/number; echo 0xffffffffffffffff > {PROC}/big")
    assert run(f"cat {PROC}/number {PROC}/big").out.split() == ["10", str((1 << 64) - 1)]
    for bad in ("11", "4", "-6", "+6", "", "six", "6 7", "0x", "18446744073709551616", "6.0"):
        assert not run(f"echo '{bad}' > {PROC}/number", check=False).ok, bad
    assert run(f"cat {PROC}/number").out == "10"
    run(f"printf 6 > {PROC}/number")
    assert run(f"cat {PROC}/number").out == "6"

    long = "".join(f"line {i}\n" for i in range(20_000))
    assert run(f"cat {PROC}/long").stdout == long
    assert run(f"dd if={PROC}/long bs=1000 status=none").stdout == long
    assert run(f"dd if={PROC}/long bs=7 count=3 status=none").stdout == long[:21]
    assert "too large" in run(f"cat {PROC}/too-long", check=False).stderr
    assert "No data" in run(f"cat {PROC}/failing", check=False).stderr
    assert "No such file" in run(f"echo nothing > {PROC}/run", check=False).stderr
    assert not run(f"cat {PROC}/run", check=False).ok
    assert not run(f"echo x > {PROC}/long", check=False).ok
    assert run(f"stat -c %a {PROC}/run {PROC}/long {PROC}/number").out.split() == ["200", "444", "644"]


def test_rmmod_waits_for_a_reader(machine):
    selftest = Selftest(machine)
    # One read call: a second one would find the file gone.
    job = machine.start(f"dd if={PROC}/slow bs=100 count=1 status=none")
    wait_until(lambda: "a slow reader" in machine.run("dmesg").out, 20, what="the read has begun")
    selftest.remove()
    assert job.wait().out == "slow"
    machine.run(f"[ ! -e {PROC} ]")


def test_sysctl_comes_and_goes_while_it_is_used(selftest):
    churn = "/proc/sys/mars_selftest_churn"
    loops = [
        f"while :; do cat {churn}/text >/dev/null 2>&1; done",
        f"while :; do echo good > {churn}/trigger; done 2>/dev/null",
        f"while :; do echo 55 > {churn}/number; read -r x < {churn}/number; done 2>/dev/null",
        f"while :; do ls {churn} >/dev/null 2>&1; done",
    ]
    jobs = [selftest.host.start(f"bash -c '{loop}'", check=False) for loop in loops]
    try:
        selftest.case("sysctl-churn", timeout=240)
    finally:
        for job in jobs:
            job.kill()


def test_reboot_calls_the_notifier(mars_hosts):
    (host,) = mars_hosts(1)
    Selftest(host)
    host.reboot()
    wait_until(lambda: "selftest: the machine goes down" in host.log(), 20, what="the message")


def test_files(selftest, folder):
    run = selftest.host.run
    run(f"cd {folder}; ln -s file symlink; mkfifo fifo; mknod device b 7 0")
    selftest.case("files", folder)
    selftest.case("after-stop", folder)


def test_direct_io(selftest, folder):
    selftest.case("direct", folder)


def test_direct_io_is_not_promised_where_there_is_none(selftest):
    path = make_file_system(selftest.host, "ext4-4k-sectors")
    selftest.case("direct", path)
    selftest.host.run(f"umount {path}")


def test_full_file_system(selftest, folder):
    selftest.case("enospc", folder, timeout=240)


def test_names(selftest, folder):
    selftest.case("names", folder)
    selftest.case("mount-root", folder)
    selftest.host.run(f"mkdir {folder}/sub")
    selftest.case("not-mount-root", f"{folder}/sub")


def test_links(selftest, folder):
    selftest.case("links", folder)
    selftest.case("links-parallel", folder)


def test_list_of_ten_thousand(selftest, folder):
    selftest.case("list-many", folder, timeout=240)


@pytest.mark.parametrize("addr", LOOPBACK)
@pytest.mark.parametrize("name", ["transfer", "timeouts", "closing", "shutdown", "stop", "latency"])
def test_sockets(selftest, name, addr):
    selftest.case(name, addr)


def test_listener_without_ipv6(mars_hosts):
    (host,) = mars_hosts(1, append="ipv6.disable=1")
    Selftest(host).case("transfer", "127.0.0.1")


def test_connect_to_nowhere(selftest):
    run = selftest.host.run
    run("nft add table inet sink && nft 'add chain inet sink input { type filter hook input priority 0; }'"
        " && nft add rule inet sink input ip daddr 127.0.0.9 drop")
    selftest.case("black-hole", "127.0.0.9")
    run("nft delete table inet sink")


def test_nothing_is_left(machine):
    """Round after round, the memory of the kernel stays what it was."""
    path = make_file_system(machine, "ext4")
    machine.run(f"cd {path}; ln -s file symlink; mkfifo fifo; mknod device b 7 0")

    def round_():
        selftest = Selftest(machine)
        for name in ("digests", "threads", "stop-races", "stop-many", "detach", "events", "notifier-churn"):
            selftest.case(name, timeout=240)
        for name in ("files", "direct", "names", "links", "list-many"):
            selftest.case(name, path, timeout=240)
        for name in ("transfer", "closing", "shutdown", "stop", "latency"):
            selftest.case(name, "::1")
        for _ in range(20):
            selftest.remove()
            Selftest(machine)
        selftest.remove()
        return machine.memory_snapshot()

    round_()
    first = round_()
    last = [round_() for _ in range(2)][-1]
    machine.run(f"umount {path}")
    assert last["vmalloc_lines"] == []
    # Slab caches have some play of their own; a leak of one object a case would be hundreds.
    for name, count in first["slabs"].items():
        if name.startswith(("kmalloc", "task_struct", "filp", "TCP", "sock_inode", "dentry", "ext4_inode")):
            assert last["slabs"].get(name, 0) < count + 400, (name, count, last["slabs"].get(name))
    assert last["SUnreclaim"] < first["SUnreclaim"] + (2 << 20)
    assert last["KernelStack"] < first["KernelStack"] + (256 << 10)
