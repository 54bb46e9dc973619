# SPDX-License-Identifier: GPL-2.0-or-later
#
# "make help" lists the targets. On the host, each target first completes the
# build environment (scripts/buildenv) and then runs inside it
# (scripts/in-env); nothing but root and a network is needed.

.DEFAULT_GOAL := all
.SUFFIXES:

GOALS := all module inject selftest userspace man check lint fmt clippy test-cargo test-fuzz test-sim simulate simulate-defects test-vm check-debug torture demo bench rust-analyzer
.PHONY: $(GOALS) clean help

help:
	@echo 'Targets:'
	@echo '  all            module and userspace (default)'
	@echo '  module         the kernel module build/module/mars.ko'
	@echo '  inject         the same with the fault injector, for tests only: build/inject/mars.ko'
	@echo '                 (also: make module INJECT=1)'
	@echo '  selftest       the module build/selftest/mars_selftest.ko, for tests only'
	@echo '  userspace      the programs in build/cargo/release/'
	@echo '  man            manual pages in build/man/, shell completions beside them'
	@echo '  check          everything that is tested: lint, test-cargo, test-fuzz, test-sim, test-vm'
	@echo '  lint           format, clippy, layer rules, stack depth, licences, ...'
	@echo '  fmt            formats all Rust files'
	@echo '  test-cargo     tests of the core and the tools, without a kernel'
	@echo '  test-fuzz      fuzzers of all parsers of disk and network bytes, a short run: FUZZ_SECONDS=number'
	@echo '  test-sim       the fixed set of runs of the cluster simulator'
	@echo '  simulate       runs of the simulator: SEEDS=number, FIRST=seed'
	@echo '  simulate-defects  that the simulator finds each of a list of bugs'
	@echo '  test-vm        tests that boot kernels in virtual machines; FULL=1: of the system layer, too'
	@echo '  check-debug    the tests of test-vm FULL=1 on a kernel with KASAN, lockdep, kmemleak ...: hours'
	@echo '  torture        the same losses of power and crashes as in test-vm, but thousands, and at all points: many hours'
	@echo '  demo           a small cluster in virtual machines, step by step'
	@echo '  bench          measurements'
	@echo '  rust-analyzer  rust-project.json for editors'
	@echo '  clean          removes build/ (not the build environment)'
	@echo
	@echo 'Settings:'
	@echo '  MARS_CACHE=DIR where the build environment is (default ~/.cache/mars)'
	@echo '  MARS_LANE=debug  module, selftest and test-vm with the kernel of check-debug, into build/debug/'
	@echo '  V=1            show the commands of the module build'
	@echo '  ARGS=...       further arguments for pytest, demo and bench'
	@echo '  VM_JOBS=N      so many tests with machines run at a time (default 2; 0: one, and its output is seen)'

clean:
	rm -rf build rust-project.json

ifneq ($(MARS_IN_ENV),1)

$(GOALS):
	+@scripts/buildenv && exec scripts/in-env make --no-print-directory $@

else

jobs := $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

# What belongs to one kernel: scripts/in-env sets MARS_KERNEL_LANE.
build := build$(if $(MARS_KERNEL_LANE),/$(MARS_KERNEL_LANE))

# $(call kbuild,folder for the results[,variables])
kbuild = $(MAKE) --no-print-directory $(jobs) -C $(MARS_KDIR) CC=$(MARS_KCC) $(if $(MARS_KLD),LD=$(MARS_KLD)) \
	M=$(CURDIR) MO=$(CURDIR)/$(build)/$(1) $(2)

all: module userspace

# Two folders, so that the product and the module with the fault injector lie side by side.
module: $(if $(INJECT),inject)
	+@$(if $(INJECT),:,mkdir -p $(build)/module)
	+@$(if $(INJECT),:,$(call kbuild,module,modules))

inject:
	+@mkdir -p $(build)/inject
	+@$(call kbuild,inject,MARS_INJECT=1 modules)

