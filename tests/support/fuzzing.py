"""What no file and no command line is safe from: any JSON, documents and bytes that were damaged; and how a mistake is
told."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

HUGE = [2**31, 2**63, 10**400, -(10**400), 1e308, float("inf"), float("-inf"), float("nan")]
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "../x", "/etc/passwd", "\x1b[2J", "a\nb\r", "x" * 5000, "\0", "9" * 5000]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-3, 300) | st.floats() | st.sampled_from(HUGE) | TEXTS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
DEEP = 100_000  # levels, and more than any parser of ours may follow
TORN = [
    b"", b"{", b"[" * DEEP, b'{"a":' * DEEP, b"9" * 5000, b"\xff\xfe", b"NaN", b"\x00", b'"\\ud800"', b"1e999",
]  # fmt: skip


def as_json(value: Any) -> bytes:
    """With NaN and infinity, as Python writes them."""
    return json.dumps(value).encode()


@st.composite
def near(draw: st.DrawFn, document: Any, values: st.SearchStrategy[Any] = JSON) -> Any:
    """A document of the right form but for one to three places: exchanged, removed, renamed, or with more in them."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(sorted(_places(document), key=repr) or [(None,)]))
        if last is None:
            return copy.deepcopy(draw(values))
        of = document
        for key in path:
            of = of[key]
        what = draw(st.sampled_from(["exchanged", "exchanged", "removed", "renamed", "added"]))
        if what == "exchanged" or isinstance(of, list):
            of[last] = copy.deepcopy(draw(values))  # what is sampled is no copy
        elif what == "added":
            of[draw(TEXTS)] = copy.deepcopy(draw(values))
        else:
            value = of.pop(last)
            if what == "renamed":
                of[draw(TEXTS)] = value
    return document


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield (*path, key)
        yield from _places(value, (*path, key))


def json_near(document: Any) -> st.SearchStrategy[bytes]:
    """A file that should have held it: anything, anything that is JSON, or nearly it."""
    written = as_json(document)
    twice = (
        st.sampled_from([written[:-1] + b"," + written[1:], b'{"a": 1, "a": 2}'])
        if written[:1] == b"{"
        else st.nothing()
    )
    return (
        st.binary(max_size=40) | st.sampled_from(TORN) | JSON.map(as_json) | near(document).map(as_json)
        | near(document).map(as_json) | damaged(written) | twice
    )  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were flipped, put between, cut out or cut off; also all of them, undamaged."""
    found = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)) | st.integers(0, min(200, max(0, len(found) - 1))))
        what = draw(st.sampled_from(["byte", "byte", "bytes", "cut", "end"]))
        if what == "byte" and found:
            found[at] = draw(st.integers(0, 255) | st.sampled_from([0, 0xFF, 0x7F]))
        elif what == "bytes":
            found[at:at] = draw(st.binary(max_size=8))
        elif what == "cut":
            del found[at : at + draw(st.integers(1, 50))]
        else:
            del found[at:]
    return bytes(found)


def fewer(share: int) -> settings:
    """For what takes long: so much fewer examples."""
    return settings(max_examples=max(5, settings.default.max_examples // share))


def assert_readable(error: BaseException, part: str = "", *, lines: int = 110) -> None:
    """In a few lines that can be printed, whatever was in the input; part: that must be in them."""
    told = str(error).split("\n")
    assert 1 <= len(told) <= lines, told[:3]
    assert told != [""]
    assert part in str(error)
    for line in told:
        assert line.isprintable(), repr(line)
        assert len(line) <= 2100
