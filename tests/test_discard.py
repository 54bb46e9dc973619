# SPDX-License-Identifier: GPL-2.0-or-later
"""Discards and writes of zeros: offered, logged, replicated; afterwards all disks hold the same, whatever each of them can."""

import dataclasses

import pytest

import marscluster
from marscase import DEVICE
from marscase import MOUNT
from marscase import cluster_of_two
from marscase import create
from marscase import equal
from marscase import full
from marscase import mount
from marscase import refused
from marscase import settled
from marscase import sums
from marscase import umount
from marscase import write_files
from marsvm import HostSpec
from marsvm import default_disks

MIB = 1 << 20


def spec(discard: bool) -> HostSpec:
    mars, data = default_disks(mars=1 << 30, data=512 * MIB)
    return HostSpec(disks=(mars, dataclasses.replace(data, discard=discard)))


def queue(host, name: str) -> int:
    return int(host.run(f"cat '/sys/block/mars!data/queue/{name}'").out)


def served(host) -> int:
    """Bytes that went to peers."""
    words = host.run("cat /proc/sys/mars/info").out.split()
    return int(words[words.index("served_bytes") + 1])


def allocated(host) -> int:
    """Bytes that the disk's file really takes."""
    host.run("sync")
    return host.disk("data").path.stat().st_blocks * 512


def exercise(host) -> None:
    """Discards and zeros of many shapes, amid data, while other writes go on."""
    host.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=64 oflag=direct status=none", timeout=90)
    host.run(
        f"for i in $(seq 0 19); do "
        f"blkdiscard -f -o $((i * 3 * 4096)) -l $(((i % 5 + 1) * 4096)) {DEVICE} || exit; "
        f"blkdiscard -f -o $((8388608 + i * 5 * 512)) -l $(((i % 7 + 1) * 512)) {DEVICE} || exit; "
        f"blkdiscard -f -z -o $((16777216 + i * 11 * 512)) -l $(((i % 9 + 1) * 512)) {DEVICE} || exit; done",
        timeout=60,
    )
    # What is read is zero at once, long before it is on the disk.
    host.run(
        f"blkdiscard -f -o {20 * MIB} -l {8 * MIB} {DEVICE} && "
        f"cmp -n {8 * MIB} -i {20 * MIB}:0 {DEVICE} /dev/zero && "
        # Half a block of data in the middle, written right behind.
        f"echo something | dd of={DEVICE} bs=512 seek={24 * MIB // 512} conv=sync,notrunc oflag=direct status=none && "
        f"blkdiscard -f -z -o {25 * MIB} -l {MIB} {DEVICE} && "
        f"dd if={DEVICE} bs=512 skip={24 * MIB // 512} count=1 iflag=direct status=none | grep -q something && "
        f"cmp -n {4 * MIB - 512} -i {24 * MIB + 512}:0 {DEVICE} /dev/zero",
    )


@pytest.mark.parametrize("able", [pytest.param("both", marks=full), pytest.param("secondary", marks=full), "primary"])
def test_p1_replicas_are_equal_whatever_their_disks_can(mars_hosts, able):
    first, second = spec(able in ("both", "primary")), spec(able in ("both", "secondary"))
    a, b = mars_hosts(2, spec=(first, second))
    cluster_of_two((a, b))
    assert queue(a, "write_zeroes_max_bytes") > 0
    if able == "secondary":
        assert queue(a, "discard_max_bytes") == 0
        refused(a, f"blkdiscard -f {DEVICE}", "not supported")
        # By zeros, which all disks can.
        a.run(f"blkdiscard -f -z {DEVICE}")
    else:
        assert queue(a, "discard_max_bytes") > 0
        exercise(a)
    refused(a, f"blkdiscard -f -s {DEVICE}", "not supported")
    settled(b, marscluster.durable_end(a))

    a.run(f"mkfs.ext4 -q -F -E discard,lazy_itable_init=0,lazy_journal_init=0 {DEVICE}", timeout=60)
    mount(a)
    write_files(a, "kept", 20)
    write_files(a, "gone", 20, kib=400)
    # Within a file, by way of a loop device with a file system of its own.
    a.run(
        f"modprobe loop && fallocate -l 64M {MOUNT}/image && l=$(losetup -f --show {MOUNT}/image) && mkfs.ext4 -q $l && mkdir -p /mnt2 && "
        "mount -o discard $l /mnt2 && head -c 20M /dev/urandom > /mnt2/f && sync && fallocate -p -o 1M -l 3M /mnt2/f && "
        "rm /mnt2/f && head -c 3M /dev/urandom > /mnt2/g && sync && fstrim /mnt2 && umount /mnt2 && losetup -d $l",
        timeout=60,
    )
    a.run(
        f"head -c 9M /dev/urandom > {MOUNT}/kept/holes && sync && fallocate -p -o 1M -l 1M {MOUNT}/kept/holes && "
        f"fallocate -z -o 4M -l 777k {MOUNT}/kept/holes && rm -r {MOUNT}/gone && sync",
    )
    settled(b, marscluster.durable_end(a))
    before = served(a)
    trimmed = a.run(f"fstrim -v {MOUNT}", check=able != "secondary", timeout=60)
    if able == "secondary":
        assert not trimmed.ok and "not supported" in trimmed.stderr
    else:
        settled(b, marscluster.durable_end(a))
        assert served(a) - before < MIB, "discards do not travel as zeros"
    expected = sums(a)
    umount(a)
    marscluster.wait_synced([a, b])
    b.run("marsadm primary data --timeout 60", timeout=70)
    mount(b)
    assert sums(b) == expected
    umount(b)
    b.run(f"e2fsck -fn {DEVICE}", timeout=60)
    marscluster.wait_synced([a, b])
    equal([a, b])


@full
def test_discarded_space_is_given_back(mars_hosts):
    a, b = mars_hosts(2, spec=spec(True))
    cluster_of_two((a, b))
    a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=100 oflag=direct status=none", timeout=90)
    marscluster.wait_synced([a, b])
    full = [allocated(h) for h in (a, b)]
    assert min(full) > 90 * MIB
    a.run(f"blkdiscard -f {DEVICE}")
    marscluster.wait_synced([a, b])
    marscluster.down([a, b])
    for host, before in zip((a, b), full, strict=True):
        assert allocated(host) < before - 80 * MIB, host.name
    assert not marscluster.differences([a, b])


def test_a_huge_discard_is_complete_at_once_and_survives_a_crash(mars_hosts):
    """More than one record can say, and more than a disk does in a moment; with writes before and behind."""
    disks = default_disks(mars=1 << 30, data=40 << 30)
    (a,) = mars_hosts(1, disks=disks)
    marscluster.setup_cluster([a])
    create(a, "40G")
    places = [0, 5 << 30, 11 << 30, 39 << 30]
    for at in places:
        a.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=4 seek={at // MIB} oflag=direct status=none")
    a.run(f"blkdiscard -f {DEVICE}", timeout=60)
    a.run(f"echo behind | dd of={DEVICE} bs=512 seek={(5 << 30) // 512} conv=sync,notrunc oflag=direct,dsync status=none")
    a.power_cut()
    a.boot()
    a.mount_mars()
    a.run("modprobe mars", timeout=30)
    marscluster.wait_device(a)
    assert a.run(f"dd if={DEVICE} bs=512 count=1 skip={(5 << 30) // 512} status=none | tr -d '\\0'").out == "behind"
    for at in places:
        skip = 512 if at == 5 << 30 else 0
        a.run(f"cmp -n {4 * MIB - skip} -i {at + skip}:0 {DEVICE} /dev/zero")
