# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that boot machines.

    def test_something(mars_hosts):
        a, b = mars_hosts(2)

Every machine a test used is looked at when the test ends: a warning in its kernel log, an
unexpected restart or death fails that very test. Consoles are kept in build/vm/<test>/.
"""

import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))

# pylint: disable=wrong-import-position
from marsvm import HostSpec, VmError, default_disks, payload, util  # noqa: E402
from marsvm.host import environment  # noqa: E402
from marsvm.pool import Pool  # noqa: E402

# No test may wait for ever; most are much faster. Scaled like all time limits.
TEST_TIMEOUT = 300

_pool = pytest.StashKey()
_used = pytest.StashKey()
_failed = pytest.StashKey()


def pytest_configure(config):
    config.addinivalue_line("markers", "needs_module: needs build/module/mars.ko")
    config.stash[_pool] = Pool()
    if config.option.durations is None:
        config.option.durations = 10


def pytest_report_header(config):
    if hasattr(config, "workerinput"):
        return None
    return f"machines: {environment()}"


def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.getoption("timeout") is None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(util.scaled(TEST_TIMEOUT)))


def pytest_sessionfinish(session):
    session.config.stash[_pool].close()
    from marsvm import disks

    disks.close_templates()


def _folder(item):
    name = re.sub(r"[^\w.=-]+", "_", item.nodeid.replace("tests/", "", 1)).strip("_")
    path = util.BUILD / "vm" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _judge(item):
    """What is wrong with the machines of a test; saves their consoles."""
    found = []
    for cluster in item.stash.get(_used, []):
        for host in cluster.hosts:
            host.sync_log()
            (_folder(item) / f"{host.name}.console").write_text(host.log())
            found += host.check()
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        result = yield
    except BaseException:
        item.stash[_failed] = True
        problems = _judge(item)
        if problems:
            item.add_report_section("call", "machines", "\n\n".join(problems))
        raise
    problems = _judge(item)
    if problems:
        item.stash[_failed] = True
        pytest.fail("the test passed, but its machines are not well:\n" + "\n\n".join(problems), pytrace=False)
    return result


@pytest.fixture
def mars_hosts(request):
    """Factory of running hosts: `mars_hosts(2)`, `mars_hosts(1, cpus=4)`, `mars_hosts(3, spec)`.

    Keywords are fields of HostSpec, and of default_disks (mars, data, raw: sizes in bytes).
    `fresh`: machines that were booted for this test. `reuse=False`: they are not used again.
    """
    pool = request.config.stash[_pool]
    used = request.node.stash.setdefault(_used, [])
    keep = {}

    def make(count=2, spec=None, *, fresh=False, reuse=True, **fields):
        sizes = {k: fields.pop(k) for k in ("mars", "data", "raw") if k in fields}
        if sizes:
            fields["disks"] = default_disks(**sizes)
        if spec is None:
            spec = HostSpec(**fields)
        specs = tuple(spec) if isinstance(spec, (list, tuple)) else (spec,) * count
        cluster = pool.take(count, specs, None, fresh)
        used.append(cluster)
        keep[cluster] = reuse
        for host in cluster:
            host.check()
        return cluster

    yield make

    failed = request.node.stash.get(_failed, False)
    errors = []
    for cluster in used:
        if failed or not keep[cluster]:
            cluster.close()
            continue
        try:
            pool.give_back(cluster)
        except VmError as e:
            errors.append(str(e))
    if errors:
        pytest.fail("\n".join(errors), pytrace=False)


@pytest.fixture
def mars_module():
    """Says that the test needs the module; a build without it is an error, not a skip."""
    if not payload.have_module():
        pytest.fail(f"{payload.module_path()} is not built: run make module", pytrace=False)
