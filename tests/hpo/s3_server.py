"""A stand-in for S3 on loopback: ListObjectsV2, HEAD and ranged GET from a folder, whose subfolders are the buckets.

Requests must be signed (AWS Signature Version 4); what it does not know it answers with 501, loudly. From
https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from loopback import listening

KEY, SECRET = "AKIATEST", "not/a/secret"
_PAGE = 2  # keys in an answer: S3 has 1000, and a long listing comes in several


@dataclass
class StandIn:
    """root/BUCKET/KEY are the objects. What it is to do wrong can be set while it runs."""

    root: Path
    url: str = ""
    failures: int = 0  # of the next requests: 503 SlowDown
    hang_seconds: float = 0.0
    asked: list[str] = field(default_factory=list)  # METHOD /path of each request


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

    def do_GET(self) -> None:
        stand_in, url = self.stand_in, urlsplit(self.path)
        stand_in.asked.append(f"{self.command} {url.path}")
        time.sleep(stand_in.hang_seconds)
        if stand_in.failures:
            stand_in.failures -= 1
            return self._error(503, "SlowDown")
        refusal = self._refusal()
        if refusal:
            return self._error(403, refusal)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if not bucket or not (stand_in.root / bucket).is_dir():
            return self._error(404, "NoSuchBucket")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if key:
            return self._object(stand_in.root / bucket / key)
        return self._list(bucket, query) if query.get("list-type") == "2" else self._error(501, "NotImplemented")

    do_HEAD = do_GET  # noqa: N815

    def _object(self, path: Path) -> None:
        if not path.is_file():
            return self._error(404, "NoSuchKey")
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._send(200, content, {"Accept-Ranges": "bytes"})
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            return self._error(416, "InvalidRange")
        return self._send(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        if not query.keys() <= {"list-type", "prefix", "max-keys", "delimiter", "continuation-token"}:
            return self._error(501, "NotImplemented")
        folder, prefix, delimiter = self.stand_in.root / bucket, query.get("prefix", ""), query.get("delimiter")
        entries: dict[str, Path | None] = {}  # None: a common prefix
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            key = path.relative_to(folder).as_posix()
            if key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                entries[prefix + head + found if found else key] = None if found else path
        names = sorted(entries)
        begin = int(query.get("continuation-token", "0"))
        end = begin + min(_PAGE, int(query.get("max-keys", "1000")))
        more = end < len(names)
        lines = [f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"]
        lines += [f"<KeyCount>{len(names[begin:end])}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"]
        lines += [f"<NextContinuationToken>{end}</NextContinuationToken>"] * more
        for name in names[begin:end]:
            path = entries[name]
            if path:
                date, size = "2026-01-01T00:00:00.000Z", path.stat().st_size
                lines += [
                    f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><LastModified>{date}</LastModified></Contents>"
                ]
            else:
                lines += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"]
        body = f"<ListBucketResult>{''.join(lines)}</ListBucketResult>"
        return self._send(200, body.encode(), {"Content-Type": "application/xml"})

    def _refusal(self) -> str | None:
        """The code of S3's error, where the request is not signed with KEY and SECRET."""
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
        """Nothing: tests read what was asked."""
