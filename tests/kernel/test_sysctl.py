# SPDX-License-Identifier: Apache-2.0
"""Settings of a namespace, and the file that holds what they were before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reconciler.errors import KernelError
from reconciler.kernel.real import RealKernel
from reconciler.kinds.sysctl import Sysctl, SysctlKind
from reconciler.resource import Change, Key

from .conftest import ip

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("inside")]

FORWARD = "net/ipv4/ip_forward"


def test_a_setting_is_read_and_written_in_the_namespace_of_the_thread(kernel: RealKernel, namespace: str) -> None:
    assert kernel.read_sysctl(FORWARD) == "0"
    kernel.write_sysctl(FORWARD, "1")
    assert kernel.read_sysctl(FORWARD) == "1"
    shown = subprocess.run(["cat", f"/proc/sys/{FORWARD}"], check=True, capture_output=True, text=True)
    assert shown.stdout == "1\n"


def test_names_of_interfaces_may_hold_dots(kernel: RealKernel) -> None:
    subprocess.run(["ip", "link", "add", "eth0.100", "type", "veth"], check=True)
    name = "net/ipv4/conf/eth0.100/send_redirects"
    kernel.write_sysctl(name, "0")
    assert kernel.read_sysctl(name) == "0"


def test_what_the_kernel_does_not_have_is_none_to_read_and_an_error_to_write(kernel: RealKernel) -> None:
    assert kernel.read_sysctl("net/ipv4/conf/eth9/rp_filter") is None
    assert kernel.read_sysctl(f"{FORWARD}/x") is None
    with pytest.raises(KernelError, match="no setting net/ipv4/conf/eth9/rp_filter"):
        kernel.write_sysctl("net/ipv4/conf/eth9/rp_filter", "0")
    with pytest.raises(KernelError, match="never sets 'net/ipv4/ip_forward' to 'many'"):
        kernel.write_sysctl(FORWARD, "many")


@pytest.mark.parametrize("name", ["/etc/passwd", "net/../../../etc/passwd", ".."])
def test_nothing_outside_of_the_settings_is_touched(kernel: RealKernel, name: str) -> None:
    with pytest.raises(KernelError, match="not the name of a setting"):
        kernel.read_sysctl(name)
    with pytest.raises(KernelError, match="lbctl never sets"):
        kernel.write_sysctl(name, "1")


@pytest.mark.parametrize("name", ["kernel/core_pattern", "net/ipv4/conf/../rp_filter", "net/ipv4/conf/a/b/rp_filter"])
def test_only_settings_that_lbctl_changes_are_written_or_remembered(kernel: RealKernel, name: str) -> None:
    for change in (kernel.write_sysctl, kernel.remember_sysctl):
        with pytest.raises(KernelError, match="lbctl never sets"):
            change(name, "1")
    assert kernel.former_sysctls() == {}


def test_former_values_outlive_the_process_and_are_forgotten_one_by_one(kernel: RealKernel, run_dir: Path) -> None:
    assert kernel.former_sysctls() == {}
    kernel.remember_sysctl(FORWARD, "0")
    kernel.remember_sysctl("net/ipv4/conf/all/send_redirects", "1")
    other = RealKernel("lbk", run_dir)
    assert other.former_sysctls() == {FORWARD: "0", "net/ipv4/conf/all/send_redirects": "1"}
    other.forget_sysctl(FORWARD)
    other.forget_sysctl(FORWARD)
    assert kernel.former_sysctls() == {"net/ipv4/conf/all/send_redirects": "1"}
    assert [path.name for path in (run_dir / "lbk").iterdir()] == ["former.json"], "a temporary file was left"


def test_a_damaged_file_is_an_error_that_names_it(kernel: RealKernel, run_dir: Path) -> None:
    kernel.remember_sysctl(FORWARD, "0")
    for content in ("{", "[]", '{"net/ipv4/ip_forward": null}'):
        (run_dir / "lbk/former.json").write_text(content)
        with pytest.raises(KernelError, match=r"former\.json"):
            kernel.former_sysctls()


@pytest.mark.parametrize("switch", ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"])
def test_a_setting_for_all_interfaces_takes_none_of_them_along(kernel: RealKernel, inside: str, switch: str) -> None:
    ip("link", "add", "front", "type", "veth", "peer", "name", "side")
    family = switch.split("/")[1]
    places = ("default", "lo", "front", "side")
    for name in (switch, *(f"net/{family}/conf/{place}/forwarding" for place in places)):
        kernel.write_sysctl(name, "0")
    kernel.write_sysctl(f"net/{family}/conf/side/forwarding", "1")

    def forwarding() -> list[str | None]:
        return [kernel.read_sysctl(f"net/{family}/conf/{place}/forwarding") for place in places]

    kind = SysctlKind(kernel)
    on = Change(Key("sysctl", switch), Sysctl(switch, "0"), Sysctl(switch, "1"))
    for change, value in ((on, "1"), (on.inverse(), "0")):
        assert kind.write([change]) == [None]
        assert (kernel.read_sysctl(switch), forwarding()) == (value, ["0", "0", "0", "1"])
    kernel.write_sysctl(switch, "1")
    kernel.write_sysctl(switch, "0")
    assert forwarding() == ["0"] * 4, "the kernel no longer sets all of them: then nothing needs to be put back"
