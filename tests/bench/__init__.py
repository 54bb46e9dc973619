# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark behind `make bench`: the raw disk, MARS and DRBD side by side. See Documentation/benchmarks.md."""
