"""Real hosts on one machine, for tests of a cluster: namespaces for network, mounts, names and processes on a bridge.

Each host has an address, a name, a /tmp, /dev/shm, /run and /root, an sshd and an init of its own; the rest of the file system is
that of the machine, the working copy of this project excepted, which is hidden: what a host has of it was brought there. A link
that is cut is a real partition, a host that is killed is gone with its files.

Nothing outlives the process that made the hosts, however it ends: a host dies with the thread that started it, its link goes with
it, and the bridge of a dead process, which carries its pid in its name, is removed by the next run.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_TOOLS = ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "setpriv")
_PACKAGES = "openssh-server, openssh-client, rsync, iproute2"
_PRIVATE = ("/tmp", "/dev/shm", "/run", "/root")
_BRIDGE = re.compile(r"\b(rfb(\d+)-\d+)[:@]")
_numbers = itertools.count(1)
"""Of bridges and links: a process may have several sets of hosts."""
_READY_S = 30.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = Path(sys.prefix)
PATH = f"{ENVIRONMENT / 'bin'}:{_SYSTEM_PATH}"

# What a host does first. /mnt holds for a moment what the private folders are about to hide.
_BOOT = r"""
set -euo pipefail
mount --make-rprivate /
mount -t tmpfs host /mnt
cp -r "$STATE" /mnt/state
for number in "${!SEEN[@]}"; do mkdir "/mnt/$number"; mount --bind "${SEEN[$number]}" "/mnt/$number"; done
for folder in /tmp /dev/shm /run /root; do mount -t tmpfs -o mode=1777,size=4g host "$folder"; done
if [ -d "$HIDDEN" ]; then mount -t tmpfs -o mode=0755,size=1m hidden "$HIDDEN"; fi
for number in "${!SEEN[@]}"; do mkdir -p "${SEEN[$number]}"; mount --bind "/mnt/$number" "${SEEN[$number]}"; done
chmod 700 /root
hostname "$NAME"
mkdir -p /run/sshd /run/host /root/.ssh
cp /mnt/state/* /run/host/
umount -l /mnt
mount --bind /run/host/hosts /etc/hosts
cp /run/host/login.pub /root/.ssh/authorized_keys
cp /run/host/login /root/.ssh/id_ed25519
chmod 600 /root/.ssh/* /run/host/host_key
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
/usr/sbin/sshd -f /run/host/sshd_config -E /run/host/sshd.log
echo ready
# This shell is the init: it reaps whatever is left to it, so that a killed raylet does not linger as a zombie.
while :; do sleep 1000 & wait $!; done
"""

_SSHD = """\
HostKey /run/host/host_key
PidFile /run/sshd.pid
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
UseDNS no
SetEnv PATH={path}
MaxStartups 100
Subsystem sftp internal-sftp
"""


def unavailable() -> str | None:
    """Why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=f"{PATH}:{os.environ.get('PATH', '')}") is None]
    if missing:
        return f"{', '.join(missing)} not found: install {_PACKAGES}"
    trial = f"rft{os.getpid()}"
    for command in (
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "true"],
        ["ip", "link", "add", trial, "type", "bridge"],
        ["ip", "link", "del", trial],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode:
            return f"{shlex.join(command[:4])}: {done.stderr.strip()}"
    return None


@dataclass(frozen=True)
class Process:
    """A process in a host, by its pid on the machine."""

    pid: int
    command: str


@dataclass(eq=False)
class Host:
    """One host. ``pid`` is its init as the machine sees it."""

    name: str
    address: str
    link: str
    pid: int
    _starter: subprocess.Popen[str] = field(repr=False)
    _background: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]], repr=False)
    _is_cut: bool = field(default=False, repr=False)
    _shunned: list[str] = field(default_factory=list[str], repr=False)

    def path(self, path: str) -> Path:
        """A path in the host's file system, for this process to use."""
        return Path(f"/proc/{self.pid}/root{path}")

    def run(
        self, *command: str, environment: Mapping[str, str] | None = None, timeout_s: float = 120, folder: str = "/root"
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end; what it prints is returned, whatever it returns."""
        return subprocess.run(
            self._enter(command, folder),
            env=_environment(environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )

    def check(
        self, *command: str, environment: Mapping[str, str] | None = None, timeout_s: float = 120, folder: str = "/root"
    ) -> str:
        """As ``run``; returns what was printed, and fails where the command does."""
        done = self.run(*command, environment=environment, timeout_s=timeout_s, folder=folder)
        assert done.returncode == 0, (
            f"{self.name}: {shlex.join(command)[:300]} returned {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout

    def start(
        self, *command: str, environment: Mapping[str, str] | None = None, folder: str = "/root", log: str = "/tmp/started.log"
    ) -> subprocess.Popen[bytes]:
        """Start a command there; its output goes to a file of the host's."""
        with open(self.path(log), "ab") as file:
            process = subprocess.Popen(
                self._enter(command, folder),
                env=_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._background.append(process)
        return process

    def processes(self, part: str = "") -> list[Process]:
        """The host's processes whose command line contains ``part``, its init and sshd excepted."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found: list[Process] = []
        for entry in os.scandir("/proc"):
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry.name}/ns/pid") != mine or int(entry.name) == self.pid:
                    continue
                command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command and part in command and "sshd" not in command and command != "sleep 1000":
                    found.append(Process(int(entry.name), command))
        return found

    def kill(self, part: str) -> int:
        """SIGKILL to the host's processes whose command line contains ``part``; returns how many there were once all are gone."""
        killed: set[int] = set()
        deadline_s = time.monotonic() + 20
        while found := self.processes(part):
            for process in found:
                killed.add(process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            assert time.monotonic() < deadline_s, f"{self.name}: {found[0]} does not end"
            time.sleep(0.02)
        return len(killed)

    def cut(self) -> None:
        """Cut the link: nothing comes in or goes out, and nobody is told."""
        _ip("link", "set", self.link, "down")
        self._is_cut = True

    def shun(self, other: Host) -> None:
        """Send nothing to another host any more: neither hears from the other, and both hear from all others."""
        self.check("ip", "route", "add", "blackhole", other.address)
        self._shunned.append(other.address)

    def restore(self) -> bool:
        """Undo ``cut`` and ``shun``; returns whether there was something to undo."""
        broken = self._is_cut or bool(self._shunned)
        if self._is_cut:
            _ip("link", "set", self.link, "up")
            self._is_cut = False
        while self._shunned:
            self.check("ip", "route", "del", "blackhole", self._shunned.pop())
        return broken

    def die(self) -> None:
        """The whole host is gone, with its files."""
        with self._starter:
            self._starter.kill()
        for process in self._background:
            process.kill()
            process.wait()
        eventually(lambda: not runs(self.pid), f"the end of {self.name}")

    def _enter(self, command: Sequence[str], folder: str) -> list[str]:
        inside = f"cd {shlex.quote(folder)} && exec {shlex.join(command)}"
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", "--pid", "--", "/bin/bash", "-c", inside]


class Hosts:
    """Hosts on one bridge. ``gateway`` is the machine's own address there."""

    def __init__(self, bridge: str, subnet: ipaddress.IPv4Network, state: Path) -> None:
        self.gateway = str(subnet[1])
        self.login = state / "login"
        """The private key that opens every host; each has it as its own, too."""
        self._bridge = bridge
        self._subnet = subnet
        self._state = state
        self._hosts: dict[str, Host] = {}
        self._made = 0

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def add(self, name: str) -> Host:
        """A new host. A name may be used again once its host is dead."""
        self._made += 1
        address = str(self._subnet[10 + self._made])
        link = f"rfv{os.getpid()}-{next(_numbers)}"
        variables = {
            "PATH": PATH,
            "NAME": name,
            "ADDRESS": address,
            "GATEWAY": self.gateway,
            "STATE": str(self._state),
            "HIDDEN": str(REPOSITORY),
        }
        seen = shlex.join(str(folder) for folder in _environment_folders())
        # The parent-death signal survives both exec calls; the namespaces' first process is killed with its parent.
        starter = subprocess.Popen(
            [
                "setpriv", "--pdeathsig", "KILL",
                "unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
                "/bin/bash", "-c", f"SEEN=({seen})\n{_BOOT}",
            ],
            env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            pid = _child_of(starter.pid)
            eventually(lambda: os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"), "a network namespace")
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
            _ip("link", "set", link, "master", self._bridge, "up")
            assert starter.stdout is not None
            said = starter.stdout.readline()
            assert said == "ready\n", f"host {name} did not start: {said}{starter.stdout.read()}"
        except BaseException:
            starter.kill()
            starter.wait()
            raise
        host = self._hosts[name] = Host(name, address, link, pid, starter)
        return host

    def remove(self, name: str) -> None:
        """Let a host die, and forget it."""
        self._hosts.pop(name).die()

    def close(self) -> None:
        """End all hosts and remove the bridge."""
        for name in list(self._hosts):
            self.remove(name)
        _ip("link", "del", self._bridge)


@contextmanager
def hosts(*names: str) -> Iterator[Hosts]:
    """Hosts with these names, gone at the end of the block."""
    remove_leftovers()
    pid = os.getpid()
    bridge = f"rfb{pid}-{next(_numbers)}"
    state = Path(tempfile.mkdtemp(prefix=f"rayflow-hosts-{pid}-"))
    subnet = _free_subnet()
    try:
        for key in ("login", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", state / key], check=True, timeout=20)
        (state / "sshd_config").write_text(_SSHD.format(path=PATH))
        lines = [f"{subnet[10 + number]} {name}" for number, name in enumerate(names, 1)]
        (state / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        _ip("link", "add", bridge, "type", "bridge")
        made = Hosts(bridge, subnet, state)
        try:
            _ip("addr", "add", f"{made.gateway}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for name in names:
                made.add(name)
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(state, ignore_errors=True)


def remove_leftovers() -> None:
    """Bridges and folders of runs that were killed: their hosts died with them."""
    listed = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, timeout=20, check=True).stdout
    for bridge, pid in _BRIDGE.findall(listed):
        if not runs(int(pid)):
            subprocess.run(["ip", "link", "del", bridge], capture_output=True, timeout=20)
    for folder in Path(tempfile.gettempdir()).glob("rayflow-hosts-*-*"):
        if not runs(int(folder.name.split("-")[2])):
            shutil.rmtree(folder, ignore_errors=True)


def runs(pid: int) -> bool:
    """Whether a process is there, one that only waits to be reaped not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(check: Callable[[], bool], what: str, timeout_s: float = _READY_S, said: Callable[[], str] = str) -> None:
    """Wait for something that another process does; ``said`` is what there is to read when it does not."""
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what} {said()}"
        time.sleep(0.02)


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    eventually(lambda: bool(children.read_text().split()), "the first process of a host")
    return int(children.read_text().split()[0])


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Of a command in a host: nothing of this process's own."""
    return {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "USER": "root", **(more or {})}


def _environment_folders() -> list[Path]:
    """Folders with the Python environment that the private folders of a host, or its missing working copy, would hide."""
    needed = {ENVIRONMENT, Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent}
    hiding = (*(Path(folder) for folder in _PRIVATE), REPOSITORY)
    return sorted(folder for folder in needed if any(folder.is_relative_to(hidden) for hidden in hiding))


def _free_subnet() -> ipaddress.IPv4Network:
    taken = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, timeout=20, check=True).stdout
    pid = os.getpid()
    for number in range(pid, pid + 1000):
        subnet = ipaddress.IPv4Network(f"10.{200 + number % 50}.{number // 50 % 250}.0/24")
        if f" {str(subnet[0]).removesuffix('0')}" not in taken:
            return subnet
    raise AssertionError("no free subnet")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"ip {shlex.join(arguments)}: {done.stderr.strip()}"
