# SPDX-License-Identifier: Apache-2.0
"""Two fleets compared: the edits that people made, the changes on each node, the effects on traffic."""
