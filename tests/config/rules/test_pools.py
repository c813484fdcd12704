# SPDX-License-Identifier: Apache-2.0
from tests.config.rules.parts import web

MANY_ENDPOINTS = ", ".join(f"{{address: 10.2.0.{i}}}" for i in range(1, 66))
TWO_ENDPOINTS = "{{address: 10.2.0.11, {}}}, {{address: 10.2.0.12, {}}}"

CASES = {
    "pool-empty": (
        web(endpoints=""),
        web(),
    ),
    "zero-total-weight": (
        web(endpoints=TWO_ENDPOINTS.format("weight: 0", "state: draining")),
        web(endpoints=TWO_ENDPOINTS.format("weight: 0", "weight: 1")),
    ),
    "ring-too-small": (
        web(endpoints=MANY_ENDPOINTS).replace("]}\n", "], ringSize: 64}\n"),
        web(endpoints=MANY_ENDPOINTS).replace("]}\n", "], ringSize: 65}\n"),
    ),
    "weight-below-a-slot": (
        web("dsr-l2", endpoints=TWO_ENDPOINTS.format("weight: 64", "weight: 1")).replace("]}\n", "], ringSize: 64}\n"),
        web("dsr-l2", endpoints=TWO_ENDPOINTS.format("weight: 63", "weight: 1")).replace("]}\n", "], ringSize: 64}\n"),
    ),
    "duplicate-endpoint": (
        web(endpoints="{address: 10.2.0.11, port: 80}, {address: 10.2.0.11, port: 80, weight: 2}"),
        web(endpoints="{address: 10.2.0.11, port: 80}, {address: 10.2.0.11, port: 81}"),
    ),
}
