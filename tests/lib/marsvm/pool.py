# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps booted clusters for the next test that wants the same."""

from .cluster import Cluster
from .errors import VmError

# Guests that wait for a test at the same time; each takes about its `mem` of the host's memory.
MAX_IDLE = 4


class Pool:
    """A cluster comes back only after it was cleaned; one that can't be cleaned is ended."""

    def __init__(self):
        self._idle = []

    def take(self, count, specs, log_dir, fresh=False):
        """A cluster whose hosts all run and whose disks are empty."""
        if not fresh:
            for cluster in self._idle:
                if cluster.specs == specs:
                    self._idle.remove(cluster)
                    return cluster
        self._shrink(MAX_IDLE - count)
        return Cluster(count, specs, log_dir=log_dir)

    def give_back(self, cluster):
        """Cleans it for the next one. Raises VmError, after ending it, if that fails."""
        try:
            cluster.heal()
            for host in cluster:
                if not host.is_on:
                    # A test that left a host off is done with it.
                    cluster.close()
                    return
            for host in cluster:
                host.clean()
            problems = [p for host in cluster for p in host.check()]
            if problems:
                raise VmError("while the machines were cleaned:\n" + "\n".join(problems))
        except BaseException:
            cluster.close()
            raise
        for host in cluster:
            host.allowed.clear()
        self._idle.append(cluster)
        self._shrink(MAX_IDLE)

    def _shrink(self, limit):
        """Ends those that waited longest."""
        while self._idle and sum(len(c) for c in self._idle) > max(limit, 0):
            self._idle.pop(0).close()

    def close(self):
        self._shrink(0)
