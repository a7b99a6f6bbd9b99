"""A working folder as a user has it, and commands typed there."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
BINARIES = Path(sys.executable).parent
TIMEOUT = 300  # seconds a command


@dataclass(frozen=True)
class Result:
    """What a command came to; code: its exit code, output: stdout and stderr together, seconds: wall time."""

    command: str
    code: int
    output: str
    seconds: float


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Of every command: one thread, no hub, no display, and the publishers' addresses redirected."""
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(HERE / "redirect")}
    path = f"{HERE / 'bin'}:{BINARIES}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MARIGOLD_", "PYTEST_"))}
    return {**kept, **ours, "PATH": path, **extra}


@contextmanager
def zygote(folder: Path, variables: Mapping[str, str]) -> Iterator[Path]:
    """The socket of a process that forks scripts; see zygote.py."""
    address = folder / "zygote"
    with (folder / "zygote.log").open("wb") as log:
        command = [sys.executable, str(HERE / "zygote.py"), str(address)]
        process = subprocess.Popen(command, env=dict(variables), stdout=log, stderr=log)
        try:
            while not address.exists():
                if process.poll() is not None:
                    raise RuntimeError((folder / "zygote.log").read_text())
                time.sleep(0.05)
            yield address
        finally:
            process.kill()
            process.wait()


@dataclass
class Workplace:
    """A copy of the repository's tracked files, as a git checkout, where commands are run.

    zygote: the socket of one. The first command of each script is a process of its own, later ones are forked.
    """

    folder: Path
    variables: dict[str, str]
    zygote: Path
    _started: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _count: int = 0

    @classmethod
    def create(cls, repository: Path, folder: Path, variables: Mapping[str, str], zygote: Path) -> "Workplace":
        names = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True).stdout
        for name in names.decode().split("\0"):
            if name and (repository / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(repository / name, folder / name)
        paths = f"{folder}:{variables['PYTHONPATH']}"
        identity = {f"GIT_{who}_{what}": "rehearsal" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        place = cls(folder, {**variables, **identity, "PYTHONPATH": paths}, zygote)
        place.shell("git init -q && git add -A && git commit -qm copy")
        return place

    def path(self, name: str) -> Path:
        return self.folder / name

    def run(self, command: str, **variables: str) -> Result:
        """Type one command, with more variables set, and wait for it: forked where possible."""
        words = shlex.split(command)
        if words[0] != "python" or set(command) & set(";&|<>$`\n"):
            return self.shell(command, **variables)
        with self._lock:
            first = words[1] not in self._started
            self._started.add(words[1])
        return self.shell(command, **variables) if first else self._forked(command, variables)

    def shell(self, command: str, **variables: str) -> Result:
        """As a process of its own, by bash."""
        start = time.perf_counter()
        process, log = self.start(command, **variables)
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Result(command, process.returncode, log.read_text(errors="replace"), time.perf_counter() - start)

    def start(self, command: str, **variables: str) -> tuple[subprocess.Popen[bytes], Path]:
        """The running bash, leader of its process group, and the file that its output goes to."""
        log = self._log()
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env={**self.variables, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process, log

    def stop(self) -> None:
        """End what was started and not waited for."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _forked(self, command: str, variables: Mapping[str, str]) -> Result:
        start, log = time.perf_counter(), self._log()
        _, script, *arguments = shlex.split(command)
        request = {
            "script": script,
            "arguments": arguments,
            "folder": str(self.folder),
            "environment": {**self.variables, **variables},
            "log": str(log),
            "seconds": TIMEOUT,
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2 * TIMEOUT)
            connection.connect(str(self.zygote))
            connection.sendall(json.dumps(request).encode() + b"\n")
            code = int(connection.recv(16) or -1)
        return Result(command, code, log.read_text(errors="replace"), time.perf_counter() - start)

    def _log(self) -> Path:
        with self._lock:
            self._count += 1
            folder = self.folder.parent / "logs"
            folder.mkdir(exist_ok=True)
            return folder / f"{self.folder.name}_{self._count:03d}.txt"