# For make lint: each warning is an error, and the results of the build proper
# stay as they are.
clippy:
	+@mkdir -p $(build)/clippy $(build)/clippy-inject
	+@$(call kbuild,clippy,CLIPPY=1 KRUSTFLAGS=-Dwarnings KCFLAGS=-Werror modules)
	+@$(call kbuild,clippy-inject,MARS_INJECT=1 CLIPPY=1 KRUSTFLAGS=-Dwarnings KCFLAGS=-Werror modules)

selftest:
	+@mkdir -p $(build)/selftest
	+@$(call kbuild,selftest,MARS_SELFTEST=1 modules)

userspace:
	+@if [ -e userspace/Cargo.toml ]; then \
		cargo build --release --manifest-path userspace/Cargo.toml; \
	fi

man: userspace
	@build/cargo/release/marsadm --generate-man build/man
	@for shell in bash fish zsh; do \
		build/cargo/release/marsadm --generate-completion $$shell > build/man/marsadm.$$shell; \
	done

check:
	@exec scripts/check

lint:
	@exec scripts/lint/run

fmt:
	@exec scripts/lint/rustfmt --write

test-cargo:
	+@if [ -e userspace/Cargo.toml ]; then \
		cargo test --workspace --no-fail-fast --manifest-path userspace/Cargo.toml; \
	fi

# Each parser for so long. What they find is in build/fuzz/.
FUZZ_SECONDS ?= 5
test-fuzz:
	+@MARS_FUZZ_JOBS=$(shell nproc) exec userspace/fuzz/run $(FUZZ_SECONDS)

# The same runs each time, so that a failure is one of the change.
SIM_SET := 3000
SEEDS ?= 100000
FIRST ?= 1000000
sim = build/cargo/release/mars-sim

$(sim):
	+@cargo build --release --manifest-path userspace/Cargo.toml -p mars-sim
.PHONY: $(sim)

test-sim: $(sim)
	@$(sim) seeds 1 $(SIM_SET)

simulate: $(sim)
	@$(sim) seeds $(FIRST) $(SEEDS)

# Into a folder of its own: nothing else may be built with bugs.
simulate-defects:
	+@cargo build --release --manifest-path userspace/Cargo.toml -p mars-sim --features defects \
		--target-dir build/cargo-defects
	@build/cargo-defects/release/mars-sim defects

# The tests of the system layer take as long as all others together: FULL=1 runs them, too.
# Machines mostly wait, so two tests run at a time; who measures one, or looks at it with -s, wants VM_JOBS=0.
VM_JOBS ?= 2
jobs_of_vm = -n $(VM_JOBS) --dist worksteal
test-vm: module inject $(if $(FULL),selftest) userspace
	@exec python3 -m pytest tests $(if $(FULL),,--ignore=tests/test_sys.py --ignore=tests/test_sys_block.py) $(jobs_of_vm) $(ARGS)

# Whoever has found something runs single tests: make check-debug ARGS="tests/test_reload.py -x"
ifeq ($(MARS_KERNEL_LANE),debug)
check-debug: module inject selftest userspace
	@FULL=1 exec python3 -m pytest $(if $(filter tests/%,$(ARGS)),,tests) $(jobs_of_vm) $(ARGS)
else
check-debug:
	+@scripts/debug-kernel && MARS_LANE=debug exec scripts/in-env make --no-print-directory $@
endif

# Each can be set: make torture MARS_STATES=300
MARS_STATES ?= 5000
MARS_CRASHES ?= 100
MARS_REPEAT ?= 10
MARS_POINTS ?= all
# Seconds.
MARS_OVERLOAD ?= 3600
torture: module inject userspace
	@MARS_POINTS=$(MARS_POINTS) MARS_STATES=$(MARS_STATES) MARS_CRASHES=$(MARS_CRASHES) MARS_REPEAT=$(MARS_REPEAT) MARS_OVERLOAD=$(MARS_OVERLOAD) \
		exec python3 -m pytest -rA \
		tests/test_power_loss.py tests/test_crash_primary.py tests/test_crash_secondary.py tests/test_crash_points.py \
		tests/test_reload.py tests/test_memory.py $(ARGS)

demo: module userspace
	@exec scripts/demo $(ARGS)

bench: module userspace
	@exec scripts/bench $(ARGS)

rust-analyzer: module
	@exec scripts/rust-project rust-project.json

endif
