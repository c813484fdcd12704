# SPDX-License-Identifier: Apache-2.0
"""The kernel, real, fake and faulty. The only room that imports bcc; netlink is spoken here as well."""
