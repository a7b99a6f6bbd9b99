"""Runs commands that are known, stage by stage, two at a time, and keeps every failure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from commands import Command
from runner import Result, Workplace

STAGES = ("get", "raw", "unpack", "prepare", "check", "train", "train more", "evaluate", "evaluate more", "table")
Act = Callable[[Workplace, Command], Sequence[Command] | None]
Check = Callable[[Workplace, Result], Sequence[Command] | None]


@dataclass(frozen=True)
class Known:
    """How and when a command is run.

    text: the command's, without `python scripts/`, * for anything. act: runs it and asserts what it leaves behind;
    returns commands to go on with, such as one that was printed. where: which workplace.
    """

    stage: str
    text: str
    act: Act
    where: str = "readme"

    def fits(self, command: Command) -> bool:
        pattern = ".*".join(map(re.escape, self.text.split("*")))
        return re.fullmatch(pattern, command.text.removeprefix("python scripts/"), re.DOTALL) is not None


def typed(stage: str, text: str, check: Check, shorten: str = "", where: str = "readme") -> Known:
    """A command that is typed as it stands, with the overrides `shorten` behind it."""
    return Known(stage, text, type_it(check, shorten), where)


def type_it(check: Check, shorten: str = "", old: str = "", new: str = "") -> Act:
    """`old`, which needs what this machine lacks, is replaced by `new`."""

    def act(place: Workplace, command: Command) -> Sequence[Command] | None:
        result = place.run(f"{command.text.replace(old, new)} {shorten}".strip())
        assert result.code == 0, f"exit code {result.code}: {result.tail()}"
        return check(place, result)

    return act


def find(table: Sequence[Known], command: Command) -> Known:
    """The first entry for this command; raises LookupError without one."""
    for known in table:
        if known.fits(command):
            return known
    raise LookupError(f"tests/rehearsal/known.py has no entry for {command.text!r} ({command.place})")


@dataclass
class Rehearsal:
    """places: by name. errors: with the command in a note. used: the entries of `table` that were needed."""

    table: Sequence[Known]
    places: Mapping[str, Workplace]
    errors: list[BaseException] = field(default_factory=list)
    used: list[Known] = field(default_factory=list)

    def run(self, commands: Iterable[Command]) -> None:
        """Everything of one stage before the next; a failure stops nothing."""
        stages = [(find(self.table, command).stage, command) for command in commands]
        for stage in STAGES:
            with ThreadPoolExecutor(2) as pool:
                futures = [pool.submit(self._do, command) for its, command in stages if its == stage]
            self.errors += [error for future in futures if (error := future.exception())]

    def _do(self, command: Command, where: str | None = None) -> None:
        known = find(self.table, command)
        self.used.append(known)
        try:
            following = known.act(self.places[where or known.where], command)
        except Exception as error:
            error.add_note(f"{command.place}: {command.text}")
            raise
        for one in following or ():
            self._do(one, where or known.where)
