# SPDX-License-Identifier: Apache-2.0
"""The data plane as user space sees it: layout and rows of its maps, features of its program, rings. No kernel."""
