"""s3://BUCKET/PREFIX?region=...&scheme=...&endpoint_override=..., by pyarrow; keys come from the environment."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .errors import ConfigError
from .text import did_you_mean

_SECONDS = 10.0  # without a byte
_OPTIONS = ("region", "scheme", "endpoint_override")
_REFUSALS = (
    "NO_SUCH_BUCKET", "not found", "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "ExpiredToken",
)  # fmt: skip


def connect(address: str, attempts: int) -> tuple[Any, str]:
    """The file system and the path of the prefix in it. Raises ConfigError for what is no address; OSError, ValueError.

    attempts: of each request; a server that hangs costs ten seconds each.
    """
    from pyarrow import fs  # noqa: PLC0415 - seconds that others need not pay

    options = options_of(address)
    # pyarrow has it from there for an address, and not for the file system that is made below.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    found, root = fs.FileSystem.from_uri(address)  # finds the region; how long it tries again cannot be set
    options = {**({"endpoint_override": endpoint} if endpoint else {}), **options, "region": found.region}
    return (
        fs.S3FileSystem(
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            connect_timeout=_SECONDS,
            request_timeout=_SECONDS,
            allow_delayed_open=True,  # what is small goes in one request
            background_writes=True,  # without it pyarrow 26 completes an upload of which a part has failed
            **options,
        ),
        root,
    )


def options_of(address: str) -> dict[str, str]:
    """What follows the question mark. Raises ConfigError for what is no address; nobody is asked."""
    try:
        url = urlsplit(address)
    except ValueError as error:
        raise ConfigError(f"{address}: no address: s3://BUCKET/PREFIX ({error})") from None
    options = dict(parse_qsl(url.query))
    # They would be written into search.json; a secret may have a / in it.
    if {"@", ":"} & set(url.netloc) or any("@" in value for value in options.values()):
        raise ConfigError("s3://...@...: keys belong into the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")
    if "#" in address:  # what follows would be ignored
        raise ConfigError(f"{address}: has a #, which no address has; what follows a ? are its options")
    if not url.netloc:
        raise ConfigError(f"{address}: names no bucket: s3://BUCKET/PREFIX")
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:  # without its value, which is perhaps a key
        where = address.partition("?")[0]
        raise ConfigError(
            "\n".join(f"{where}: {name}: no such option. {did_you_mean(name, _OPTIONS)}" for name in unknown)
        )
    return options


def is_refusal(error: Exception) -> bool:
    """What the user can mend; what else goes wrong, waiting may mend."""
    return isinstance(error, FileNotFoundError | ValueError) or any(sign in str(error) for sign in _REFUSALS)
