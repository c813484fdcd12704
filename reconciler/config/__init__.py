# SPDX-License-Identifier: Apache-2.0
"""Text to model: reads a directory of manifests, checks it, and says all that is wrong with it at once."""
