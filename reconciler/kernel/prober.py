# SPDX-License-Identifier: Apache-2.0
"""The place that checks through VIPs come from: a network namespace where no VIP is local, with a veth to the node.

On its inner interface a TC program writes the mark of each packet's socket into the frame (bpf/mark.c). The namespace
is a file in the directory of the instance; it is there as long as the file is a mount. Layouts:
include/uapi/linux/if_link.h, pkt_sched.h, pkt_cls.h, ethtool.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from reconciler.dataplane.program import MARK, program_name
from reconciler.errors import ForeignError, KernelError
from reconciler.kernel import bpf, codec, netlink, netns, sysctl
from reconciler.kernel.build import build
from reconciler.kernel.netlink import Message
from reconciler.kernel.objects import PROBER_DEVICE, Prober
from reconciler.kernel.rtnetlink import (
    ADDRESS,
    FILTER,
    IFA_ADDRESS,
    IFA_F_NODAD,
    IFA_LOCAL,
    IFF_NOARP,
    IFF_UP,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    LINK,
    NUMBER,
    ROUTE,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_OIF,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_GETTFILTER,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWTFILTER,
    RTN_UNICAST,
    RTPROT_BOOT,
)

T = TypeVar("T")

FILE = "prober"
"""The namespace, in the instance's directory."""
INNER = "checks"
MAC = bytes.fromhex("026c6263746c")
"""Of both ends, so that frames without ARP are for the other one."""

_TCA_OPTIONS, _BPF_NAME, _DIRECT = 2, 7, 1
_CLSACT, _HANDLE, _EGRESS = 0xFFFF_FFF1, 0xFFFF_0000, 0xFFFF_FFF3
_FIRST_OF_ALL = 1 << 16 | socket.htons(0x0003)  # priority 1, ETH_P_ALL
_SIOCETHTOOL, _SET_CHECKSUMS, _SET_GRO = 0x8946, 0x17, 0x2C
_NSFS_MAGIC = 0x6E736673
_CLONE_NEWNET, _BIND, _DETACH = 0x4000_0000, 1 << 12, 2
_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_REPLACED = netlink.CREATE | netlink.REPLACE
_libc = ctypes.CDLL(None, use_errno=True)


def read(directory: Path, alias: str) -> Prober | None:
    """What there is; None if neither the interface nor the namespace is. `alias` is the mark of the instance's links.
    ForeignError, OSError if the kernel refuses."""
    outer = _links().get(PROBER_DEVICE)
    if outer is None:
        return Prober((), wrong="it has no interface") if is_namespace(directory / FILE) else None
    index, held = outer
    if not _is_ours(held, alias):
        raise ForeignError(f"{PROBER_DEVICE} is there and not lbctl's", hint=f"ip link del {PROBER_DEVICE}")
    if not is_namespace(directory / FILE):
        return Prober((), index, MAC, wrong="its namespace is gone")
    addresses, program = _inside(directory / FILE, _read_inner)
    wrong = "" if all(a in _routed(index) for a in addresses) else "routes to it are missing"
    if any(sysctl.read(name) != value for name, value in _settings(addresses)):
        wrong = "settings of its interface are others"
    if program != program_name((MARK,)):
        wrong = f"its packets are not marked by {program_name((MARK,))}"
    return Prober(addresses, index, MAC, wrong=wrong)


def add(directory: Path, addresses: Sequence[str], alias: str) -> None:
    """Make it, or bring what there is to what it should be. Raises KernelError, OSError."""
    image = build((MARK,))
    make_namespace(directory / FILE)
    here = _links().get(PROBER_DEVICE)
    inner = _inside(directory / FILE, _links)
    if here and not _is_ours(here[1], alias):
        raise ForeignError(f"{PROBER_DEVICE} is there and not lbctl's", hint=f"ip link del {PROBER_DEVICE}")
    if here and INNER not in inner:
        remove_link(alias)
        here = None
    if here is None:
        _make_pair(directory / FILE, alias)
    with bpf.closing(bpf.load_program(program_name((MARK,)), image.code, bpf.SCHED_CLS)) as program:
        _inside(directory / FILE, _set_up_inner, addresses, program)
    for name, value in _settings(addresses):
        sysctl.write(name, value)
    _require(_change(_up(PROBER_DEVICE)), f"take {PROBER_DEVICE} up")
    index = _links()[PROBER_DEVICE][0]
    for address in _routed(index) - set(addresses):
        _change(_route(RTM_DELROUTE, 0, address, index))
    for address in addresses:
        _require(_change(_route(RTM_NEWROUTE, _REPLACED, address, index)), f"make a route to {address}")


