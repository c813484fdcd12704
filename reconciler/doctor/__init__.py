# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a node as it is: what differs from the manifests, and what the network around it does.

`finding` is what a person is told, `state` tells of the node itself by the plan that would mend it, `ways` of the
ways to endpoints, gateways and clients, `router` of a node of role router.
"""
