# SPDX-License-Identifier: Apache-2.0
"""A lab in network namespaces, built from the balancer's own manifests: demo and tests run in it."""

from reconciler.errors import LbctlError


class LabError(LbctlError):
    """The lab can't be built from these manifests, or something in it does not work."""
