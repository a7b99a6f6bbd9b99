"""Reading from a web server that may reset, ask for patience, ignore ranges or change the file meanwhile."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
import urllib3
from requests.adapters import HTTPAdapter

from marigold.data.errors import DataError

_CHUNK = 1 << 18  # what a reset in the middle can lose
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Network:
    """How patient to be, and how many connections to open at once.

    retries: tries after the first that bring nothing new; any progress resets the count. wait, max_wait: the
    back-off in seconds, doubled from one to the other. max_retry_after: the longest wait, in seconds, that a
    server may ask for. timeout: seconds without a byte.
    """

    retries: int
    wait: float
    max_wait: float
    max_retry_after: float
    timeout: float
    connections: int

    def __post_init__(self) -> None:
        if self.retries < 0 or self.wait < 0 or self.timeout <= 0 or self.connections < 1:
            raise ValueError(f"network: expected retries, wait >= 0, timeout > 0, connections >= 1, got {self}")


@dataclass(frozen=True)
class Version:
    """What tells one version of a file on a server from the next; None: the server does not say."""

    size: int | None
    etag: str | None
    modified: str | None

    def condition(self) -> str | None:
        """What If-Range may hold: a weak ETag may not (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def differs(self, other: "Version") -> bool:
        """Whether it is surely another version; a date decides only where there are no two ETags."""
        pairs = [(self.size, other.size), (self.etag, other.etag)]
        if None in pairs[1]:
            pairs[1] = (self.modified, other.modified)  # servers behind one address may differ in it
        return any(mine is not None and theirs is not None and mine != theirs for mine, theirs in pairs)


@dataclass(frozen=True)
class Answer:
    """The bytes from `start` on of the file in `version`; not `partial`: the server sends all of it, from 0."""

    start: int
    partial: bool
    version: Version
    chunks: Iterator[bytes]


class TransientError(Exception):
    """Worth another try. after: the seconds the server asks to wait. status: 416 if the range does not exist."""

    def __init__(self, reason: str, after: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.after, self.status = after, status


class Patience:
    """Waits between the tries at one address, longer each time, until they have brought nothing too often."""

    def __init__(self, url: str, network: Network, sleep: Callable[[float], None]) -> None:
        self._url, self._network, self._sleep = url, network, sleep
        self._tries, self._furthest = 0, 0

    def reached(self, position: int) -> None:
        """Only a byte never reached before is progress: else a server that always breaks off is never left."""
        if position > self._furthest:
            self._tries, self._furthest = 0, position

    def wait(self, error: TransientError) -> None:
        """Raises DataError when the patience is at its end."""
        network = self._network
        if self._tries >= network.retries:
            raise DataError(f"{self._url}: {error}; given up after {self._tries + 1} tries. Run again to go on")
        if error.after is not None and error.after > network.max_retry_after:
            raise DataError(f"{self._url}: the server asks to come back in {error.after:.0f} s. Run again then")
        pause = min(network.wait * 2**self._tries, network.max_wait)
        self._tries += 1
        self._sleep(max(pause, error.after or 0))


class Client:
    """One pool of connections, shared by threads. sleep: how to wait, in seconds."""

    def __init__(self, network: Network, sleep: Callable[[float], None] = time.sleep) -> None:
        self.network, self._sleep = network, sleep
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=network.connections))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def patience(self, url: str) -> Patience:
        return Patience(url, self.network, self._sleep)

    @contextmanager
    def get(self, url: str, start: int = 0, stop: int | None = None, known: Version | None = None) -> Iterator[Answer]:
        """Ask once for the bytes [start, stop) of `url`, if it still is the `known` version, else for all of it.

        Raises TransientError for what another try may mend, also while the chunks are read; DataError else.
        """
        # Compressed on the way, the bytes would have no ranges and another size.
        headers = {"Accept-Encoding": "identity"}
        if start > 0 or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if known is not None and (condition := known.condition()):
                headers["If-Range"] = condition
        with self._ask(url, headers) as response:
            _check_status(url, response)
            yield _answer(response, start)

    def version(self, url: str) -> tuple[Version, bool]:
        """The file's version, and whether the server gives ranges; asks for one byte, with patience."""
        patience = self.patience(url)
        while True:
            try:
                with self.get(url, 0, 1) as answer:
                    return answer.version, answer.partial
            except TransientError as error:
                if error.status == 416:  # an empty file has no first byte
                    return Version(0, None, None), False
                patience.wait(error)

    def read(self, url: str, start: int, stop: int, known: Version) -> bytes:
        """Bytes [start, stop) of the `known` version, with patience. Raises DataError if it has changed."""
        patience = self.patience(url)
        while True:
            try:
                with self.get(url, start, stop, known) as answer:
                    if not answer.partial or known.differs(answer.version):
                        raise DataError(f"{url}: changed on the server while it was read. Run again")
                    data = b"".join(answer.chunks)
                if len(data) != stop - start:
                    raise TransientError(f"{len(data)} bytes came of {stop - start}")
                return data
            except TransientError as error:
                patience.wait(error)

    def _ask(self, url: str, headers: dict[str, str]) -> requests.Response:
        try:
            return self._session.get(url, headers=headers, stream=True, timeout=self.network.timeout)
        except requests.exceptions.SSLError as error:  # a ConnectionError too, but no try mends a certificate
            raise DataError(f"{url}: no trusted connection: {error}") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise TransientError(f"no connection: {_innermost(error)}") from error
        except requests.RequestException as error:
            raise DataError(f"{url}: {error}") from error


def _check_status(url: str, response: requests.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    said = f"the server says {status} {response.reason or ''}".rstrip()
    if status in _TRY_AGAIN or status == 416:
        raise TransientError(said, _retry_after(response.headers.get("Retry-After")), status)
    hint = "the file is not (or no longer) there; give its new address" if status in (404, 410) else "cannot be read"
    raise DataError(f"{url}: {said}: {hint}")


def _answer(response: requests.Response, start: int) -> Answer:
    headers = response.headers
    length = headers.get("Content-Length", "")
    version = Version(int(length) if length.isdigit() else None, headers.get("ETag"), headers.get("Last-Modified"))
    if response.status_code == 200:
        return Answer(0, False, version, _chunks(response))
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise TransientError(f"asked for byte {start}, the answer is of {headers.get('Content-Range')!r}")
    version = replace(version, size=int(match[2]) if match[2] != "*" else None)
    return Answer(start, True, version, _chunks(response))


def _chunks(response: requests.Response) -> Iterator[bytes]:
    try:
        # Not iter_content: it would unpack a .tar.gz that the server calls Content-Encoding: gzip.
        yield from response.raw.stream(_CHUNK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransientError(f"broken off: {_innermost(error)}") from error


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number of them or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _innermost(error: BaseException) -> str:
    """The system's own words, out of the three wrappers around them."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
