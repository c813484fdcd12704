# SPDX-License-Identifier: Apache-2.0
"""What the data plane does just now, for people and programs that watch: counters, flows, transitions."""
