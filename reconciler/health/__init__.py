# SPDX-License-Identifier: Apache-2.0
"""Checks of endpoints: what is checked, how, when, and what follows from the answers.

`target` says what is checked, `checks/` how, `prober` runs checks, `schedule` says when, `state` what the answers of a
target mean, `suspicion` whether the node itself is the culprit, `pool` who of a pool gets connections. `monitor` puts
them together. Only `prober` and `checks/` do I/O; everybody else gets the time as an argument.
"""
