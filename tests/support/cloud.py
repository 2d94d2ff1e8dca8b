"""A stand-in for EC2 whose instances are throw-away hosts: `ray up` with `provider: aws` runs unchanged, S3 included.

moto answers the API; every instance that runs there is a host with its address, and ends with it. On top of moto: there
is as much spot capacity as is said, the instance metadata service tells of interruptions, and a spot instance that was
given notice is gone when its time is up.

Limits: no IAM (every call is allowed), no security groups (nothing is closed), no prices, one subnet; a metadata
service that has spot/instance-action alone. From
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.request import Request, urlopen

import boto3
from hosts import NETWORK, OUTSIDE, Hosts, wait_for
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses.instances import InstanceResponse
from moto.server import ThreadedMotoServer

REGION, ZONE = "us-west-2", "us-west-2a"
KEY = SECRET = "test"  # moto takes any
BUCKET = "results"
PROFILES = ("pix2pix-search-head", "pix2pix-search-worker")
_API_PORT, _METADATA_PORT = 5566, 5567
URL, METADATA_URL = f"http://{OUTSIDE}:{_API_PORT}", f"http://{OUTSIDE}:{_METADATA_PORT}"
_LIVE = ["pending", "running"]


class Cloud:
    """To be used in a `with`, inside that of the hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self.spot_capacity: int | None = None  # instances; None: without end
        self.subnet = self.image = self.security_group = ""  # their ids
        self._hosts = hosts
        self._notices: dict[str, float] = {}  # address: when it will be gone, seconds since 1970
        self._clients: dict[str, Any] = {}
        self._over = threading.Event()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self._limited_capacity())
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
            server = ThreadedMotoServer(ip_address=OUTSIDE, port=_API_PORT, verbose=False)
            server.start()
            self._stack.callback(server.stop)
            urlopen(Request(f"{URL}/moto-api/reset", method="POST"), timeout=10).close()  # moto is one a process
            self._make_account()
            self._stack.enter_context(self._metadata_service())
            self._power = threading.Thread(target=self._switch, name="power")
            self._power.start()
            self._stack.callback(self._power.join)
            self._stack.callback(self._over.set)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self, service: str) -> Any:
        """Of boto3."""
        if service not in self._clients:
            keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
            self._clients[service] = boto3.client(service, REGION, endpoint_url=URL, **keys)
        return self._clients[service]

    def instances(self) -> dict[str, dict[str, Any]]:
        """Those that are on, as EC2 describes them, by address."""
        pages = self.client("ec2").get_paginator("describe_instances")
        found = pages.paginate(Filters=[{"Name": "instance-state-name", "Values": _LIVE}])
        described = [item for page in found for group in page["Reservations"] for item in group["Instances"]]
        return {item["PrivateIpAddress"]: item for item in described}

    def of_type(self, node_type: str) -> list[str]:
        """The addresses of what the cluster's autoscaler knows as node_type."""
        return [
            where
            for where, instance in sorted(self.instances().items())
            if {"Key": "ray-user-node-type", "Value": node_type} in instance.get("Tags", [])
        ]

    def give_notice(self, where: str, seconds: float) -> None:
        """As EC2 does 120 seconds ahead."""
        self._notices[where] = time.time() + seconds

    def terminate(self, where: str) -> None:
        """At once."""
        self.client("ec2").terminate_instances(InstanceIds=[self.instances()[where]["InstanceId"]])
        wait_for(lambda: _number(where) not in self._hosts.numbers(), 30, f"{where} off")

    def _make_account(self) -> None:
        ec2, iam = self.client("ec2"), self.client("iam")
        vpc = ec2.create_vpc(CidrBlock=f"{NETWORK}.0/24")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"{NETWORK}.0/24", AvailabilityZone=ZONE)
        self.subnet = subnet["Subnet"]["SubnetId"]
        group = ec2.create_security_group(GroupName="pix2pix-search", Description="ours", VpcId=vpc)
        self.security_group = group["GroupId"]
        self.image = ec2.describe_images(Filters=[{"Name": "name", "Values": ["ubuntu*"]}])["Images"][0]["ImageId"]
        ec2.import_key_pair(KeyName="stand-in", PublicKeyMaterial=self._hosts.key.with_suffix(".pub").read_bytes())
        for name in PROFILES:
            iam.create_instance_profile(InstanceProfileName=name)
        self.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def _switch(self) -> None:
        """Hosts on and off, as the instances are. All of them live and die with this thread."""
        while not self._over.wait(0.5):
            for where, when in list(self._notices.items()):
                if time.time() >= when:
                    del self._notices[where]
                    if instance := self.instances().get(where):
                        self.client("ec2").terminate_instances(InstanceIds=[instance["InstanceId"]])
            wanted = {_number(where) for where in self.instances()}
            for number in set(self._hosts.numbers()) - wanted:
                self._hosts.stop(number)
            self._hosts.start(*sorted(wanted - set(self._hosts.numbers())))
        for number in self._hosts.numbers():
            self._hosts.stop(number)

    @contextlib.contextmanager
    def _limited_capacity(self) -> Iterator[None]:
        """moto starts MinCount instances; EC2 starts up to MaxCount, as many as there is capacity for."""
        cloud, plain = self, InstanceResponse.run_instances

        def run_instances(request: Any) -> Any:
            count = int(request._get_param("MaxCount", if_none="1"))
            is_spot = request._get_param("InstanceMarketOptions.MarketType") == "spot"
            if is_spot and cloud.spot_capacity is not None:
                taken = sum(item.get("InstanceLifecycle") == "spot" for item in cloud.instances().values())
                count = min(count, cloud.spot_capacity - taken)
                if count < 1:
                    raise EC2ClientError("InsufficientInstanceCapacity", "There is no Spot capacity available")
            request.params["MinCount"] = count
            return plain(request)

        InstanceResponse.run_instances = run_instances
        try:
            yield
        finally:
            InstanceResponse.run_instances = plain

    @contextlib.contextmanager
    def _metadata_service(self) -> Iterator[None]:
        """Version 2 alone: a token first, by PUT. Who asks is told from his address."""
        notices, tokens = self._notices, set()

        class Metadata(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
                    return self._answer(400)
                tokens.add(token := secrets.token_hex(16))
                return self._answer(200, token)

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") not in tokens:
                    return self._answer(401)
                when = notices.get(self.client_address[0])
                if self.path != "/latest/meta-data/spot/instance-action" or when is None:
                    return self._answer(404)
                gone = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                return self._answer(200, f'{{"action": "terminate", "time": "{gone}"}}')

            def _answer(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                """Nothing."""

        server = ThreadingHTTPServer((OUTSIDE, _METADATA_PORT), Metadata)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _number(where: str) -> int:
    return int(where.rpartition(".")[2])
