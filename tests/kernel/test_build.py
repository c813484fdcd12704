# SPDX-License-Identifier: Apache-2.0
"""Compiling in a child process, and doing without it the next time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from reconciler.dataplane.layout import MapType
from reconciler.errors import BuildError
from reconciler.kernel import bpf, maps
from reconciler.kernel.build import build

pytestmark = pytest.mark.kernel

SOURCE = """
#include <uapi/linux/bpf.h>
#include "answer.h"
struct pair { u32 a; u64 b; };
BPF_HASH(unused, u32, u32, 4);
BPF_ARRAY(counters, u64, 4);
BPF_HASH(a_table_with_a_long_name, u32, struct pair, 8);
int entry(struct xdp_md *ctx)
{
    u32 key = 1;
    u64 *counter = counters.lookup(&key);
    if (counter)
        __sync_fetch_and_add(counter, 1);
    return a_table_with_a_long_name.lookup(&key) ? XDP_TX : ANSWER;
}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, instead of the one that all share."""
    path = tmp_path / "cache"
    monkeypatch.setenv("LBCTL_CACHE_DIR", str(path))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    path.mkdir()
    (path / "balancer.c").write_text(SOURCE)
    (path / "answer.h").write_text(
        "#ifdef DROPS\n#define ANSWER XDP_DROP\n#else\n#define ANSWER XDP_PASS\n#endif\n"
    )
    return path


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each process that compiled."""
    started: list[object] = []
    run = subprocess.run

    def _run(command: list[str], **options: object) -> object:
        if "reconciler.kernel.compile_child" in command:
            started.append(command)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", _run)
    return started


def image_file(cache: Path) -> Path:
    (found,) = cache.glob("*.image")
    return found


def verdict_of(image: object) -> int:
    descriptors = {name: maps.create(name, shape) for name, shape in image.maps.items()}  # type: ignore[attr-defined]
    program = bpf.load_program("lbk_built", image.linked(descriptors))  # type: ignore[attr-defined]
    try:
        return bpf.test_run(program, bytes(64)).verdict
    finally:
        for fd in (program, *descriptors.values()):
            os.close(fd)


def test_an_image_knows_its_maps_by_their_full_names_and_runs_when_linked(cache: Path, source: Path) -> None:
    image = build((), source, "entry")
    assert image.maps == {
        "counters": maps.Shape(MapType.ARRAY, 4, 8, 4),
        "a_table_with_a_long_name": maps.Shape(MapType.HASH, 4, 16, 8),
    }
    assert verdict_of(image) == bpf.XdpVerdict.PASS


def test_features_are_macros_and_have_images_of_their_own(cache: Path, source: Path) -> None:
    assert verdict_of(build(["DROPS"], source, "entry")) == bpf.XdpVerdict.DROP
    assert verdict_of(build([], source, "entry")) == bpf.XdpVerdict.PASS
    assert len(list(cache.glob("*.image"))) == 2


