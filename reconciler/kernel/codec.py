# SPDX-License-Identifier: Apache-2.0
"""Changes of links, addresses, neighbours, proxies and routes of routers, and the kernel's notices, as pyroute2 puts
them together and takes them apart.

Its message classes do that; sockets, batches and acknowledgements are `netlink`'s. The library's own connection
(IPRoute) sends one change at a time, on an event loop of its own, and takes 0.15 ms for each.

Without the library goes what may be ten thousand objects, whole tables and the routes to VIPs (`vip_routes`), and what
each plan asks the kernel for. Next hops (`hop_groups`) are missing in it.

Messages are classes of pyroute2.netlink.rtnl, and attributes have the names of include/uapi/linux.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from typing import Any

from reconciler.errors import KernelError
from reconciler.kernel import netlink
from reconciler.kernel.netlink import Message
from reconciler.kernel.rtnetlink import (
    FAMILIES,
    RT_SCOPE_UNIVERSE,
    RTA_NH_ID,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELLINKPROP,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWLINKPROP,
    RTM_NEWNEIGH,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWTFILTER,
    RTM_SETLINK,
)

Attribute = tuple[str, object]

_LIBRARY = "pyroute2"
_WAY_OUT = f"python3 -m pip install '{_LIBRARY}>=0.9.7'"
_CLASSES = {
    "ifinfmsg": (RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK, RTM_NEWLINKPROP, RTM_DELLINKPROP),
    "ifaddrmsg": (RTM_NEWADDR, RTM_DELADDR),
    "ndmsg": (RTM_NEWNEIGH, RTM_DELNEIGH),
    "rtmsg": (RTM_NEWROUTE, RTM_DELROUTE),
    "tcmsg": (RTM_NEWQDISC, RTM_NEWTFILTER),
}
"""Names of modules, which are those of their classes, and the messages that they are for."""
_NAMES = {type_: name for name, types in _CLASSES.items() for type_ in types}
_importing = threading.Lock()


def message(type_: int, flags: int, fields: Mapping[str, int], *attributes: Attribute) -> Message:
    """A request with these fields and attributes; other fields are 0. KernelError if the library doesn't know
    one of these attributes, which it would leave out without a word."""
    made = class_of(type_)()
    made.update(fields)
    made["attrs"] = list(attributes)
    made.encode()
    if unknown := next(_left_out(made), ""):
        raise KernelError(f"this version of {_LIBRARY} knows no {unknown}", hint=_WAY_OUT)
    return Message(type_, flags, bytes(made.data[netlink.HEADER.size :]))


def decoded(type_: int, whole: bytes) -> Any:
    """A message of the kernel with its header: fields by `[…]`, attributes by `get_attr(…)`."""
    found = class_of(type_)(whole)
    found.decode()
    return found


@functools.cache
def class_of(type_: int) -> Any:
    """The library's class for a type of message. KernelError if it can't be imported, which descriptors that are all
    in use are enough for; the next call tries again."""
    name = _NAMES[type_]
    try:
        with _importing, _without_the_rest():
            found = getattr(importlib.import_module(f"{_LIBRARY}.netlink.rtnl.{name}"), name)
    except (ImportError, OSError) as error:
        raise KernelError(f"can't import {_LIBRARY}: {error}", hint=_WAY_OUT) from error
    if name != "rtmsg":
        return found
    known = ((number, *what) for number, what in enumerate(found.nla_map))
    # Not a class below it: that would take its table of attributes for its own.
    return type(name, found.__bases__, {"nla_map": (*known, (RTA_NH_ID, "RTA_NH_ID", "uint32"))})


def link(type_: int, interface: str | int, *attributes: Attribute, flags: int = 0, state: int = 0) -> Message:
    """A request about an interface, by its name or its number. `state`: what it gets of IFF_…; the rest stays."""
    number, named = (0, (_named(interface),)) if isinstance(interface, str) else (interface, ())
    return message(type_, flags, {"index": number, "flags": state, "change": state}, *named, *attributes)


def kind(form: str, *settings: Attribute) -> Attribute:
    """The attribute of a link that says of which form it is."""
    inner: list[Attribute] = [("IFLA_INFO_KIND", form)]
    return "IFLA_LINKINFO", {"attrs": [*inner, ("IFLA_INFO_DATA", {"attrs": list(settings)})]}


def far_end(name: str, *attributes: Attribute) -> Attribute:
    """The setting of a veth that says what its other end is like."""
    return "VETH_INFO_PEER", {"attrs": [_named(name), *attributes]}


def address(
    type_: int, text: str, index: int, *attributes: Attribute, flags: int = 0, scope: int = RT_SCOPE_UNIVERSE,
    settings: int = 0,
) -> Message:  # fmt: skip
    """A request about an address of an interface, which may have the length of its network. `settings`: IFA_F_…"""
    own = ip_interface(text)
    fields = {"family": FAMILIES[own.version], "prefixlen": own.network.prefixlen, "flags": settings, "scope": scope}
    both: list[Attribute] = [("IFA_LOCAL", str(own.ip)), ("IFA_ADDRESS", str(own.ip))]
    return message(type_, flags, fields | {"index": index}, *both, *attributes)


def route(type_: int, to: str, fields: Mapping[str, int], *attributes: Attribute, flags: int = 0) -> Message:
    """A request about the route to a network, with these fields of its own: table, proto, scope, type."""
    network = ip_network(to)
    fields = {"family": FAMILIES[network.version], "dst_len": network.prefixlen, **fields}
    return message(type_, flags, fields, ("RTA_DST", str(network.network_address)), *attributes)


def text(value: str | bytes) -> str:
    """A text as the library has read it: bytes if it is no UTF-8."""
    return value if isinstance(value, str) else netlink.text(value)


def _named(name: str) -> Attribute:
    return "IFLA_IFNAME", netlink.content(name)[:-1]  # the library adds the zero


def _left_out(made: Any) -> Iterator[str]:
    """The names of the attributes that are not in the bytes: those that are there have become objects."""
    for part in made["attrs"]:
        if isinstance(part, (tuple, list)):
            yield str(part[0])
        elif isinstance(inner := part.cell[1], dict) and inner.get("attrs"):
            yield from _left_out(inner)


@contextmanager
def _without_the_rest() -> Iterator[None]:
    """Within this, modules of the library are imported without the package's own code, which imports all others: that
    takes 80 ms and 11 MB, the messages 7 ms and 0.6 MB. Whoever imports the package later gets it as it is."""
    spec = None if _LIBRARY in sys.modules else importlib.util.find_spec(_LIBRARY)
    if spec is None:
        yield
        return
    sys.modules[_LIBRARY] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[_LIBRARY]
