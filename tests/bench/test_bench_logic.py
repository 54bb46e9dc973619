# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmark computes from what it measures. No machine is booted here."""

import json

import pytest

from bench import checks
from bench import cli
from bench import fio
from bench import jobs
from bench import recovery
from bench import report
from bench import run
from bench import stats


def _fio(**changes):
    side = {
        "iops": 1000.0, "bw_bytes": 4096000, "io_bytes": 8192000,
        "clat_ns": {"max": 9000000, "percentile": {"50.000000": 100000, "99.000000": 900000}},
    }  # fmt: skip
    none = {"iops": 0.0, "bw_bytes": 0, "io_bytes": 0, "clat_ns": {"max": 0}}
    sync = {"lat_ns": {"max": 20000000, "percentile": {"50.000000": 300000, "99.000000": 1100000}}}
    job = {"error": 0, "write": side, "read": none, "sync": sync, **changes}
    return "note: something\n" + json.dumps({"jobs": [job]})


def test_given_fsyncs_when_fio_is_read_then_latency_is_of_write_and_fsync():
    plain = fio.parse(_fio(), jobs.BY_NAME["randwrite-4k-qd1"])
    assert (plain.iops, plain.mib_s, plain.p50_us, plain.p99_us) == (1000, 3.90625, 100, 900)
    synced = fio.parse(_fio(), jobs.BY_NAME["randwrite-4k-qd1-fsync"])
    assert (synced.p50_us, synced.p99_us, synced.worst_us) == (400, 2000, 20000)


def test_given_an_error_of_fio_then_there_is_no_sample():
    with pytest.raises(ValueError):
        fio.parse(_fio(error=5), jobs.BY_NAME["randwrite-4k-qd1"])


def test_given_a_run_that_was_slow_as_a_whole_then_ratios_do_not_see_it():
    spread = stats.ratios([50, 5, 60], [100, 10, 100])
    assert spread == stats.Spread(0.5, 0.5, 0.6)
    assert stats.ratios([1], []) is None


def test_orders_alternate():
    assert list(stats.orders("ab", 3)) == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_percentile_is_a_value_that_occurred():
    values = list(range(1, 101))
    assert (stats.percentile(values, 0.99), stats.percentile(values, 0.5), stats.percentile([7], 0.99)) == (99, 50, 7)


def test_given_a_pause_in_the_log_of_fio_then_it_counts_as_nothing_written():
    samples = fio.series("500, 100, 1, 4096, 0\n1000, 100, 1, 4096, 0\n2000, 100, 1, 4096, 0\n")
    assert fio.throughput(samples, 0, 1000) == 100
    assert fio.throughput(samples, 0, 2000) == 75
    # An interval counts with the part that lies inside.
    assert fio.throughput(samples, 250, 750) == 100
    assert min(fio.by_second(samples, 0, 2000)) == 50


def _bench():
    bench = run.Bench(run.QUICK, lambda text: None)
    bench.versions = {"kernel": "k", "accelerator": "tcg"}
    for target, iops in (("raw", 1000.0), ("mars", 500.0), ("drbd-a", 100.0)):
        for job in run.QUICK.jobs:
            bench.samples[target, job] = [fio.Sample(iops * n, iops / 256, 40000.0, 9.0, 1.0) for n in (1, 2, 3)]
            bench.settles[target, job] = [0.5, 0.6, 0.7]
    bench.floors = [1000.0, 1300.0]
    return bench


def test_given_a_run_then_the_document_has_what_machines_expect():
    document = json.loads(json.dumps(_bench().results()))
    row = next(r for r in document["results"] if (r["target"], r["job"]) == ("mars", "randwrite-4k-qd16"))
    for field in ("iops", "mib_s", "p50_us", "p99_us"):
        assert set(row[field]) == {"median", "min", "max"}
    assert row["iops"] == {"median": 1000, "min": 500, "max": 1500}
    assert {r["target"] for r in document["results"]} == {"raw", "mars", "drbd-a"}


def test_given_a_run_then_each_claim_is_judged_or_said_not_to_be_measured():
    bench = _bench()
    found = {(c.claim, c.threshold): c for c in checks.checks(bench.results())}
    assert found["randwrite-4k-qd16: MARS / drbd-a", ">= 3"].passed is True
    assert found["randwrite-4k-qd16: MARS / raw", ">= 0.35"].value == "0.50"
    assert found["randread-4k-qd16: MARS / raw", ">= 0.9"].passed is False
    assert found["randread-4k-qd1: MARS / raw", ">= 0.9"].passed is None
    text = report.render(bench.results(), list(found.values()))
    assert "PASS  randwrite-4k-qd16: MARS / drbd-a: 5.00" in text
    assert "was not quiet" in text and "delayed acknowledgements" in text


def test_given_options_then_they_change_the_plan_and_nonsense_is_refused():
    plan = cli.plan(cli.parser().parse_args(["--quick", "--targets", "raw,mars", "--seconds", "2", "--cut-seconds", "0"]))
    assert (plan.mode, plan.targets, plan.seconds, plan.cut_half) == ("quick", ("raw", "mars"), 2, 0)
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["--targets", "zfs"])
    alone = cli.plan(cli.parser().parse_args(["--quick", "--only-recovery", "--recovery-disk", "0"]))
    assert (alone.targets, alone.recovery_mib, alone.recovery_disk_mib_s) == ((), 1024, 0)
    assert cli.plan(cli.parser().parse_args(["--quick"])).recovery_mib == 0
    assert cli.plan(cli.parser().parse_args(["--recovery-mib", "0"])).recovery_mib == 0


def _recovery(case, log_mib, *ratios):
    return [recovery.Recovery(case, log_mib, 5.0, 6.0, 100.0, 100.0 * r, r) for r in ratios]


def test_given_recoveries_then_the_median_is_judged_and_a_short_tail_is_not():
    bench = _bench()
    bench.recoveries = _recovery("sequential", 1025.0, 0.4, 0.6, 0.7) + _recovery("random", 64.0, 0.9)
    results = bench.results()
    found = {c.claim: c for c in checks.checks(results) if c.claim.startswith("recovery")}
    sequential, random = (next(c for claim, c in found.items() if case in claim) for case in ("sequential", "random"))
    assert (sequential.passed, sequential.value, random.passed) == (True, "0.60", None)
    assert "0.60 (0.40-0.70)" in report.render(results, list(found.values()))
    bench.recoveries = _recovery("sequential", 1025.0, 0.4, 0.45, 0.7)
    assert checks.checks(bench.results())[-2].passed is False
