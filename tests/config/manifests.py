# SPDX-License-Identifier: Apache-2.0
"""Manifests as text, one line each: what a test is not about stays out of its sight."""


def service(name="web", *, vip="20.20.20.1", ports="[80]", pool="web", more=""):
    spec = f"vip: {vip}, ports: {ports}, pool: {pool}{more and ', ' + more}"
    return f"---\napiVersion: lbctl/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def pool(name="web", *, endpoints="{address: 10.2.0.11}", more=""):
    spec = f"endpoints: [{endpoints}]{more and ', ' + more}"
    return f"---\napiVersion: lbctl/v1\nkind: Pool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def node(name="lb1", *, interfaces="{name: front, addresses: [10.1.0.1/24]}", more=""):
    spec = f"interfaces: [{interfaces}]{more and ', ' + more}"
    return f"---\napiVersion: lbctl/v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
