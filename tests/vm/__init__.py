# SPDX-License-Identifier: Apache-2.0
"""What needs Debian's own kernel: ipip, ip6tnl, sctp, vlan. `make test-vm` boots it and runs these tests there."""
