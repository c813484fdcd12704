# SPDX-License-Identifier: Apache-2.0
"""The daemon behind `lbctl run`: it keeps a node in the state that the manifests ask for."""