def test_the_second_build_needs_no_compiler_and_never_imports_bcc(cache: Path, source: Path) -> None:
    first = build((), source, "entry")
    script = f"""
import subprocess, sys
from pathlib import Path
subprocess.run = None
from reconciler.kernel.build import build
image = build((), Path({str(source)!r}), "entry")
assert "bcc" not in sys.modules
print(image.code.hex())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == first.code.hex()


def test_a_change_of_the_source_compiles_again(
    cache: Path, source: Path, tmp_path: Path, children: list[object]
) -> None:
    build((), source, "entry")
    other = source.rename(tmp_path / "src2")
    (other / "answer.h").write_text("#define ANSWER XDP_ABORTED\n")
    assert verdict_of(build((), other, "entry")) == bpf.XdpVerdict.ABORTED
    assert len(children) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_image_is_compiled_again(cache: Path, source: Path, children: list[object], damage: str) -> None:
    first = build((), source, "entry")
    file = image_file(cache)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": bytes(content), "cut": bytes(content[: len(content) // 2]), "empty": b""}[damage])
    assert build((), source, "entry") == first
    assert len(children) == 2
    assert build((), source, "entry") == first
    assert len(children) == 2, "the repaired image was not kept"


def test_another_compiler_compiles_again_and_a_removed_one_does_not(
    cache: Path, source: Path, tmp_path: Path, children: list[object]
) -> None:
    first = build((), source, "entry")

    def recorded(path: Path, size: int) -> None:
        body = json.loads(image_file(cache).read_bytes().partition(b"\n")[2])
        assert any("libbcc" in library for library, _, _ in body["compiler"])
        assert any("LLVM" in library for library, _, _ in body["compiler"])
        text = json.dumps(body | {"compiler": [[str(path), size, path.stat().st_mtime_ns]]}).encode()
        image_file(cache).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    library = tmp_path / "libcompiler.so"
    library.write_text("old")
    recorded(library, 3)
    assert build((), source, "entry") == first
    assert len(children) == 1
    library.unlink()
    assert build((), source, "entry") == first
    assert len(children) == 1
    library.write_text("newer")
    assert build((), source, "entry") == first
    assert len(children) == 2


def test_a_compile_error_names_file_and_line_of_the_header(cache: Path, source: Path) -> None:
    (source / "answer.h").write_text("\n\n#define ANSWER XDP_PASS\nstatic int broken(void) { return undeclared; }\n")
    with pytest.raises(BuildError) as caught:
        build((), source, "entry")
    assert "answer.h:4:34: error: use of undeclared identifier 'undeclared'" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert not list(cache.glob("*.image"))


def test_bcc_ending_its_process_is_an_error_like_others(cache: Path, source: Path) -> None:
    (source / "balancer.c").write_text("""
int entry(struct xdp_md *ctx)
{
    char large[1000];
    for (int i = 0; i < 1000; i++)
        large[i] = ctx->data + i;
    bpf_trace_printk("%s", large);
    return 0;
}
""")
    with pytest.raises(BuildError, match="stack limit of 512 bytes"):
        build((), source, "entry")


def test_what_compiles_for_ever_is_ended_after_some_time_of_the_processor(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after some time of the clock: a busy machine takes long for what is right."""
    monkeypatch.setattr("reconciler.kernel.build._TIME_LIMIT_S", 1)
    eightfold = "\n".join(f"#define ADD{n + 1} {f'ADD{n} ' * 8}" for n in range(8))
    (source / "answer.h").write_text(f"#define ADD0 key += key ^ 5;\n{eightfold}\n#define ANSWER ({{ ADD8 key; }})\n")
    with pytest.raises(BuildError, match="took more than 1 s of CPU time"):
        build((), source, "entry")


def test_a_missing_entry_is_named(cache: Path, source: Path) -> None:
    with pytest.raises(BuildError, match="no_such_entry"):
        build((), source, "no_such_entry")


def test_without_bcc_the_package_to_install_is_named(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60)
    (packages,) = (tmp_path / "bare").glob("lib/*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))  # all that pip installed, and bcc is Debian's
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(BuildError) as caught:
        build((), source, "entry")
    assert caught.value.hint == "apt install python3-bpfcc"


def test_a_cache_that_others_can_write_to_is_refused(cache: Path, source: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(BuildError, match="could have been written by somebody else"):
        build((), source, "entry")
    cache.chmod(0o700)
    os.chown(cache, 65534, 65534)
    with pytest.raises(BuildError, match="could have been written by somebody else"):
        build((), source, "entry")


def test_the_cache_is_closed_to_others(cache: Path, source: Path) -> None:
    build((), source, "entry")
    assert cache.stat().st_mode & 0o777 == 0o700
    assert image_file(cache).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_cache_that_takes_nothing_is_done_without(
    cache: Path, source: Path, children: list[object], state: str
) -> None:
    cache.mkdir(mode=0o700)
    size = "size=4k" if state == "full" else "ro"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{size},mode=700", "tmpfs", cache], check=True)
    try:
        if state == "full":
            (cache / "filler").write_bytes(bytes(4096))
        assert verdict_of(build((), source, "entry")) == bpf.XdpVerdict.PASS
        assert build((), source, "entry").code
        assert len(children) == 2
        assert not list(cache.glob("*.image"))
    finally:
        subprocess.run(["umount", cache], check=True)
