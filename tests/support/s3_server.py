"""A stand-in for S3 on loopback over a folder, whose subfolders are the buckets: what pyarrow asks of S3 to list, read,
write, copy and delete.

Requests must be signed (AWS Signature Version 4); what it does not know it answers with 501, loudly. From
https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from loopback import listening

KEY, SECRET = "AKIATEST", "not/a/secret"
_PAGE = 2  # keys in an answer: S3 has 1000, and a long listing comes in several


@dataclass
class StandIn:
    """The objects are root/BUCKET/KEY. Its faults can be set while it runs."""

    root: Path
    url: str = ""
    failures: int = 0  # of the next requests: 503 SlowDown
    hang_seconds: float = 0.0
    refused_part: str = ""  # of uploads, its number: 403
    has_expired: bool = False  # the keys: 403 ExpiredToken
    is_away: bool = False  # every connection is closed without a word
    asked: list[str] = field(default_factory=list)  # METHOD /path of each request
    unknown: list[str] = field(default_factory=list)  # those that were answered with 501
    markers: set[str] = field(default_factory=set)  # BUCKET/KEY/: pyarrow's folders
    also_listed: dict[str, Path] = field(default_factory=dict)  # BUCKET/KEY that no file is called, and its content
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)  # begun and not completed: parts by number
    lock: threading.Lock = field(default_factory=threading.Lock)
    ids: Iterator[int] = field(default_factory=itertools.count)


@contextmanager
def serving(root: Path) -> Iterator[StandIn]:
    stand_in = StandIn(root)
    with listening(_Handler, stand_in) as port:
        stand_in.url = f"http://127.0.0.1:{port}"
        yield stand_in


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"
    timeout = 5  # of a connection that nobody uses

    def do_GET(self) -> None:  # noqa: PLR0911 - a way out for each thing that S3 can do wrong
        stand_in, url = self.stand_in, urlsplit(self.path)
        stand_in.asked.append(f"{self.command} {url.path}")
        time.sleep(stand_in.hang_seconds)
        if stand_in.is_away:
            self.close_connection = True
            return None
        body = self._body()
        if stand_in.failures:
            stand_in.failures -= 1
            return self._error(503, "SlowDown")
        refusal = "ExpiredToken" if stand_in.has_expired else self._refusal()
        if refusal:
            return self._error(403, refusal)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if not bucket or not (stand_in.root / bucket).is_dir():
            return self._error(404, "NoSuchBucket")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        with stand_in.lock:
            if self.command not in ("GET", "HEAD"):
                return self._change(f"{bucket}/{key}", query, body)
            if key and not query:
                return self._object(stand_in.root / bucket / key)
            return self._list(bucket, query) if query else self._send(200, b"", {})  # HEAD of the bucket

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _body(self) -> bytes:
        """The content of an aws-chunked body: chunks of chunks, and a checksum, which is ignored."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        outer = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            outer += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        if self.headers.get("Content-Encoding") != "aws-chunked":
            return outer
        content, at = b"", 0
        while True:
            head, _, _ = outer[at:].partition(b"\r\n")
            size, at = int(head.split(b";")[0], 16), at + len(head) + 2
            if not size:
                return content
            content, at = content + outer[at : at + size], at + size + 2

    def _change(self, name: str, query: dict[str, str], body: bytes) -> None:
        """name: BUCKET/KEY."""
        is_copy = "x-amz-copy-source" in self.headers
        actions = {
            ("PUT",): self._copy if is_copy else self._put,
            ("PUT", "partNumber", "uploadId"): self._part,
            ("POST", "uploads"): self._begin,
            ("POST", "uploadId"): self._complete,
            ("DELETE",): self._delete,
            ("POST", "delete"): self._delete_many,
        }
        action = actions.get((self.command, *sorted(query)))
        if action:
            action(name, query, body)
        else:
            self._not_implemented()

    def _put(self, name: str, _: dict[str, str], body: bytes) -> None:
        self._store(name, body)
        self._send(200, b"", {"ETag": '"object"'})

    def _copy(self, name: str, *_: object) -> None:
        source = self.stand_in.root / unquote(self.headers["x-amz-copy-source"]).lstrip("/")
        if not source.is_file():
            return self._error(404, "NoSuchKey")
        self._store(name, source.read_bytes())
        return self._xml("<CopyObjectResult><ETag>copy</ETag></CopyObjectResult>")

    def _begin(self, *_: object) -> None:
        upload = f"upload{next(self.stand_in.ids)}"
        self.stand_in.uploads[upload] = {}
        self._xml(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")

    def _part(self, _: str, query: dict[str, str], body: bytes) -> None:
        if query["partNumber"] == self.stand_in.refused_part:
            return self._error(403, "AccessDenied")
        self.stand_in.uploads[query["uploadId"]][int(query["partNumber"])] = body
        return self._send(200, b"", {"ETag": f'"part{query["partNumber"]}"'})

    def _complete(self, name: str, query: dict[str, str], body: bytes) -> None:
        parts = self.stand_in.uploads.pop(query["uploadId"])
        named = [int(part.text or "") for part in ElementTree.fromstring(body).iter() if "PartNumber" in part.tag]
        self._store(name, b"".join(parts[number] for number in named))
        self._xml("<CompleteMultipartUploadResult><ETag>all</ETag></CompleteMultipartUploadResult>")

    def _delete(self, name: str, *_: object) -> None:
        self._remove(name)
        self._send(204, b"", {})

    def _delete_many(self, name: str, _: dict[str, str], body: bytes) -> None:
        for key in ElementTree.fromstring(body).iter():
            if key.tag.endswith("Key"):
                self._remove(f"{name}{key.text}")
        self._xml("<DeleteResult></DeleteResult>")

    def _store(self, name: str, content: bytes) -> None:
        if name.endswith("/"):
            self.stand_in.markers.add(name)
            return
        path, part = self.stand_in.root / name, self.stand_in.root / f".part{next(self.stand_in.ids)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)

    def _remove(self, name: str) -> None:
        self.stand_in.markers.discard(name)
        if not name.endswith("/"):
            (self.stand_in.root / name).unlink(missing_ok=True)

    def _object(self, path: Path) -> None:
        if not path.is_file():
            return self._error(404, "NoSuchKey")
        content = path.read_bytes()
        modified = {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._send(200, content, {"Accept-Ranges": "bytes", **modified})
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            return self._error(416, "InvalidRange")
        return self._send(
            206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}", **modified}
        )

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        if query.get("list-type") != "2" or not query.keys() <= {
            "list-type",
            "prefix",
            "max-keys",
            "delimiter",
            "continuation-token",
        }:
            return self._not_implemented()
        folder, prefix, delimiter = self.stand_in.root / bucket, query.get("prefix", ""), query.get("delimiter")
        entries: dict[str, Path | None] = {}  # None: a common prefix
        keys = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        keys |= {marker.partition("/")[2]: Path("/dev/null") for marker in self.stand_in.markers}
        named = self.stand_in.also_listed.items()
        keys |= {name.removeprefix(f"{bucket}/"): path for name, path in named if name.startswith(f"{bucket}/")}
        for key, path in sorted(keys.items()):
            if key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                entries[prefix + head + found if found else key] = None if found else path
        after = [name for name in sorted(entries) if name > query.get("continuation-token", "")]
        names = after[: min(_PAGE, int(query.get("max-keys", "1000")))]
        more = len(after) > len(names)
        lines = [f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"]
        lines += [f"<KeyCount>{len(names)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"]
        lines += [f"<NextContinuationToken>{escape(names[-1])}</NextContinuationToken>"] if more else []
        for name in names:
            path = entries[name]
            if path:
                found = path.stat()
                date, size = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.st_mtime)), found.st_size
                lines += [
                    f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><LastModified>{date}</LastModified></Contents>"
                ]
            else:
                lines += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"]
        return self._xml(f"<ListBucketResult>{''.join(lines)}</ListBucketResult>")

    def _refusal(self) -> str | None:
        """The code of S3's error if the request is not signed with KEY and SECRET."""
        given = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/([^,]+), ?SignedHeaders=([^,]+), ?Signature=(\w+)",
            self.headers.get("Authorization", ""),
        )
        if not given:
            return "AccessDenied"
        key, scope, names, signature = given.groups()
        if key != KEY:
            return "InvalidAccessKeyId"
        url = urlsplit(self.path)
        pairs = sorted(parse_qsl(url.query, keep_blank_values=True))
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
        headers = "".join(f"{name}:{self.headers[name].strip()}\n" for name in names.split(";"))
        request = [self.command, url.path, query, headers, names, self.headers["x-amz-content-sha256"]]
        digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
        to_sign = "\n".join(["AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, digest])
        secret = f"AWS4{SECRET}".encode()
        for part in scope.split("/"):
            secret = hmac.digest(secret, part.encode(), "sha256")
        right = hmac.new(secret, to_sign.encode(), "sha256").hexdigest()
        return None if hmac.compare_digest(right, signature) else "SignatureDoesNotMatch"

    def _not_implemented(self) -> None:
        self.stand_in.unknown.append(f"{self.command} {self.path}")
        self._error(501, "NotImplemented")

    def _xml(self, body: str) -> None:
        self._send(200, body.encode(), {"Content-Type": "application/xml"})

    def _error(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{code}, says the stand-in</Message></Error>"
        self._send(status, body.encode(), {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # whoever asked has given up
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: tests read the recorded requests."""
