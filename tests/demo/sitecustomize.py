"""On the PYTHONPATH of the served page: connections to other machines are refused, and logged in the file TRIED."""

import os
import socket
from typing import Any

_connect, _look_up = socket.socket.connect, socket.getaddrinfo


def _allowed(host: Any) -> None:
    if str(host) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "None", ""):
        with open(os.environ["TRIED"], "a") as file:
            file.write(f"{host}\n")
        raise OSError(f"{host} is not this machine")


def _connected(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX:
        _allowed(address[0])
    return _connect(self, address)


def _looked_up(host: Any, *arguments: Any, **options: Any) -> Any:
    _allowed(host)
    return _look_up(host, *arguments, **options)


socket.socket.connect = _connected  # type: ignore[method-assign]
socket.getaddrinfo = _looked_up
