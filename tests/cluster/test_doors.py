"""Who gets in: what listens on a host's outward address, and what it answers to those without the token."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

import grpc
import pytest
from clusters import on_prem
from hosts import address, wait_for
from laptop import ROOT

GUIDE = (ROOT / "docs/cluster.md").read_text()
CALLS = {  # of gRPC; each would tell something, or do it
    6379: (
        "NodeInfoGcsService/GetAllNodeInfo",
        "JobInfoGcsService/GetAllJobInfo",
        "InternalKVGcsService/InternalKVKeys",
    ),
    8073: ("LogService/ListLogs", "ReporterService/GetTraceback"),
    8075: ("NodeManagerService/GetNodeStats",),
    8076: ("ObjectManagerService/Pull", "ObjectManagerService/Push"),
    10001: ("RayletDriver/ClusterInfo", "RayletDriver/KVList"),
}
REQUESTS = {
    8074: ("POST /get_or_create_runtime_env", "POST /delete_runtime_env_if_possible", "POST /get_runtime_envs_info"),
    8265: ("GET /api/jobs/", "POST /api/jobs/", "GET /api/version", "GET /nodes?view=summary", "GET /api/v0/tasks"),
    52365: ("POST /api/job_agent/jobs/", "GET /api/job_agent/jobs/x"),
}
METRICS = (8072, 44217, 44227)  # Prometheus reads figures there without a token; there is nothing else
WRONG = "0" * 64
_WORKS = """python -c '
import ray, time
ray.init(log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=1)
def work(): time.sleep(300)
work.remote(); time.sleep(300)
' > /dev/null 2>&1 < /dev/null &"""


def documented(where: str) -> set[int]:
    """The ports that the guide's table has for `all` hosts or the `head`, but for what is on loopback."""
    rows = [line.split("|")[1:] for line in GUIDE.splitlines() if re.match(r"\| \d", line)]
    cells = [row[0] for row in rows if row[1].strip() in ("all", where) and "loopback" not in row[3]]
    return {int(port) for cell in cells for port in re.findall(r"\d+", cell) if "-" not in cell}


def documented_processes() -> range:
    """The ports of drivers and workers."""
    (found,) = re.findall(r"^\| (\d+)-(\d+) \| all", GUIDE, re.MULTILINE)
    return range(int(found[0]), int(found[1]) + 1)


def test_the_guides_security_group_lets_in_ssh_from_one_address_and_the_nodes_themselves():
    rules = re.findall(r"authorize-security-group-ingress --group-id \$GROUP (.+)", GUIDE)
    assert rules == [
        "--protocol tcp --port 22 --cidr $(curl -s https://checkip.amazonaws.com)/32",
        "--protocol all --source-group $GROUP",
    ]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_cluster_does_nothing_for_those_without_the_token(hosts, laptop):
    with on_prem(hosts, laptop, workers=1) as cluster:
        cluster.up()
        cluster.wait_for_nodes(2)
        head, everywhere = documented("head"), documented("all")
        assert cluster.listening(2) == head
        assert cluster.listening(3) == everywhere

        cluster.on_head(f"({_WORKS})")
        wait_for(lambda: cluster.listening(3) != everywhere, 60, "a process of Ray")
        (worker,) = cluster.listening(3) - everywhere
        (driver,) = cluster.listening(2) - head
        assert {worker, driver} <= set(documented_processes())

        token = (laptop.token / "auth_token").read_text()
        calls = [(2, port, call) for port, of_port in CALLS.items() for call in of_port]
        calls += [(2, driver, "CoreWorkerService/GetCoreWorkerStats"), (3, worker, "CoreWorkerService/Exit")]
        for number, port, call in calls:
            assert called(number, port, call) == called(number, port, call, WRONG) == "UNAUTHENTICATED", (port, call)
            if not call.endswith("Exit"):
                assert called(number, port, call, token) != "UNAUTHENTICATED", (port, call)
        with cluster.tunnel(8265) as dashboard:
            for port, requests in REQUESTS.items():
                where = dashboard if port == 8265 else f"{address(2)}:{port}"
                for request in requests:
                    assert asked(where, request) == 401, (port, request)
                    assert asked(where, request, WRONG) == 403, (port, request)
                    assert asked(where, request, token) not in (401, 403), (port, request)
        for port in METRICS:
            assert [asked(f"{address(2)}:{port}", request) for request in ("GET /metrics", "POST /")] == [200, 405]
        cluster.down()


def called(number: int, port: int, call: str, token: str | None = None) -> str:
    """The status of an empty request by gRPC."""
    with grpc.insecure_channel(f"{address(number)}:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{call}")(
                b"", timeout=10, metadata=(("authorization", f"Bearer {token}"),) if token else ()
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def asked(where: str, request: str, token: str | None = None) -> int:
    """The status of an empty request by HTTP."""
    method, path = request.split()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = b"" if method == "POST" else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{where}{path}", method=method, data=body, headers=headers), timeout=10
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
