# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug lane: the same tests on the kernel of scripts/debug-kernel, which looks for bugs itself.

MARS_LANE=debug chooses it (scripts/in-env, make check-debug). That kernel is slow and needs memory
for what it keeps in mind; everything else that is special about it is here, too.
"""

import os

DEBUG = os.environ.get("MARS_KERNEL_LANE") == "debug"

# How much slower than Debian's kernel it is at most, in an emulated machine.
SLOWNESS = 3.0

# Whoever is slow is not stuck: three times the usual limits. Pages are filled when they are freed.
CMDLINE = (
    "tsc_early_khz=2596125 page_poison=1 rcupdate.rcu_cpu_stall_timeout=180 watchdog_thresh=60 "
    "sysctl.kernel.hung_task_timeout_secs=180 workqueue.watchdog_thresh=180"
)

# A leak is an object to which no pointer is found twice, five seconds after it was allocated.
_SCAN = (
    "{ mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug; }"
    " && cd /sys/kernel/debug && echo scan > kmemleak && echo scan > kmemleak"
)

# At boot: what the kernel itself has lost so far is none of our business.
PREPARE = f"sleep 5; {_SCAN} && echo clear > kmemleak"

# What is reported once is not reported again.
LEAKS = f"sleep 5; {_SCAN} && cat kmemleak && echo clear > kmemleak"

# Freed objects wait for a while before their memory is used again; until then they count.
FLUSH = "for f in /sys/kernel/slab/*/shrink; do echo 1 > $f; done"


def memory(mib):
    """MiB of a machine that is to have as much for programs as one with `mib` and Debian's kernel."""
    return mib + mib // 2 + 128 if DEBUG else mib
