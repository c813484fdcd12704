# SPDX-License-Identifier: Apache-2.0
"""What the data plane of this node would do with a packet, and why."""
