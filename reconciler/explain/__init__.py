# SPDX-License-Identifier: Apache-2.0
"""Explain what this node's data plane would do with a packet, and why."""
