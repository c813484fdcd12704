# SPDX-License-Identifier: Apache-2.0
YOUNG = tests/agent tests/test_clock.py $(addprefix tests/health/test_,monitor.py row.py schedule.py state.py)

.PHONY: help setup demo test test-young test-vm test-deb test-image test-systemd check deb fuzz soak bench clean

help:           ## show this
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup:          ## install what is missing: Debian packages and .venv
	@tools/setup

demo: setup     ## a balancer, a client and four servers in namespaces: see it reconcile a real edit
	@.venv/bin/python -m reconciler.lab.demo examples/configs/nat-tcp

test: setup     ## what this machine can test: needs root, leaves nothing behind
	@tools/setup-browser
	@# More workers than CPUs: many tests wait for the kernel, or for packets.
	@.venv/bin/pytest --numprocesses $$((2 * $$(nproc))) --dist loadfile --no-loadscope-reorder

test-young: setup ## what waits and remembers times, as if this machine had booted a minute ago
	@# Programs in the kernel don't see the namespace; their clock is young in the virtual machine.
	@past=$$(awk '$$1 > 60 {print int($$1) - 60}' /proc/uptime); \
	unshare --time $${past:+--monotonic -$$past --boottime -$$past} .venv/bin/pytest -m "not kernel" $(YOUNG)

test-vm: setup  ## what needs Debian's own kernel, in a virtual machine that boots it: a few minutes
	@tools/setup-vm
	@.venv/bin/python -m tests.vm

check: setup    ## types, style, the examples, and that all tests can be read
	@.venv/bin/ruff check
	@.venv/bin/mypy
	@found=$$(.venv/bin/pytest -qq --collect-only tests) || { echo "$$found"; exit 1; }
	@for example in examples/configs/*/; do ./lbctl validate "$$example" || exit 1; done

deb: setup      ## a Debian package in dist/, for Debian 12; DEBIAN=13 for that
	@.venv/bin/python tools/deb.py --debian $(or $(DEBIAN),12)

test-deb: deb   ## install that package in a bare Debian 12 below /tmp, and steer packets with it
	@command -v mmdebstrap > /dev/null || apt-get install -y -q --no-install-recommends mmdebstrap
	@.venv/bin/python -m tests.deb dist/lbctl_*~deb$(or $(DEBIAN),12)_*.deb

test-image: deb ## build the container image by its recipe, without a registry, and apply with it
	@for tool in mmdebstrap buildah; do command -v $$tool > /dev/null || \
		apt-get install -y -q --no-install-recommends $$tool; done
	@.venv/bin/python -m tests.deb.image

test-systemd: deb ## the same under real systemd: restrictions, hangs, upgrades, fetching; VM=--vm on Debian's kernel
	@[ -z "$(VM)" ] || tools/setup-vm
	@command -v mmdebstrap > /dev/null || apt-get install -y -q --no-install-recommends mmdebstrap
	@.venv/bin/python -m tests.systemd $(VM) dist/lbctl_*~deb12_*.deb

fuzz: setup     ## the fuzz targets of the tests, for much longer, and every fault of the system
	@LBCTL_EVERY_FAULT=1 .venv/bin/pytest tests/fuzz tests/faults --hypothesis-profile=long

soak: setup     ## ten minutes of edits, deaths, drains, damage and restarts under load: what may fail, and what may grow
	@.venv/bin/python -m tests.soak

bench: setup    ## what takes how long, as ratios to a named baseline
	@.venv/bin/python -m tests.bench

clean:          ## remove what setup, tests and builds made in this directory
	@rm -rf .venv .vm build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +
