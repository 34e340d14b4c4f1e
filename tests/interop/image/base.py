"""A base image from this machine's own files, where no registry can be reached.

Debian's essential packages, and under /usr/local the Python that runs the tests,
without bytecode, as python:3.11-slim has it; and the libraries that it links to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["make_root", "make_tools"]

_SLIM = re.compile(r"/usr/share/(?:doc|man|info|locale|lintian)/")
_NOT_IN_SLIM = (
    *("site-packages", "test", "tests", "idle_test", "__pycache__", "config-*"),
    *("turtledemo", "*.a"),
)


def make_root(folder: Path) -> None:
    """Write the file system of a small Debian with Python."""
    essential = _query("${Package} ${Essential}\n")
    packages = [line.split()[0] for line in essential if line.endswith(" yes")]
    for link in ("bin", "sbin", "lib", "lib64"):
        (folder / "usr" / link).mkdir(parents=True)
        (folder / link).symlink_to(f"usr/{link}")
    packages += ["apt", "ca-certificates", "libc6", "libgcc-s1", "libstdc++6"]
    _copy(folder, _files(packages))
    for name in ("etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("/") / name, folder / name)
    _python(folder / "usr" / "local")
    programs = [path for path in folder.rglob("*") if _is_program(path)]
    _copy(folder, _libraries(programs))
    for name in ("tmp", "proc", "sys", "dev", "run", "root", "home", "var/tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    subprocess.run(["ldconfig", "-r", folder], check=True)


def make_tools(folder: Path) -> None:
    """Write what the build's own base has beside: strip."""
    found = shutil.which("strip")
    if found is None:
        raise AssertionError("binutils is not installed")
    target = folder / "usr" / "bin" / "strip"
    target.parent.mkdir(parents=True)
    shutil.copy(found, target)
    _copy(folder, _libraries([target]))


def _query(form: str, *packages: str) -> list[str]:
    command = ["dpkg-query", "-W", f"-f={form}", *packages]
    return subprocess.check_output(command, text=True).splitlines()


def _files(packages: Iterable[str]) -> list[str]:
    """What packages have installed, but for what slim images leave out."""
    shown = subprocess.check_output(["dpkg", "-L", *packages], text=True)
    return [name for name in shown.splitlines() if not _SLIM.match(name)]


def _copy(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        source = Path(name)
        # Debian's folders of programs are links since they were merged into /usr.
        parent = Path(os.path.realpath(source.parent))
        target = folder / parent.relative_to("/") / source.name
        if source.is_dir() and not source.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        elif os.path.lexists(source) and not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def _python(prefix: Path) -> None:
    """Copy the interpreter: its binary, its library, pip."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    library = Path("lib") / version
    shutil.copytree(
        base / library,
        prefix / library,
        ignore=shutil.ignore_patterns(*_NOT_IN_SLIM),
        symlinks=True,
        dirs_exist_ok=True,
    )
    site = base / library / "site-packages"
    shutil.copytree(
        site / "pip",
        prefix / library / "site-packages" / "pip",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in (base / "lib").glob(f"lib{version}*.so*"):
        shutil.copy2(path, prefix / "lib" / path.name)
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy2((base / "bin" / version).resolve(), prefix / "bin" / version)
    for name in ("python3", "python"):
        (prefix / "bin" / name).symlink_to(version)
    # As the builds of slim images do.
    for path in [*prefix.rglob("*.so"), *prefix.rglob("*.so.*")]:
        subprocess.run(["strip", "--strip-unneeded", path], check=True)


def _is_program(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(programs: Iterable[Path]) -> set[str]:
    """The shared libraries that programs need, and the links that name them."""
    found: set[str] = set()
    for program in programs:
        shown = subprocess.run(
            ["ldd", program], capture_output=True, text=True, check=False
        ).stdout
        for name in re.findall(r"(/\S+) \(0x", shown):
            found |= {name, os.path.realpath(name)}
    return {name for name in found if name.startswith(("/lib", "/usr/lib"))}