def remove(directory: Path, alias: str) -> None:
    """Remove what there is of it. KernelError, OSError."""
    remove_link(alias)
    path = directory / FILE
    if is_namespace(path) and _libc.umount2(os.fsencode(path), _DETACH) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EPERM, errno.EINVAL):  # not ours to unmount: the service's own mounts
            raise KernelError(f"can't unmount {path}: {os.strerror(number)}")
        return
    path.unlink(missing_ok=True)


def remove_link(alias: str) -> None:
    held = _links().get(PROBER_DEVICE)
    if held and _is_ours(held[1], alias):
        _require(_change(codec.link(RTM_DELLINK, held[0])), f"remove {PROBER_DEVICE}")


def is_namespace(path: Path) -> bool:
    status = ctypes.create_string_buffer(256)  # struct statfs; the type of the file system comes first
    if _libc.statfs(os.fsencode(path), status) < 0:
        return False
    return ctypes.c_ulong.from_buffer(status).value == _NSFS_MAGIC


def make_namespace(path: Path) -> None:
    """Make a namespace of this name, if there is none. KernelError."""
    if is_namespace(path):
        return
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def make() -> int:
        if _libc.unshare(_CLONE_NEWNET) < 0:
            return ctypes.get_errno()
        own = b"/proc/thread-self/ns/net"
        return 0 if _libc.mount(own, os.fsencode(path), b"", ctypes.c_ulong(_BIND), b"") == 0 else ctypes.get_errno()

    with ThreadPoolExecutor(max_workers=1) as pool:
        number = pool.submit(make).result()
    if number:
        raise KernelError(
            f"can't make a network namespace for checks at {path}: {os.strerror(number)}",
            hint=f"as root: unshare --net={path} true",
        )


def _inside(path: Path, function: Callable[..., T], *args: object) -> T:
    """Call a function in a thread that has entered the namespace."""

    def call() -> T:
        with bpf.closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as there:
            netns.move(there)
        return function(*args)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(call).result()


def _links() -> dict[str, tuple[int, dict[int, bytes]]]:
    """Number and attributes of each interface, by its name."""
    found = {}
    with netlink.route() as route:
        for answer in route.dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0)):
            held = netlink.attributes(answer[LINK.size :])
            found[netlink.text(held[IFLA_IFNAME])] = LINK.unpack_from(answer)[2], held
    return found


def _is_ours(held: Mapping[int, bytes], alias: str) -> bool:
    return held.get(IFLA_IFALIAS, b"").rstrip(b"\0") == alias.encode()


def _make_pair(path: Path, alias: str) -> None:
    both: list[codec.Attribute] = [("IFLA_ADDRESS", MAC.hex(":")), ("IFLA_MTU", 1500)]
    with bpf.closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as there:
        ends = codec.kind("veth", codec.far_end(INNER, *both, ("IFLA_NET_NS_FD", there)))
        flags = netlink.CREATE | netlink.EXCLUSIVE
        refusal = _change(codec.link(RTM_NEWLINK, PROBER_DEVICE, *both, ends, flags=flags))
    _require(refusal, f"make {PROBER_DEVICE}")
    try:
        marked = codec.link(RTM_NEWLINK, PROBER_DEVICE, ("IFLA_IFALIAS", alias))
        _require(_change(marked), f"mark {PROBER_DEVICE}")
    except KernelError:
        _change(codec.link(RTM_DELLINK, PROBER_DEVICE))
        raise


def _read_inner() -> tuple[tuple[str, ...], str]:
    """The addresses of the inner interface, and the name of the program that marks its packets."""
    links = _links()
    if INNER not in links:
        return (), ""
    index, program = links[INNER][0], ""
    with netlink.route() as route:
        for answer in route.dump(RTM_GETTFILTER, FILTER.pack(0, index, 0, _EGRESS, 0)):
            held = netlink.attributes(answer[FILTER.size :])
            options = netlink.attributes(held.get(_TCA_OPTIONS, b""))
            program = netlink.text(options.get(_BPF_NAME, b"")) or program
    return tuple(sorted(_addresses(index))), program


def _addresses(index: int) -> list[str]:
    found = []
    with netlink.route() as route:
        for family in (socket.AF_INET, socket.AF_INET6):
            for answer in route.dump(RTM_GETADDR, ADDRESS.pack(family, 0, 0, 0, 0)):
                held, bits, _, scope, of = ADDRESS.unpack_from(answer)
                parts = netlink.attributes(answer[ADDRESS.size :])
                if held == family and of == index and scope == 0 and bits in (32, 128):
                    found.append(str(ip_address(parts.get(IFA_LOCAL) or parts[IFA_ADDRESS])))
    return found


