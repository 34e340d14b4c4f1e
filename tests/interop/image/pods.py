"""A pod of a manifest, run by runc: what a kubelet would make of it, on one machine.

From the manifest: images' commands and arguments, environment, users and groups, the
read-only root, capabilities, no new privileges, seccomp (RuntimeDefault: the profile of
Debian's containers-common), volumes with the links, modes and groups that a kubelet
gives them, preStop and the grace period. A network namespace with nothing but its
loopback stands for a policy that lets nothing out; tests come in through a `Door`.

Left out: cgroups and with them the limits of `resources`, sizes of volumes, the
namespaces of users and of cgroups, AppArmor, and whoever would read probes.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Door", "Pod", "Running"]

SECCOMP = Path("/usr/share/containers/seccomp.json")
_ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64")}
_CLONE_NEWNET = 0x40000000
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"


@dataclass
class Pod:
    """A pod's specification, and where its volumes are.

    Attributes:
        spec: of the manifest.
        image: its image's configuration.
        bundle: its image, unpacked, as `umoci unpack` leaves it.
        folder: for its volumes, and what runc keeps.
        objects: contents of ConfigMaps and Secrets by name, and then by key.
    """

    spec: Mapping[str, Any]
    image: Mapping[str, Any]
    bundle: Path
    folder: Path
    objects: Mapping[str, Mapping[str, bytes]]
    volumes: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the volumes."""
        group = self.spec["securityContext"]["fsGroup"]
        for volume in self.spec["volumes"]:
            path = self.folder / "volumes" / volume["name"]
            path.mkdir(parents=True)
            self.volumes[volume["name"]] = path
            if "emptyDir" in volume:
                path.chmod(0o2777)
                os.chown(path, 0, group)
            else:
                self._project(path, volume, group)
        (self.folder / "hosts").write_text(_HOSTS)

    def _project(self, path: Path, volume: Mapping[str, Any], group: int) -> None:
        """Files behind two links, which a kubelet swaps when their object changes."""
        source = volume.get("secret", volume.get("configMap"))
        files = self.objects[source.get("secretName", source.get("name"))]
        mode = source.get("defaultMode", 0o644)
        (path / "..2026").mkdir()
        (path / "..data").symlink_to("..2026")
        for name, data in files.items():
            target = path / "..2026" / name
            target.write_bytes(data)
            os.chown(target, 0, group)
            target.chmod(mode)
            (path / name).symlink_to(f"..data/{name}")

    def container(self, name: str) -> Mapping[str, Any]:
        """One of the pod's containers."""
        every = [*self.spec["initContainers"], *self.spec["containers"]]
        return next(item for item in every if item["name"] == name)

    @contextmanager
    def initialised(self) -> Iterator[None]:
        """Run the init containers in order; those that stay, until the block ends."""
        with ExitStack() as stack:
            for container in self.spec["initContainers"]:
                if container.get("restartPolicy") == "Always":
                    stack.enter_context(self.running(container["name"]))
                else:
                    self.run_to_end(container["name"])
            yield

    def run_to_end(self, name: str) -> None:
        """Run an init container."""
        with self._prepared(name) as (command, log):
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, (self.folder / name / "log").read_text()

    @contextmanager
    def running(self, name: str) -> Iterator[Running]:
        """Run a container until the block ends."""
        with self._prepared(name) as (command, log):
            process = subprocess.Popen(command, stdout=log, stderr=log)
        running = Running(self, name, command[-1], process)
        try:
            running.wait_for_start()
            yield running
        finally:
            with suppress(subprocess.CalledProcessError):
                self.runc("kill", running.id, "KILL")
            process.wait(30)

    def runc(self, *arguments: str) -> str:
        """What runc says."""
        command = ["runc", "--root", str(self.folder / "runc"), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.STDOUT)

    @contextmanager
    def _prepared(self, name: str) -> Iterator[tuple[list[str], Any]]:
        folder = self.folder / name
        folder.mkdir()
        config = self.config(self.container(name))
        (folder / "config.json").write_text(json.dumps(config))
        identity = f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        root = ["runc", "--root", str(self.folder / "runc")]
        with (folder / "log").open("wb") as log:
            yield [*root, "run", "--bundle", str(folder), identity], log

    def config(self, container: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration that runc is given for a container."""
        config = json.loads((self.bundle / "config.json").read_bytes())
        context = {**self.spec["securityContext"], **container["securityContext"]}
        process = config["process"]
        process |= {
            "terminal": False,
            "user": {
                "uid": context["runAsUser"],
                "gid": context["runAsGroup"],
                "additionalGids": [context["fsGroup"]],
            },
            "args": self._arguments(container),
            "env": _environment(process["env"], container.get("env", ())),
            "noNewPrivileges": not context["allowPrivilegeEscalation"],
        }
        assert context["capabilities"] == {"drop": ["ALL"]}
        process["capabilities"] = {}
        del process["rlimits"]
        config["root"] = {
            "path": str(self.bundle / "rootfs"),
            "readonly": context["readOnlyRootFilesystem"],
        }
        config["mounts"] = [
            item for item in config["mounts"] if item["type"] != "cgroup"
        ]
        config["mounts"] += self._mounts(container)
        linux = config["linux"]
        del linux["resources"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        linux["seccomp"] = _seccomp()
        return dict(config)

    def _arguments(self, container: Mapping[str, Any]) -> list[str]:
        """A manifest's command and arguments, over an image's own."""
        command = container.get("command")
        if command is not None:
            return [*command, *container.get("args", [])]
        own = self.image["config"]
        return [*own["Entrypoint"], *container.get("args", own["Cmd"])]

    def _mounts(self, container: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        hosts = {"name": "", "mountPath": "/etc/hosts", "readOnly": True}
        for mount in [*container["volumeMounts"], hosts]:
            path = self.volumes.get(mount["name"], self.folder / "hosts")
            access = "ro" if mount.get("readOnly") else "rw"
            yield {
                "destination": mount["mountPath"],
                "type": "bind",
                "source": str(path),
                "options": ["rbind", "nosuid", "nodev", access],
            }


@dataclass
class Running:
    """A container that runs.

    Attributes:
        pod: that it belongs to.
        name: in the pod.
        id: by which runc knows it.
        process: of `runc run`, which ends as the container does.
        pid: of its first process, here.
    """

    pod: Pod
    name: str
    id: str
    process: subprocess.Popen[bytes]
    pid: int = 0

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.pod.folder / self.name / "log").read_text()

    def wait_for_start(self) -> None:
        """Until its first process runs."""
        deadline = time.monotonic() + 60
        while True:
            with suppress(subprocess.CalledProcessError):
                state = json.loads(self.pod.runc("state", self.id))
                if state["status"] == "running":
                    self.pid = int(state["pid"])
                    return
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, "did not start"
            time.sleep(0.1)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as its user."""
        root = str(self.pod.folder / "runc")
        return subprocess.run(
            ["runc", "--root", root, "exec", self.id, *command],
            capture_output=True,
            text=True,
            check=False,
        )

    def stop(self) -> None:
        """What a kubelet does first: preStop, and then the signal."""
        hook = self.pod.container(self.name)["lifecycle"]["preStop"]["exec"]["command"]
        assert self.run(*hook).returncode == 0
        self.pod.runc("kill", self.id, "TERM")

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        total = 0.0
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(process / "ns" / "pid") == own:
                    total += _cpu_s(process)
        return total


class Door:
    """A port here that leads to one in a container's network namespace."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid, self._port = pid, port
        self._limit: int | None = None
        self._open = threading.Event()
        self.held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_next(self, after_bytes: int) -> None:
        """Hold back what the next one to send anything sends after so many bytes."""
        self._limit = after_bytes

    def release(self) -> None:
        """Let through what was held back."""
        self._open.set()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(here,), daemon=True).start()

    def _serve(self, here: socket.socket) -> None:
        try:
            there = self._connect()
        except OSError:
            here.close()
            return
        with here, there:
            back = threading.Thread(target=_pump, args=(there, here), daemon=True)
            back.start()
            _pump(here, there, self._pause)
            back.join()

    def _pause(self, data: bytes, there: socket.socket) -> bytes:
        """Hold data back, if that is asked for; what is left to send."""
        limit, self._limit = self._limit, None
        if limit is None:
            return data
        there.sendall(data[:limit])
        self.held.set()
        self._open.wait()
        return data[limit:]

    def _connect(self) -> socket.socket:
        """A socket belongs to the namespace in which its thread made it."""
        with open(f"/proc/{self._pid}/ns/net") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return socket.create_connection(("127.0.0.1", self._port), timeout=60)


def _pump(
    source: socket.socket,
    target: socket.socket,
    pause: Callable[[bytes, socket.socket], bytes] = lambda data, _: data,
) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(pause(data, target))
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _environment(own: list[str], given: Any) -> list[str]:
    values = dict(item.split("=", 1) for item in own)
    values |= {item["name"]: item["value"] for item in given}
    return [f"{name}={value}" for name, value in values.items()]


def _seccomp() -> dict[str, Any]:
    """The default profile, for this architecture, where no capability is held."""
    profile = json.loads(SECCOMP.read_bytes())
    machine, architecture = _ARCHITECTURES[os.uname().machine]
    rules = []
    for rule in profile["syscalls"]:
        only = rule.get("includes") or {}
        if only.get("caps") or machine not in only.get("arches", [machine]):
            continue
        kept = {"names", "action", "args", "errnoRet"}
        rules.append({k: v for k, v in rule.items() if k in kept and v is not None})
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [architecture],
        "syscalls": rules,
    }


def _cpu_s(process: Path) -> float:
    """User and system time, with that of its children that have ended."""
    text = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, text[11:15])) / os.sysconf("SC_CLK_TCK")
