"""Where a run or result comes from: the commit, the source, the versions, and the files that were read."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from marigold.files import write_atomically

PACKAGE = Path(__file__).resolve().parent


def commit() -> str:
    """The commit of the source tree, with `-dirty` when tracked files differ from it; `unknown` without git."""
    head, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if head is None:
        return "unknown"
    return f"{head.decode().strip()}-dirty" if changed else head.decode().strip()


def source_hash() -> str:
    """sha256 over the package's Python files: rows of other code are not kept when an evaluation resumes."""
    digest = hashlib.sha256()
    # With the names, or two files that swap their content would go unnoticed.
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files_identity(path: Path) -> str:
    """sha256 over names, sizes and modification times of a file or of all files in a folder, without reading them."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            # Reading terabytes to hash them would take longer than evaluating them.
            status = file.stat()
            digest.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def write(folder: Path, processes: int) -> None:
    """Write provenance.json (commit, versions, command line) and, in a git checkout, changes.diff into `folder`."""
    facts = {
        "commit": commit(),
        "processes": processes,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers")},
        "argv": sys.argv,
    }
    write_atomically(folder / "provenance.json", json.dumps(facts, indent=1))
    if (diff := _git("diff", "HEAD")) is not None:
        write_atomically(folder / "changes.diff", diff)


def _git(*arguments: str) -> bytes | None:
    """The output of git in the source tree; None without git, or if the package is installed."""
    if not (PACKAGE.parent / "pyproject.toml").is_file():
        return None  # a repository around an installed package is somebody else's
    try:
        return subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
