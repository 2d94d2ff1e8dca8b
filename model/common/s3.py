"""s3://BUCKET/PREFIX?region=...&scheme=...&endpoint_override=... through pyarrow. Keys come from the environment."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .errors import ConfigError
from .text import did_you_mean

_SECONDS = 10.0  # without any byte from the server
_OPTIONS = ("region", "scheme", "endpoint_override")
_REFUSALS = (
    "NO_SUCH_BUCKET", "not found", "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "ExpiredToken",
)  # fmt: skip


def connect(address: str, attempts: int) -> tuple[Any, str]:
    """Return pyarrow's file system, and the path of the prefix in it.

    Args:
        attempts: for each request. A server that hangs costs ten seconds per attempt.

    Raises:
        ConfigError: the address is invalid.
        OSError, ValueError: the server does not answer, or refuses.
    """
    from pyarrow import fs  # noqa: PLC0415 - it takes seconds, which only users of S3 should wait

    options = options_of(address)
    # pyarrow reads these variables for an address, but not for the file system that is made below.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    located, root = fs.FileSystem.from_uri(address)  # finds the region, but its retries cannot be configured
    options = {**({"endpoint_override": endpoint} if endpoint else {}), **options, "region": located.region}
    return (
        fs.S3FileSystem(
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            connect_timeout=_SECONDS,
            request_timeout=_SECONDS,
            allow_delayed_open=True,  # a small file takes one request
            background_writes=True,  # without it pyarrow 26 completes an upload of which a part failed
            **options,
        ),
        root,
    )


def options_of(address: str) -> dict[str, str]:
    """The options after the question mark. Connects to nothing. Raises ConfigError if the address is invalid."""
    try:
        url = urlsplit(address)
    except ValueError as error:
        raise ConfigError(f"{address}: invalid address; it must be s3://BUCKET/PREFIX ({error})") from None
    options = dict(parse_qsl(url.query))
    # Keys would be written into search.json. A secret may contain a slash.
    if {"@", ":"} & set(url.netloc) or any("@" in value for value in options.values()):
        raise ConfigError("s3://...@...: keys belong into the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")
    if "#" in address:  # all that follows would be ignored
        raise ConfigError(f"{address}: must not contain a #; options follow a ?")
    if not url.netloc:
        raise ConfigError(f"{address}: names no bucket: s3://BUCKET/PREFIX")
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:  # its value may be a key, and is not shown
        where = address.partition("?")[0]
        raise ConfigError(
            "\n".join(f"{where}: {name}: no such option. {did_you_mean(name, _OPTIONS)}" for name in unknown)
        )
    return options


def is_refusal(error: Exception) -> bool:
    """Whether only the user can correct an error. Any other error may pass by itself."""
    return isinstance(error, FileNotFoundError | ValueError) or any(sign in str(error) for sign in _REFUSALS)
