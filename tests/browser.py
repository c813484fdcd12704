# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium: what it makes of a page, what it complains about, and pictures of it."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = shutil.which("chromium")
PATIENCE_S = 120
_BACKGROUND = "#1c1f24"
_FRAMED = """<!doctype html><meta charset="utf-8">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe srcdoc="{page}" width="{width}" height="{height}"></iframe><pre id="wide"></pre>
<script>onload = () => {{ const inside = document.querySelector('iframe').contentDocument.documentElement;
document.getElementById('wide').textContent = inside.scrollWidth; }}</script>"""
_CONSOLE = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0; background: {background} }}
pre {{ margin: 0; padding: 14px 16px; color: #d8dee4; font: 14px/1.35 'DejaVu Sans Mono', monospace }}
.c1 {{ font-weight: bold; color: #fff }} .c2 {{ opacity: .65 }} .c31 {{ color: #ff8086 }} .c32 {{ color: #6fdc8c }}
.c33 {{ color: #f2c55c }} .c7 {{ background: #d8dee4; color: {background} }}</style><pre>{text}</pre>"""


def _chromium(directory: Path, *words: str) -> tuple[str, str]:
    """What Chromium prints, and what it logs."""
    assert CHROMIUM
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--hide-scrollbars", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000",
        f"--user-data-dir={directory}/profile", *words,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"HOME": str(directory)},
    )  # fmt: skip
    try:
        return process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def dom(url: str, width: int = 390, height: int = 844) -> tuple[str, str]:
    """The page at a URL as elements once it is loaded, and the browser's log, which has what its console says."""
    with tempfile.TemporaryDirectory() as name:
        return _chromium(Path(name), f"--window-size={width},{height}", "--dump-dom", url)


def width_needed(page: str, width: int) -> int:
    """How wide a page becomes on a screen of this width, in pixels: more, if it has to be moved sideways."""
    with tempfile.TemporaryDirectory() as name:
        told, _ = _chromium(Path(name), "--dump-dom", _framed(page, width, 844, Path(name)))
    found = re.search(r'<pre id="wide">(\d+)</pre>', told)
    assert found, told[-2000:]
    return int(found[1])


def picture(page: str, width: int, height: int, path: Path) -> None:
    """Write what a screen of this size shows of a page as PNG."""
    with tempfile.TemporaryDirectory() as name:
        where = _framed(page, width, height, Path(name))
        _chromium(Path(name), f"--window-size={width},{height}", f"--screenshot={path.resolve()}", where)


def _framed(page: str, width: int, height: int, directory: Path) -> str:
    """The URL of a page with the page in a frame, which may be narrower than any window of Chromium."""
    path = directory / "framed.html"
    path.write_text(_FRAMED.format(page=html.escape(page), width=width, height=height), encoding="utf-8")
    return path.as_uri()


def console(text: str) -> str:
    """A page that shows what a terminal does: text with colours (SGR of ECMA-48, as `render.style` writes them)."""
    shown = re.sub(r"\x1b\[(\d+)m", lambda code: "</span>" if code[1] == "0" else f'<span class="c{code[1]}">',
                   html.escape(text))  # fmt: skip
    return _CONSOLE.format(background=_BACKGROUND, text=shown)


def size(png: Path) -> tuple[int, int]:
    """Width and height of a picture. AssertionError if it is no PNG."""
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n"), png
    width, height = struct.unpack("!II", content[16:24])
    return width, height
