# SPDX-License-Identifier: Apache-2.0
"""lbctl: GitOps for a layer-4 load balancer in the Linux kernel."""
