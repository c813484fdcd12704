# SPDX-License-Identifier: Apache-2.0
"""The wish: manifests, health of endpoints and drains together give one state that a node is to hold.

Every verb asks this room, so a plan beside an agent sees what the agent sees, and nobody brings back an endpoint that
is dead. `drains` are the endpoints that people took out for a while, `known` is all that is not in git, `judged` says
what a pool is to be, and why, `wish` does that for a whole node, and does nothing twice.
"""