def _set_up_inner(addresses: Sequence[str], program: int) -> None:
    index = _links()[INNER][0]
    _ethtool(_SET_CHECKSUMS, 0)  # XDP at the other end sees what the program here sends, unfinished sums, too
    with suppress(OSError):
        _ethtool(_SET_GRO, 1)  # has the interface take what XDP redirects to it (veth_set_features, Linux 5.13)
    if any(":" in address for address in addresses):
        sysctl.write(f"net/ipv6/conf/{INNER}/disable_ipv6", "0")
    held = _addresses(index)
    for address in (*held, *addresses):
        if address not in addresses:
            _change(codec.address(RTM_DELADDR, address, index))
        elif address not in held:
            flags = netlink.CREATE | netlink.EXCLUSIVE
            added = codec.address(RTM_NEWADDR, address, index, flags=flags, settings=IFA_F_NODAD)
            _require(_change(added), f"add {address}")
    _require(_change(codec.link(RTM_NEWLINK, "lo", state=IFF_UP)), "take lo up")
    _require(_change(_up(INNER)), f"take {INNER} up")
    versions = sorted({ip_address(address).version for address in addresses})
    for version in versions:
        _require(_change(_route(RTM_NEWROUTE, _REPLACED, _ANYWHERE[version], index)), "make a default route")
    place = {"index": index, "handle": _HANDLE, "parent": _CLSACT}
    qdisc = codec.message(RTM_NEWQDISC, netlink.CREATE | netlink.EXCLUSIVE, place, ("TCA_KIND", "clsact"))
    if (refusal := _change(qdisc)) and refusal.errno != errno.EEXIST:
        _require(refusal, "make a place for the program that marks packets (clsact)")
    marker = [("TCA_BPF_FD", program), ("TCA_BPF_NAME", program_name((MARK,))), ("TCA_BPF_FLAGS", _DIRECT)]
    place = {"index": index, "handle": 1, "parent": _EGRESS, "info": _FIRST_OF_ALL}
    attributes: list[codec.Attribute] = [("TCA_KIND", "bpf"), ("TCA_OPTIONS", {"attrs": marker})]
    refusal = _change(codec.message(RTM_NEWTFILTER, _REPLACED, place, *attributes))
    _require(refusal, "attach the program that marks packets (cls_bpf)")


def _settings(addresses: Sequence[str]) -> list[tuple[str, str]]:
    """What the outer interface needs: the program's FIB look-up heeds `forwarding`."""
    found = [(f"net/ipv4/conf/{PROBER_DEVICE}/forwarding", "1"), (f"net/ipv4/conf/{PROBER_DEVICE}/rp_filter", "2")]
    if any(":" in address for address in addresses):
        conf = f"net/ipv6/conf/{PROBER_DEVICE}"
        found += [(f"{conf}/disable_ipv6", "0"), (f"{conf}/forwarding", "1")]
    return found


def _ethtool(command: int, value: int) -> None:
    setting = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    request = struct.pack("@16sP16x", netlink.content(INNER), ctypes.addressof(setting))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _routed(index: int) -> set[str]:
    """The single addresses to which our routes lead by an interface."""
    found = set()
    with netlink.route() as route:
        for family in (socket.AF_INET, socket.AF_INET6):
            asked = ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0)
            for answer in route.dump(RTM_GETROUTE, asked):
                parts = netlink.attributes(answer[ROUTE.size :])
                if answer[0] == family and parts.get(RTA_OIF) == NUMBER.pack(index) and RTA_DST in parts:
                    found.add(str(ip_address(parts[RTA_DST])))
    return found


def _route(type_: int, flags: int, to: str, index: int) -> Message:
    """A request about the route to a single address, or to a network, by an interface alone. It is part of the
    interface and goes with it, so its protocol number is not lbctl's own."""
    fields = {"table": RT_TABLE_MAIN, "proto": RTPROT_BOOT, "type": RTN_UNICAST}
    fields["scope"] = RT_SCOPE_LINK if ":" not in to else RT_SCOPE_UNIVERSE
    return codec.route(type_, to, fields, ("RTA_OIF", index), flags=flags)


def _up(name: str) -> Message:
    return codec.link(RTM_NEWLINK, name, state=IFF_UP | IFF_NOARP)


def _change(message: Message) -> OSError | None:
    with netlink.route() as route:
        (refusal,) = route.change([message])
    return refusal


def _require(refusal: OSError | None, what: str) -> None:
    if refusal:
        raise KernelError(f"can't {what}: {refusal.strerror}") from refusal
