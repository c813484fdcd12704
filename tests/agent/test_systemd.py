# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from reconciler.agent.systemd import notifier


@pytest.fixture(params=["path", "abstract"])
def address(request, tmp_path):
    return str(tmp_path / "notify") if request.param == "path" else f"@lba-{tmp_path}"


def test_systemd_is_told(address, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0", 1))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        with notifier() as notify:
            notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_nobody_listening_is_no_error(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with notifier() as notify:
        notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with notifier() as notify:
        notify("READY=1")
