# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench's judgement: what is wrong with a machine must come out, what is right must not."""

import pytest

from marsvm import HostDied
from marsvm import HostReset
from marsvm import kernlog
from marsvm import wait_until

TRACE = """\
[    1.0] something harmless
[    2.0] ------------[ cut here ]------------
[    2.0] WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 foo+0x1/0x2
[    2.0] Call Trace:
[    2.0]  bar+0x1
[    2.0] ---[ end trace 0000000000000000 ]---
[    3.0] BUG: unable to handle page fault
"""


def test_bad_lines_are_found_once_each():
    found = kernlog.problems(TRACE)
    assert len(found) == 2
    assert "foo.c:12" in found[0] and "page fault" in found[1]
    assert kernlog.problems("[ 1.0] mars: loading out-of-tree module taints kernel.\n[ 1.1] mars: hello\n") == []


def test_an_expected_report_is_left_out_with_its_trace():
    found = kernlog.problems(TRACE, [r"foo\.c:12"])
    assert len(found) == 1 and "page fault" in found[0]


def test_a_report_ends_where_the_next_boot_begins():
    def panic(text):
        return "".join([f"[   11.{n:06}] {l}\n" for n, l in enumerate([f"Kernel panic - not syncing: {text}", *["a"] * 5, "Call Trace:", *["b"] * 13])])

    boots = "".join(panic("expected") + "[    3.500000] mars: hello\n" * 9 for _ in range(5))
    assert kernlog.problems(boots, ["expected"]) == []
    found = kernlog.problems(boots + panic("not expected by anybody"), ["syncing: expected"])
    assert len(found) == 1 and "by anybody" in found[0]
    assert kernlog.problems(panic("expected") + "[    3.500000] WARNING: foo\n", ["expected"])


@pytest.mark.parametrize(
    "line",
    [
        "INFO: task fio:12 blocked for more than 120 seconds.",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 23s!",
        "Oops: general protection fault, probably for non-canonical address",
        "rust_kernel: panicked at src/mars.rs:1:2:",
        "refcount_t: underflow; use-after-free.",
        "UBSAN: array-index-out-of-bounds in fs/x.c:1:2",
        "list_del corruption. prev->next should be",
        "kmemleak: 3 new suspected memory leaks",
        "kmemleak: Kernel memory leak detector disabled",
        "INFO: trying to register non-static key.",
        "BUG: KASAN: slab-use-after-free in mars_x+0x1/0x2 [mars]",
        "WARNING: possible circular locking dependency detected",
        "EXT4-fs error (device vdb): ext4_lookup:1",
    ],
)
def test_each_kind_of_report_counts(line):
    assert kernlog.problems(f"[   12.345678] {line}\n")


def test_a_warning_in_a_machine_is_seen_once(mars_hosts):
    (a,) = mars_hosts(1)
    a.run("echo '<4>WARNING: CPU: 0 PID: 1 at foo' > /dev/kmsg")
    found = a.check()
    assert len(found) == 1 and "at foo" in found[0]
    assert a.check() == []
    a.allow("at bar")
    a.run("echo '<4>WARNING: CPU: 0 PID: 1 at bar' > /dev/kmsg")


def test_a_panic_ends_waiting_at_once_and_is_reported(mars_hosts):
    (a,) = mars_hosts(1)
    job = a.start("sleep 1; echo c > /proc/sysrq-trigger; sleep 1000")
    with pytest.raises(HostDied, match="panicked"):
        job.wait()
    assert any("panicked" in p for p in a.check())
    with pytest.raises(HostDied):
        a.run("true")
    a.power_cut()
    a.boot()
    a.run("true")


def test_an_unexpected_restart_is_reported(mars_hosts):
    (a,) = mars_hosts(1)
    a.start("sleep 0.3; echo b > /proc/sysrq-trigger", check=False)
    wait_until(lambda: a.failures, 20, "the restart is noticed")
    with pytest.raises(HostReset):
        a.run("true")
    assert a.check() == ["hosta restarted unexpectedly"]
    wait_until(lambda: not a.is_on, 10, "QEMU has ended")
    a.boot()
    a.run("true")
