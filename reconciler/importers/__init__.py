# SPDX-License-Identifier: Apache-2.0
"""What people have becomes manifests: one module a format, each with a pure `parse(text) -> Imported`.

A format's module turns text into drafts (`draft`), which know the line that they came from. What all formats
share happens once, in `assemble`: names, pools, ports, and leaving out what no manifest can say. Nothing is
dropped without a notice that says what was done instead. `emit` writes the result as YAML.
"""

from __future__ import annotations

FORMATS = {
    "loxilb": "JSON of LoxiLB: `loxicmd save` (lbconfig.txt, EPconfig.txt) or its REST interface",
    "ipvsadm": "what `ipvsadm-save -n` prints",
    "keepalived": "the virtual_server blocks of keepalived.conf",
    "katran": "command lines of Katran's example client, or what its -l prints",
    "sbulb": "command line and file of real servers of sbulb",
}
"""The formats that are text, in the order of the help; `live` is read from a node instead."""
