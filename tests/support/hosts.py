"""Throw-away hosts on one Linux machine, for clusters that are tested for real: no virtual machines, no containers.

Each has network, process, mount, host name and IPC namespaces of its own: the address 10.77.0.NUMBER on a bridge that
leads nowhere else, sshd on port 22, its own /dev/shm and /tmp/ray, and this machine's files, of which it changes a copy
alone. /mnt/shared plays a network file system.

Limits: one set of hosts at a time, numbers 2 to 254; only this machine's root file system is seen; 2 GB of memory for a
host's changed files and 512 MB for its /dev/shm; processors and memory are not divided. Root is root: they keep
accidents apart, no attackers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Self

NETWORK = "10.77.0"
OUTSIDE = f"{NETWORK}.1"  # this machine, as the hosts see it
USER = "ubuntu"  # as on Ubuntu's images; root by another name
FOLDER = Path("/run/hpo-hosts")  # not on the file system that the overlays lie on
_LOCK = Path("/run/hpo-hosts.lock")
_BRIDGE = _PREFIX = "hpo-host"
_NEEDED = {"sshd": "openssh-server", "rsync": "rsync", "ip": "iproute2", "nsenter": "util-linux", "mount": "mount"}
_READY_SECONDS = 20.0

# In the new namespaces. What this host changes lies in a tmpfs, which is gone with its last process.
_BOOT = r"""
set -eu
hostname "$NAME"; ip link set lo up
disk=$FOLDER/$NAME; mkdir -p "$disk"; mount -t tmpfs -o size=2g "$NAME" "$disk"; mkdir "$disk"/{upper,work,root}
mount -t overlay "$NAME" -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"
cd "$disk/root"
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t tmpfs run run; mkdir run/sshd
mount --rbind /dev dev; mount -t tmpfs -o size=512m,mode=1777 shm dev/shm
mkdir -p tmp/ray; mount -t tmpfs ray tmp/ray; rm -rf tmp/ray_* tmp/ray-config-*
mkdir -p mnt/shared; mount --bind "$FOLDER/shared" mnt/shared
# A home without anything of this machine's: an inherited .bashrc stalled logins, and keys leaked in.
sed -i -e "/^$USER:/d" -e "1i $USER:x:0:0::/home/$USER:/bin/bash" etc/passwd  # first: ssh asks where 0 is at home
mkdir -p "home/$USER"; mount -t tmpfs -o mode=755 home "home/$USER"
mkdir -m 700 "home/$USER/.ssh"; install -m 600 "$FOLDER/key.pub" "home/$USER/.ssh/authorized_keys"
echo '. ~/.bashrc' > "home/$USER/.profile"; : > "home/$USER/.bashrc"
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NAME" > etc/hosts; echo "$NAME" > etc/hostname
ssh-keygen -q -t ed25519 -N '' -f etc/ssh/host_key
cat > etc/ssh/host_config <<END
HostKey /etc/ssh/host_key
PidFile none
UseDNS no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
MaxStartups 50
MaxSessions 50
Subsystem sftp internal-sftp
END
# The shell is the host's init: it takes in orphans, which sshd would leave as zombies.
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot . /bin/bash -c '/usr/sbin/sshd -D -e -f /etc/ssh/host_config & wait'
"""


def missing() -> str | None:
    """Why there can be no hosts here; None: there can."""
    if os.geteuid():
        return "hosts of their own need root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = sorted({package for command, package in _NEEDED.items() if not shutil.which(command, path=path)})
    return f"not installed: {' '.join(packages)} (apt-get install)" if packages else None


def address(number: int) -> str:
    return f"{NETWORK}.{number}"


class Hosts:
    """To be used in a `with`, which takes everything away at its end. Raises RuntimeError, with the reason."""

    def __init__(self) -> None:
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._lock: IO[str] | None = None
        self.key = FOLDER / "key"  # for ssh
        self.shared = FOLDER / "shared"  # the hosts' /mnt/shared

    def __enter__(self) -> Self:
        if reason := missing():
            raise RuntimeError(reason)
        self._lock = _LOCK.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RuntimeError(f"another process has its hosts in {FOLDER}") from None
        _remove_leftovers()
        self.shared.mkdir(parents=True)
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        _do("ip", "link", "add", _BRIDGE, "type", "bridge")
        _do("ip", "address", "add", f"{OUTSIDE}/24", "dev", _BRIDGE)
        _do("ip", "link", "set", _BRIDGE, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.numbers():
            self.stop(number)
        _remove_leftovers()
        if self._lock:
            self._lock.close()

    def numbers(self) -> list[int]:
        """Of those that run."""
        return sorted(self._running)

    def start(self, *numbers: int) -> None:
        """Boot these, each with an empty disk; back when their sshds answer. They die with the calling thread."""
        for number in numbers:
            self._boot(number)
        for number in numbers:
            wait_for(partial(answers, address(number)), _READY_SECONDS, f"sshd ({_log(number)})")

    def _boot(self, number: int) -> None:
        name = f"{_PREFIX}-{number}"
        _do("ip", "netns", "add", name)
        _do("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _do("ip", "link", "set", name, "master", _BRIDGE, "up")
        _do("ip", "-n", name, "address", "add", f"{address(number)}/24", "dev", "eth0")
        _do("ip", "-n", name, "link", "set", "eth0", "up")
        _do("ip", "-n", name, "route", "add", "default", "via", OUTSIDE)
        apart = "unshare --mount --pid --uts --ipc --fork --kill-child --propagation=private"
        command = f"setpriv --pdeathsig=KILL nsenter --net=/run/netns/{name} {apart} bash -c".split()
        with _log(number).open("wb") as log:
            self._running[number] = subprocess.Popen(
                [*command, _BOOT],
                env={**os.environ, "NAME": name, "ADDRESS": address(number), "USER": USER, "FOLDER": str(FOLDER)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, number: int) -> None:
        """All its processes are killed, its disk is gone. Unplugged before, it is a power cut: nobody is told."""
        process = self._running.pop(number)
        process.kill()  # and with it the host's init, and with that the rest
        process.wait()
        # The name goes at once; the kernel waits for the last process with the veth.
        _do("ip", "link", "delete", f"{_PREFIX}-{number}")
        _do("ip", "netns", "delete", f"{_PREFIX}-{number}")

    def unplug(self, number: int) -> None:
        """Its network cable."""
        _do("ip", "link", "set", f"{_PREFIX}-{number}", "down")

    def plug(self, number: int) -> None:
        _do("ip", "link", "set", f"{_PREFIX}-{number}", "up")

    def run(self, number: int, command: str, *, timeout: float = 60) -> str:
        """Its standard output. Raises RuntimeError with what it said, where it fails; subprocess.TimeoutExpired."""
        return _do(*self.ssh(number), command, timeout=timeout)

    def ssh(self, number: int) -> tuple[str, ...]:
        """The command that leads there."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=10")
        chosen = [word for option in options for word in ("-o", option)]
        return ("ssh", "-q", "-i", str(self.key), *chosen, f"{USER}@{address(number)}")


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises TimeoutError, saying what was awaited."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


def answers(host: str) -> bool:
    """Its sshd."""
    try:
        with socket.create_connection((host, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _log(number: int) -> Path:
    return FOLDER / f"{number}.log"


def _remove_leftovers() -> None:
    """Of hosts whose process was killed: they died with it, their names did not."""
    for line in _do("ip", "netns", "list").splitlines():
        if line.startswith(f"{_PREFIX}-"):
            _do("ip", "netns", "delete", line.split()[0])
    if Path("/sys/class/net", _BRIDGE).exists():
        _do("ip", "link", "delete", _BRIDGE)
    shutil.rmtree(FOLDER, ignore_errors=True)


def _do(*command: str, timeout: float = 60) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
