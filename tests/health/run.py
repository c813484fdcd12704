# SPDX-License-Identifier: Apache-2.0
"""Run real checks, each to its end."""

import time
from contextlib import closing
from ipaddress import ip_address

from reconciler.health.prober import Prober
from reconciler.health.target import Target
from reconciler.health.way import DIRECT
from reconciler.model import CheckType, HealthCheck

PATIENCE_S = 30.0
LATE_S = 0.2


def target(kind, port, address="127.0.0.1", **more):
    """A target whose check has plenty of time, unless `timeout_s` says otherwise."""
    return Target(ip_address(address), port, HealthCheck(CheckType(kind), **{"timeout_s": 10.0, **more}))


def outcomes(targets, way=DIRECT):
    """What comes of checks that run all at once."""
    with closing(Prober()) as prober:
        for item in targets:
            prober.start(item, way)
        found = []
        end_s = time.monotonic() + PATIENCE_S
        while len(found) < len(targets):
            assert time.monotonic() < end_s, f"{prober.in_flight} checks don't end"
            found += prober.poll(1.0)
        assert prober.in_flight == 0
        assert prober.next_deadline_s is None
    return found


def outcome(kind, port, address="127.0.0.1", way=DIRECT, **more):
    ((_, found),) = outcomes([target(kind, port, address, **more)], way)
    return found


def until(condition):
    """Wait until a thread has done its part."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def said(kind, port, **more):
    """Verdict and words."""
    found = outcome(kind, port, **more)
    return found.verdict.name, found.error
