# SPDX-License-Identifier: Apache-2.0
"""Text to model: reads a directory of manifests, checks it, and reports all problems at once."""
