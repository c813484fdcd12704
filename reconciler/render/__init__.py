# SPDX-License-Identifier: Apache-2.0
"""Plans and tables, for people, machines and reviewers."""
