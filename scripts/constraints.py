"""Write constraints.txt from this environment: the exact version of every package, and what needs it.

make constraints
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

HEAD = "# Exact versions that CI runs, and what needs each; `make constraints` writes this from the environment.\n"


def canonical(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: set[str]) -> list[Requirement]:
    """What a package needs here, with these extras."""
    found = map(Requirement, distribution(name).requires or [])
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [one for one in found if one.marker is None or any(one.marker.evaluate(each) for each in environments)]


def closure() -> dict[str, set[str]]:
    """Every installed package that marigold with all its extras needs -> what needs it."""
    provided = set(distribution("marigold").metadata.get_all("Provides-Extra") or [])
    users: dict[str, set[str]] = {}
    todo, seen = [("marigold", frozenset(provided))], set()
    while todo:
        user, extras = todo.pop()
        if (user, extras) in seen:
            continue
        seen.add((user, extras))
        for requirement in needed(user, set(extras)):
            name = canonical(requirement.name)
            try:
                distribution(name)
            except PackageNotFoundError:
                continue  # needed on another platform, or of an extra that is not installed
            users.setdefault(name, set()).add(user)
            todo.append((name, frozenset(requirement.extras)))
    users.pop("marigold", None)
    return users


if __name__ == "__main__":
    lines = [
        f"{name}=={distribution(name).version.partition('+')[0]}  # {', '.join(sorted(users))}\n"
        for name, users in sorted(closure().items())
    ]
    Path("constraints.txt").write_text(HEAD + "".join(lines))
    print(f"constraints.txt: {len(lines)} packages")
