"""What the stand-in servers share: one that listens on loopback, in a thread of its own, until a block ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler],
    stand_in: object,
    *,
    port: int = 0,
    server_class: type[ThreadingHTTPServer] = ThreadingHTTPServer,
) -> Iterator[int]:
    """Gives the port (0: one that is free). Each request's handler has `stand_in`."""
    server = server_class(("127.0.0.1", port), type("_Bound", (handler,), {"stand_in": stand_in}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
