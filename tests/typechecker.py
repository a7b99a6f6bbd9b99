"""beartype as the tests use it: an int is a good float, as Python's own type system has it (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
