"""The throw-away hosts themselves: that they are apart, die as they should, and leave nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hosts import FOLDER, Hosts, address, wait_for

pytestmark = pytest.mark.cluster


def left_over() -> str:
    links = subprocess.run(("ip", "-o", "link"), check=True, capture_output=True, text=True).stdout
    names = subprocess.run(("ip", "netns", "list"), check=True, capture_output=True, text=True).stdout
    mounts = Path("/proc/mounts").read_text()
    told = [line for line in (links + names + mounts).splitlines() if "hpo-host" in line]
    return "\n".join([*told, *map(str, FOLDER.glob("*"))])


def test_hosts_have_files_and_processes_of_their_own_and_share_one_folder(hosts):
    hosts.start(2, 3)
    hosts.run(2, "touch /etc/mine /mnt/shared/ours && (setsid sleep 1000 > /dev/null 2>&1 < /dev/null &)")
    assert "sleep 1000" in hosts.run(2, "ps aux")
    assert "sleep 1000" not in hosts.run(3, "ps aux")
    assert hosts.run(3, "ls /etc/mine 2> /dev/null || ls /mnt/shared") == "ours\n"
    assert not Path("/etc/mine").exists()
    assert hosts.run(3, "hostname") == "hpo-host-3\n"


def test_a_cable_is_pulled_and_put_back(hosts):
    hosts.start(2, 3)
    reaches = f"timeout 2 bash -c '< /dev/tcp/{address(3)}/22' && echo yes || echo no"
    assert hosts.run(2, reaches) == "yes\n"
    hosts.unplug(3)
    assert hosts.run(2, reaches) == "no\n"
    hosts.plug(3)
    wait_for(lambda: hosts.run(2, reaches) == "yes\n", 10, "host 3")


def test_a_host_that_starts_again_has_an_empty_disk(hosts):
    hosts.start(2)
    hosts.run(2, "touch ~/old")
    hosts.stop(2)
    hosts.start(2)
    assert "old" not in hosts.run(2, "ls ~")


def test_there_is_one_set_of_hosts_at_a_time(hosts):
    with pytest.raises(RuntimeError, match="another process has its hosts"):
        Hosts().__enter__()


def test_hosts_die_with_their_process_and_the_next_set_clears_away():
    code = "from hosts import Hosts; hosts = Hosts().__enter__(); hosts.start(2); print('up', flush=True); input()"
    with subprocess.Popen(
        (sys.executable, "-c", code),
        cwd=Path(__file__).parents[1] / "support",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"up\n"
        other.kill()
    wait_for(lambda: not sshds(), 10, "the hosts' end")
    with Hosts() as hosts:
        hosts.start(2)
        assert sshds()
    assert left_over() == ""
    assert not sshds()


def sshds() -> int:
    """Of hosts, on this machine."""
    found = subprocess.run(("pgrep", "-fc", "sshd -D -e -f /etc/ssh/host_config"), check=False, capture_output=True)
    return int(found.stdout)
