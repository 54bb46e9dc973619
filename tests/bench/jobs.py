# SPDX-License-Identifier: GPL-2.0-or-later
"""What fio does."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Job:
    """One kind of load. Its name is part of build/bench/latest.json: never give an old name a new meaning."""

    name: str
    rw: str
    block: str
    depth: int
    fsync: bool = False
    # Part of the short run.
    quick: bool = False

    @property
    def is_write(self) -> bool:
        return "write" in self.rw

    def options(self) -> list[str]:
        words = [f"--rw={self.rw}", f"--bs={self.block}"]
        if self.fsync:
            # fio does not keep several writes with their fsyncs in flight from one thread. "Depth 16" is what it means
            # to an application: 16 threads, each of which waits for its own fsync.
            words += ["--ioengine=psync", "--fsync=1", f"--numjobs={self.depth}", "--thread"]
        else:
            words += ["--ioengine=libaio", f"--iodepth={self.depth}"]
        if self.rw.startswith("rand"):
            words += ["--norandommap", "--randrepeat=1"]
        return words


JOBS = (
    Job("randwrite-4k-qd1", "randwrite", "4k", 1),
    Job("randwrite-4k-qd16", "randwrite", "4k", 16, quick=True),
    Job("randwrite-4k-qd1-fsync", "randwrite", "4k", 1, fsync=True, quick=True),
    Job("randwrite-4k-qd16-fsync", "randwrite", "4k", 16, fsync=True),
    Job("write-1m-qd4", "write", "1m", 4, quick=True),
    Job("read-1m-qd4", "read", "1m", 4),
    Job("randread-4k-qd1", "randread", "4k", 1),
    Job("randread-4k-qd16", "randread", "4k", 16, quick=True),
)

BY_NAME = {job.name: job for job in JOBS}

# Measured around everything else: if it moves, the host was not quiet.
FLOOR = BY_NAME["randwrite-4k-qd16"]
