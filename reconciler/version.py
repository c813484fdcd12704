# SPDX-License-Identifier: Apache-2.0
"""The version of lbctl. The package is built with it, and the agent tells it."""

VERSION = "0.1.0"
