# SPDX-License-Identifier: Apache-2.0
"""Run in the bare system, by its Python: compile the data plane with each set of features that is named, by the
system's own compiler, and have the kernel's verifier judge it. What one compiler's code lets the verifier see,
another's may not.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "/usr/lib/lbctl")

from lbctl.dataplane.program import program_name  # type: ignore[import-not-found]
from lbctl.errors import LbctlError  # type: ignore[import-not-found]
from lbctl.kernel.real import RealKernel  # type: ignore[import-not-found]

refused = 0
for features in json.loads(sys.argv[1]):
    kernel = RealKernel("loads", Path(tempfile.gettempdir()) / "loads")
    try:
        kernel.load_program(program_name(features), features)
    except LbctlError as error:
        print(f"{'+'.join(features)}: {error}", flush=True)
        refused += 1
    finally:
        kernel.unload_program()
        kernel.remove_instance()
sys.exit(bool(refused))
