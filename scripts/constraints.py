"""Write constraints.txt from this environment: the exact version of every package, and what needs it.

make constraints
"""

from collections import defaultdict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAD = "# Exact versions that CI runs, and what needs each; `make constraints` writes this from the environment.\n"


def needed(name: str, extras: frozenset[str]) -> list[Requirement]:
    """The packages that `name` needs on this platform, with these extras."""
    found = map(Requirement, distribution(name).requires or [])
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [one for one in found if one.marker is None or any(one.marker.evaluate(each) for each in environments)]


def closure() -> dict[str, set[str]]:
    """Every installed package that marigold with all its extras needs -> the packages that need it."""
    users: dict[str, set[str]] = defaultdict(set)
    todo = {("marigold", frozenset(distribution("marigold").metadata.get_all("Provides-Extra") or []))}
    seen = set()
    while todo:
        seen.add(found := todo.pop())
        for requirement in needed(*found):
            name = canonicalize_name(requirement.name)
            try:
                distribution(name)
            except PackageNotFoundError:
                continue  # needed on another platform, or by an extra that is not installed
            users[name].add(found[0])
            todo |= {(name, frozenset(requirement.extras))} - seen
    users.pop("marigold", None)
    return users


if __name__ == "__main__":
    lines = [
        f"{name}=={distribution(name).version.partition('+')[0]}  # {', '.join(sorted(users))}\n"
        for name, users in sorted(closure().items())
    ]
    Path("constraints.txt").write_text(HEAD + "".join(lines))
    print(f"constraints.txt: {len(lines)} packages")
