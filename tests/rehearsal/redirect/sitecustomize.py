"""On the PYTHONPATH of every rehearsed command: requests to the publishers go to a server on this machine.

REHEARSAL_PORT: the server's; REHEARSAL_HOSTS: the publishers. Any other host is refused.
"""

import os
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

_send = HTTPAdapter.send


def _redirected(self: HTTPAdapter, request: requests.PreparedRequest, **options: Any) -> requests.Response:
    address = urlsplit(str(request.url))
    if address.hostname not in os.environ.get("REHEARSAL_HOSTS", "").split():
        raise requests.exceptions.InvalidURL(f"rehearsal: {address.hostname} is not a publisher")
    path = address.path.replace("//", "/")
    request.url = f"http://127.0.0.1:{os.environ['REHEARSAL_PORT']}/{address.hostname}{path}"
    return _send(self, request, **{**options, "proxies": {}})


HTTPAdapter.send = _redirected  # type: ignore[method-assign]
