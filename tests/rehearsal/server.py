"""The publishers' servers: one server on this machine for a folder HOST/PATH."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from web_server import Served, serving


@contextmanager
def publishers_online(root: Path) -> Iterator[dict[str, str]]:
    """Serve `root`; yields the variables that redirect/sitecustomize.py needs."""
    files = {}
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            files[f"/{path.relative_to(root)}"] = Served(content)  # type: ignore[arg-type]
    hosts = sorted(path.name for path in root.iterdir())
    with serving(files) as server:
        yield {"REHEARSAL_PORT": str(server.server_address[1]), "REHEARSAL_HOSTS": " ".join(hosts)}
