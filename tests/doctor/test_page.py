# SPDX-License-Identifier: Apache-2.0
"""The table in docs/doctor.md is made of the cases that are tested."""

import os
import re
from pathlib import Path

from reconciler.doctor import counters, host, router, state, tables, ways
from reconciler.kinds import KINDS
from reconciler.kinds.base import Kind
from reconciler.kinds.endpoint_row import EndpointRow
from reconciler.kinds.gateway import Gateway
from reconciler.kinds.sysctl import Sysctl
from tests.doctor.cases import CASES, PAGE, rows

_TABLE = re.compile(r"(?:^\|.*\n)+", re.M)


def test_the_table_is_made_of_the_cases():
    text = PAGE.read_text(encoding="utf-8")
    made = _TABLE.sub(lambda _: f"{rows()}\n", text, count=1)
    if os.environ.get("LBCTL_WRITE_EXPECTED"):
        PAGE.write_text(made, encoding="utf-8")
    assert text == made, "LBCTL_WRITE_EXPECTED=1 writes it"


def test_every_finding_that_there_is_is_a_case():
    told = {name for case in CASES for name in case.names}
    written = set()
    for module in (host, router, state, tables, ways):
        source = Path(module.__file__).read_text(encoding="utf-8")
        written |= set(re.findall(r'Finding\(\s*"([a-z-]+)"', source))
    written |= {name for _, name, *_ in counters._SORTS}
    concerned = {kind.resource.kind for kind in KINDS if kind.concerns is not Kind.concerns} - {Sysctl.kind}
    concerned |= {"firewall", EndpointRow.kind, Gateway.kind}  # of settings, and of ways
    written |= {state._CONCERNS.get(kind, (f"{kind}-concern",))[0] for kind in concerned}
    written |= {name for name, _ in (*state._KINDS.values(), *state._OFFLOADS.values(), state._REST)} | {"left-over"}
    assert written <= told
    settings = {state._NAMES.get(name, name.replace("_", "-")) for name in state._SETTINGS}
    assert told - written <= settings
