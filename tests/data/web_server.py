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
    answer, None for none; a negative one resets the connection instead of closing it. lie: the size announced.
    """

    data: bytes
    etag: str | None = '"1"'
    modified: str | None = None
    ranges: bool = True
    if_range: bool = True
    chunked: bool = False
    encoding: str | None = None
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=list)
    lie: int | None = None
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)  # (Range, If-Range) of each request
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def do_GET(self) -> None:
        served = self.server.files.get(self.path)
        if served is None:
            return self._refuse(404, {})
        served.asked.append((self.headers["Range"], self.headers["If-Range"]))
        probe = self.headers["Range"] == "bytes=0-0"
        if served.refusals and not probe:
            return self._refuse(*served.refusals.pop(0))
        start, stop, status = 0, len(served.data), 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        condition = self.headers["If-Range"]
        same = condition is None or not served.if_range or condition in (served.etag, served.modified)
        if match and served.ranges and same:
            start, status = int(match[1]), 206
            stop = min(stop, int(match[2]) + 1) if match[2] else stop
            if start >= len(served.data):
                return self._refuse(416, {"Content-Range": f"bytes */{len(served.data)}"})
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(served.data)}")
        self._send(served, served.data[start:stop], None if probe else served.lie, probe)
        return None

    def _send(self, served: Served, body: bytes, lie: int | None, probe: bool) -> None:
        for name, value in (
            ("ETag", served.etag),
            ("Last-Modified", served.modified),
            ("Content-Encoding", served.encoding),
        ):
            if value is not None:
                self.send_header(name, value)
        if served.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) if lie is None else lie))
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts and not probe else None
        part = body if cut is None else body[: abs(cut)]
        served.sent += len(part)
        try:
            if served.chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if part else b"")
                self.wfile.write(b"0\r\n\r\n" if cut is None else b"")
            else:
                self.wfile.write(part)
        except OSError:
            self.close_connection = True  # a client that only wanted the headers
            return
        if cut is not None or lie is not None:
            self.close_connection = True
            if cut is not None and cut < 0:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
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
