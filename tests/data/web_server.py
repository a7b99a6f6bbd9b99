"""A web server on this machine that misbehaves as the tests ask: resets, no ranges, refusals, changed files."""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file, and how the server treats it.

    refusals: (status, headers) of the first answers. cuts: bytes after which an answer breaks off, one per
    answer, None for none; a negative one resets the connection instead of closing it. Neither holds for requests of
    the first byte alone. lie: the size announced. later: after so many requests, the version "2".
    """

    data: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    ranges: bool = True
    if_range: bool = True
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=list)
    lie: int | None = None
    later: tuple[int, bytes] | None = None
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)  # (Range, If-Range) of each request
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def do_GET(self) -> None:
        served = self.server.files.get(self.path)
        if served is None:
            return self._head(404, {"Content-Length": "0"})
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        served.asked.append((wanted, condition))
        if served.later and len(served.asked) > served.later[0]:
            served.data, served.headers, served.later = served.later[1], {"ETag": '"2"'}, None
        whole = Served(served.data, served.headers) if wanted == "bytes=0-0" else served
        if whole.refusals:
            status, headers = whole.refusals.pop(0)
            return self._head(status, {"Content-Length": "0", **headers})
        headers, size = dict(served.headers), len(served.data)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        same = condition is None or not served.if_range or condition in served.headers.values()
        if not (match and served.ranges and same):
            return self._send(200, headers, served.data, whole, served)
        start, stop = int(match[1]), min(size, int(match[2] or size) + 1)
        if start >= size:
            return self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return self._send(206, headers, served.data[start:stop], whole, served)

    def _send(self, status: int, headers: dict[str, str], body: bytes, how: Served, served: Served) -> None:
        self._head(status, headers | {"Content-Length": str(how.lie or len(body))})
        cut = how.cuts.pop(0) if how.cuts else None
        part = body if cut is None else body[: abs(cut)]
        served.sent += len(part)
        self.close_connection = cut is not None or how.lie is not None
        try:
            self.wfile.write(part)
        except OSError:
            self.close_connection = True  # a client that only wanted the headers
        if cut is not None and cut < 0:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self, files: dict[str, Served]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the resets are asked for


@contextmanager
def serving(files: dict[str, Served]) -> Iterator[Server]:
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
