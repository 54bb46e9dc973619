# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that boot machines.

    def test_something(mars_hosts):
        a, b = mars_hosts(2)

Every machine a test used is looked at when the test ends: a warning in its kernel log, an
unexpected restart or death fails that very test. Consoles are kept in build/vm/<test>/.
"""

import pathlib
import re
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))

# pylint: disable=wrong-import-position
from marsvm import Cluster, HostSpec, VmError, default_disks, disks, lane, payload, template, util  # noqa: E402
from marsvm.host import environment  # noqa: E402

# No test may wait for ever; most are much faster. Scaled like all time limits.
TEST_TIMEOUT = 300

_used = pytest.StashKey()
_failed = pytest.StashKey()


def pytest_configure(config):
    if config.option.durations is None:
        config.option.durations = 10


def pytest_report_header(config):
    if hasattr(config, "workerinput"):
        return None
    return f"machines: {environment()}"


def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.getoption("timeout") is not None:
            continue
        own = item.get_closest_marker("timeout")
        if own is None:
            item.add_marker(pytest.mark.timeout(util.scaled(TEST_TIMEOUT)))
        elif lane.DEBUG:
            item.add_marker(pytest.mark.timeout(own.args[0] * lane.SLOWNESS), append=False)


def pytest_sessionfinish():
    template.close_all()
    disks.close_templates()


def _folder(item, n):
    """For the consoles of a test's n-th cluster; what an earlier run left is removed."""
    name = re.sub(r"[^\w.=-]+", "_", item.nodeid.replace("tests/", "", 1)).strip("_")
    path = util.KERNEL_BUILD / "vm" / name
    if n == 0:
        shutil.rmtree(path, ignore_errors=True)
        return path
    return path / str(n + 1)


def _judge(item):
    """What is wrong with the machines of a test."""
    return [p for cluster in item.stash.get(_used, []) for host in cluster for p in host.check()]


def _save_state(item):
    """For whoever wants to know why it failed."""
    for cluster in item.stash.get(_used, []):
        for host in cluster:
            host.save_state()
        text = f"consoles and states of the machines are in {cluster.log_dir}"
        item.add_report_section("call", "machines", text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        result = yield
    except BaseException:
        item.stash[_failed] = True
        problems = _judge(item)
        if problems:
            item.add_report_section("call", "machines", "\n\n".join(problems))
        _save_state(item)
        raise
    problems = _judge(item)
    if problems:
        item.stash[_failed] = True
        _save_state(item)
        pytest.fail("the test passed, but its machines are not well:\n" + "\n\n".join(problems), pytrace=False)
    return result


@pytest.fixture
def mars_hosts(request):
    """Factory of running hosts: `mars_hosts(2)`, `mars_hosts(1, cpus=4)`, `mars_hosts(3, spec)`.

    Keywords are fields of HostSpec, and of default_disks (mars, data, raw: sizes in bytes). The
    machines are new ones, with empty disks. At the end of the test the module must be removable
    from every host that still runs, unless `unload` is false.
    """
    used = request.node.stash.setdefault(_used, [])
    unload = []

    def make(count=2, spec=None, **fields):
        if fields.pop("unload", True):
            unload.append(len(used))
        sizes = {k: fields.pop(k) for k in ("mars", "data", "raw") if k in fields}
        if sizes:
            fields["disks"] = default_disks(**sizes)
        cluster = Cluster(count, spec or HostSpec(**fields), log_dir=_folder(request.node, len(used)))
        used.append(cluster)
        return cluster

    yield make

    errors = []
    try:
        if not request.node.stash.get(_failed, False):
            for cluster in (used[i] for i in unload):
                errors += _unload(cluster)
            for cluster in used:
                errors += _leaks(cluster)
    finally:
        for cluster in used:
            cluster.close()
    if errors:
        pytest.fail("\n".join(errors), pytrace=False)


def _unload(cluster):
    cluster.heal()
    running = [h for h in cluster if h.is_on]
    try:
        cluster.each(lambda host: host.unload(), running)
    except VmError as e:
        return [f"at the end of the test: {e}"]
    return [f"when the module was removed: {p}" for host in running for p in host.check()]


def _leaks(cluster):
    running = [h for h in cluster if h.is_on]
    try:
        found = cluster.each(lambda host: host.leaks(), running)
    except VmError as e:
        return [f"when leaks were looked for: {e}"]
    return sum(found, []) + [f"when leaks were looked for: {p}" for host in running for p in host.check()]


@pytest.fixture
def mars_module():
    """Says that the test needs the module; a build without it is an error, not a skip."""
    if not payload.have_module():
        pytest.fail(f"{payload.module_path()} is not built: run make module", pytrace=False)
