# SPDX-License-Identifier: Apache-2.0
"""Two fleets compared: what people changed, what each node would do, what becomes of traffic."""
