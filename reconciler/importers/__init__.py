# SPDX-License-Identifier: Apache-2.0
"""Turn the configuration of other tools into manifests: one module a format, each with a pure
`parse(text) -> Imported`.

A format's module turns text into drafts (`draft`), which know the line that they came from. The steps that all formats
share are in `assemble`: names, pools, ports, and leaving out parts that no manifest can express. Every part that is
dropped gets a notice that says what was done instead, and an error in one item costs only that item
(`Notices.leaving_out`). `fold` shortens the notices for people, `emit` writes the result as YAML.
"""

from __future__ import annotations

FORMATS = {
    "loxilb": "`loxicmd save` (lbconfig.txt, EPconfig.txt), JSON and YAML of LoxiLB, or commands of loxicmd",
    "ipvsadm": "what `ipvsadm-save -n` or `ipvsadm -L -n` prints, or commands of ipvsadm",
    "keepalived": "keepalived.conf, with what it includes from its directory and below",
    "katran": "command lines of Katran's example client, or what its -l prints",
    "sbulb": "command line and file of real servers of sbulb",
}
"""The formats that are text, in the order of the help; `live` is read from a node instead."""
