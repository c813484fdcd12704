# SPDX-License-Identifier: Apache-2.0
from tests.agent.conftest import fixed_source, manifests

__all__ = ["fixed_source", "manifests"]
