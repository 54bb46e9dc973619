# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges a kernel log: what must never be in it, and what is harmless although it looks bad."""

import re

# Each of these in the log of a machine fails the test.
BAD = [
    r"\bWARNING: ",
    r"\bBUG: ",
    r"kernel BUG at",
    r"\bOops\b",
    r"Kernel panic",
    r"general protection fault",
    r"[Uu]nable to handle kernel",
    r"Call Trace:",
    r"invalid opcode:",
    r"divide error:",
    r"stack segment:",
    r"rust_kernel: panicked|panicked at ",
    r"INFO: task .* blocked (for more than|in)",
    r"INFO: .* detected (stalls|expedited stalls)|self-detected stall",
    r"soft lockup|hard LOCKUP|hung_task:",
    r"refcount_t:",
    r"UBSAN:|KASAN:|KCSAN:|KFENCE:|KMSAN:",
    r"kmemleak: .*(new suspected|unreferenced|unknown object|by alias|[Cc]annot|disabled)",
    r"INFO: trying to register non-static key|turning off the locking correctness validator",
    r"pagealloc: (memory corruption|single bit error)",
    r"list_(add|del) corruption|list corruption",
    r"slab .*(corruption|Objects remaining)|[Oo]bjects remaining (on|in)|still has objects",
    r"Bad page (state|map)|Bad rss-counter",
    r"page allocation failure|Out of memory: Killed|oom-kill:",
    r"possible (circular locking|recursive locking|irq lock inversion)|INFO: lockdep|inconsistent lock state",
    r"(sleeping function called|scheduling while atomic|held lock freed|bad unlock balance)",
    r"EXT4-fs error|EXT4-fs \(.*\): .*(corrupt|panic)|XFS .*([Cc]orrupt|Internal error|shutting down)",
    r"JBD2: .*(error|corrupt)",
    r"unregister_netdevice: waiting for",
    r"use-after-free|double.free",
    r"mars-bench: init",
]

# Lines that match BAD and are not our concern; each with its reason.
ALLOWED = [
    # Out-of-tree, unsigned: said once by every kernel that loads a module of ours.
    r"loading out-of-tree module taints kernel",
    r"module verification failed: signature and/or required key missing",
    # The debug kernel says which bugs it would find.
    r"RCU callback double-/use-after-free debug is enabled",
    # scsi_debug announces itself with this word.
    r"scsi_debug: WARNING: .*vpd_use_hostno",
    # Boot-time remarks about an emulated processor.
    r"WARNING: .*(Spectre|MDS|TAA|MMIO Stale|L1TF)",
]

_BAD = re.compile("|".join(f"(?:{p})" for p in BAD))
_ALLOWED = re.compile("|".join(f"(?:{p})" for p in ALLOWED))

# The machine can't go on after this (it runs with oops=panic and stops at a panic).
FATAL = re.compile(r"Kernel panic - not syncing|mars-bench: init failed")


_TIME = re.compile(r"^\[ *(\d+\.\d+)\]")


def _is_earlier(line, than):
    """By its time stamp; those of two processors may differ a little."""
    a, b = _TIME.match(line), _TIME.match(than)
    return bool(a and b and float(a[1]) < float(b[1]) - 1)


def problems(text, allow=()):
    """The bad lines of `text`, each with the lines that follow it; [] if there are none.

    `allow` holds further patterns that a test expects; a reported trace that follows directly on
    an allowed line is not complained about separately.
    """
    extra = re.compile("|".join(f"(?:{p})" for p in allow)) if allow else None
    lines = text.splitlines()
    found = []
    skip_until = -1
    for i, line in enumerate(lines):
        if i < skip_until or not _BAD.search(line) or _ALLOWED.search(line):
            continue
        # One report has many lines that match; it is shown and judged once. It ends at the latest where the next boot begins.
        skip_until = i + 60
        for j in range(i, min(i + 60, len(lines))):
            if "---[ end " in lines[j]:
                skip_until = j + 1
                break
            if _is_earlier(lines[j], line):
                skip_until = j
                break
        if extra and any(extra.search(l) for l in lines[max(0, i - 3) : min(i + 4, len(lines))]):
            continue
        found.append("\n".join(lines[max(0, i - 2) : min(skip_until, i + 45)]))
    return found
