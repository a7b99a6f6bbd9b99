"""From the publishers' downloads to the paper's table in miniature, by the commands that the documentation gives."""

from pathlib import Path

import pytest

from commands import Command, documented, in_blocks
from known import TABLE, VARIED
from marigold.miniature.random_base import build_components, save
from publishers import write_own_files, write_publishers
from rehearsal import Known, Rehearsal, find
from runner import Workplace, environment, zygote
from server import publishers_online

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", documented(ROOT), ids=lambda command: command.place)
def test_every_documented_command_is_in_the_table(command):
    assert find(TABLE, command), f"{command.place}: {command.text}"


def test_commands_of_blocks():
    text = """```bash
a  b=[c,d]   # a comment
x 'it # is' \\
    y

for i in 1 2; do
    z $i
done
```
not this
```python
nor this
```
```bash
#!/bin/sh
one
two
```"""
    assert list(in_blocks(text, "f")) == [
        Command("a b=[c,d]", "f:2"),
        Command("x 'it # is' y", "f:3"),
        Command("for i in 1 2; do\nz $i\ndone", "f:6"),
        Command("#!/bin/sh\none\ntwo", "f:15"),
    ]


def test_a_command_that_nobody_knows_is_a_failure():
    rehearsal = Rehearsal(TABLE, {})
    rehearsal.run([Command("python scripts/train.py +exp=[quickstart", "README.md:1")])
    assert [outcome.problem for outcome in rehearsal.outcomes] == ["not in the table"]
    assert rehearsal.tally().endswith("1 run, 0 stood in for, 1 failed")


def test_a_check_that_fails_without_a_word_is_a_failure(tmp_path):
    def fail(place, command):
        raise AssertionError

    rehearsal = Rehearsal([Known("get", "*", fail)], {"readme": Workplace(tmp_path, {}, tmp_path)})
    rehearsal.run([Command("a", "b")])
    assert "raise AssertionError" in rehearsal.outcomes[0].problem


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_the_downloads_to_the_table(tmp_path, capsys):
    write_publishers(tmp_path / "web")
    save(build_components(0, (8, 8, 8), (4, 4, 4, 4)), tmp_path / "base")
    with publishers_online(tmp_path / "web") as online, zygote(tmp_path, environment(online)) as fork:
        names = ("readme", "raw")
        places = {n: Workplace.create(ROOT, tmp_path / n, environment(online), fork) for n in names}
        write_own_files(*(place.folder for place in places.values()))
        rehearsal = Rehearsal(TABLE, places)
        try:
            rehearsal.run([*documented(ROOT), *VARIED])
        finally:
            for place in places.values():
                place.stop()
    with capsys.disabled():
        print(f"\n{rehearsal.tally()}")
    assert not [outcome for outcome in rehearsal.outcomes if outcome.problem]
