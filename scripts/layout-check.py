#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a module that compiles only if Rust and the kernel agree on sizes.

The Rust metadata are rebuilt from source (scripts/buildenv). A structure
that came out differently than in the running kernel would corrupt memory,
so the size of each one is compared with the kernel's own type information.

usage: pahole --sizes HEADERS/vmlinux >SIZES
       layout-check.py SIZES OBJTREE/rust/bindings/bindings_generated.rs >layout.rs
"""

import re
import sys

# bindgen drops the alignment of compat_u64, so some of these differ from C.
SKIPPED_PREFIX = "compat_"

# Fewer would mean that one of the inputs is not what it should be.
EXPECTED_AT_LEAST = 1000

HEADER = """\
//! Written by scripts/layout-check.py.
use kernel::{bindings as b, prelude::*};

module! {
    type: Layout,
    name: "layout",
    authors: ["the MARS in Rust developers"],
    description: "compares structure sizes",
    license: "GPL",
}

struct Layout;

impl kernel::Module for Layout {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Layout)
    }
}
"""


def read_sizes(path):
    """Return the sizes that the kernel has for each name (usually one)."""
    sizes = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            fields = line.split("\t")
            if len(fields) >= 2:
                sizes.setdefault(fields[0], set()).add(int(fields[1]))
    return sizes


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sizes = read_sizes(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as file:
        bindings = file.read()

    checks = []
    for name, first in re.findall(r"\npub (?:struct|union) (\w+) \{\n(.*?)\n", bindings):
        known = sizes.get(name, set())
        if name.startswith(SKIPPED_PREFIX) or "__bindgen" in name or len(known) != 1:
            continue
        if "_unused: [u8; 0]" in first or "_address: u8" in first:
            continue  # opaque in Rust
        (size,) = known
        checks.append(f'const _: () = assert!(size_of::<b::{name}>() == {size}, "{name}");')

    if len(checks) < EXPECTED_AT_LEAST:
        sys.exit(f"layout-check: only {len(checks)} structures to compare, something is wrong")
    print(HEADER)
    print("\n".join(checks))


if __name__ == "__main__":
    main()
