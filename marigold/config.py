"""From YAML to typed values: strict about keys and about types, so that a misspelt override is refused."""

import dataclasses
import importlib
import inspect
import keyword
import sys
import typing
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PACKAGE = Path(__file__).resolve().parent


def installed(name: str) -> Path:
    """A file or folder that comes with the package, from whatever folder the command is given.

    `configs` and `data_split` stand beside the package in a checkout, and inside of it when it is installed.
    """
    beside = PACKAGE.parent / name
    is_checkout = (PACKAGE.parent / "pyproject.toml").is_file()
    return beside if is_checkout and name.split("/")[0] in ("configs", "data_split") else PACKAGE / name


# `${package:data_split/x.txt}` in a configuration
OmegaConf.register_new_resolver("package", lambda name: str(installed(name)), replace=True)

T = TypeVar("T")
Field = tuple[str, Any, Any]  # name, annotation, default (dataclasses.MISSING: there is none)


class ConfigError(ValueError):
    """A value of the configuration is missing, unknown or of the wrong type; the message names its key."""


def to_dataclass(cls: type[T], node: DictConfig, where: str = "") -> T:
    """Turn a configuration node into the dataclass `cls`, and nested nodes into nested dataclasses.

    `where` is the node's place in the whole configuration, for the message. Raises ConfigError on an
    unknown key, a missing key and a value of the wrong type, and what `cls` itself raises.
    """
    hints = typing.get_type_hints(cls)  # not the fields' own types, which may be strings
    fields = [(field.name, hints[field.name], field.default) for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return cls(**_checked(fields, node, where))


def build(node: DictConfig, where: str = "", **given: Any) -> Any:
    """Call the class or function named by the node's `_target_` with the node's other keys, type-checked.

    `given` are arguments that do not come from the configuration. Raises ConfigError as `to_dataclass`
    does, and for a `_target_` that cannot be imported.
    """
    function = imported(node.get("_target_"), f"{_place(where)}_target_")
    hints = typing.get_type_hints(function if inspect.isfunction(function) else function.__init__)
    fields = [
        (
            parameter.name,
            hints[parameter.name],
            dataclasses.MISSING if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in given
    ]
    rest = OmegaConf.masked_copy(node, [str(key) for key in node if key != "_target_"])
    rest._set_parent(node._get_parent())  # interpolations look upwards
    return function(**_checked(fields, rest, where), **given)


def imported(target: str | None, key: str) -> Any:
    """The class or function `package.module.name`, which the setting `key` gives; raises ConfigError."""
    module_name, _, name = (target or "").rpartition(".")
    if not module_name:
        raise ConfigError(f"{key}: expected 'package.module.name', got {target!r}")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: cannot import {target!r}: {error}") from error


def _checked(fields: list[Field], node: DictConfig, where: str) -> dict[str, Any]:
    """The node's values by field name, checked by OmegaConf, dataclasses built, lists made tuples."""
    given: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    # A key such as `from` is a Python keyword and cannot name a field.
    plain = {f"{key}_" if keyword.iskeyword(str(key)) else key: value for key, value in given.items()}
    values: dict[str, Any] = {}
    for name, hint, _ in fields:
        place = f"{where}.{name}" if where else name
        if dataclasses.is_dataclass(hint) and name in plain:
            values[name] = to_dataclass(hint, OmegaConf.create(plain.pop(name)), place)  # type: ignore[arg-type]
        elif isinstance(plain.get(name), dict) and (made := _value_dataclass(hint)):
            nodes = {key: OmegaConf.create(value) for key, value in plain.pop(name).items()}
            values[name] = {key: to_dataclass(made, node, f"{place}.{key}") for key, node in nodes.items()}
    flat = [field for field in fields if field[0] not in values]
    schema = dataclasses.make_dataclass(
        "Settings",
        [
            (name, hint) if default is dataclasses.MISSING else (name, hint, dataclasses.field(default=default))
            for name, hint, default in flat
        ],
        kw_only=True,
    )
    # OmegaConf checks and converts by a dataclass of flat fields, and names the key that does not fit.
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{_place(where)}missing key(s): {', '.join(missing)}")
        checked = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None)
        reason = str(error).splitlines()[0]
        known = ", ".join(name.rstrip("_") for name, _, _ in fields)
        raise ConfigError(f"{_place(where)}{str(key).rstrip('_')}: {reason}. Known keys: {known}") from error
    for name, hint, _ in flat:
        value = getattr(checked, name)
        # OmegaConf has one kind of sequence; a field annotated as a tuple gets a tuple.
        values[name] = tuple(value) if isinstance(value, list) and "tuple" in str(hint).lower() else value
    return values


def _value_dataclass(hint: Any) -> Any:
    """C of a `dict[str, C]` whose C is a dataclass, else None."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) is dict else ()
    return arguments[1] if arguments and dataclasses.is_dataclass(arguments[1]) else None


def _place(where: str) -> str:
    return f"{where}: " if where else ""


def choice(group: str, name: str) -> DictConfig:
    """The group's configuration under `GROUP=NAME` on the command line, where the user's `./configs` come first."""
    started = GlobalHydra.instance().is_initialized()
    with nullcontext() if started else initialize_config_dir(str(installed("configs")), version_base="1.3"):
        return compose(f"{group}/{name}")[group]


def task_overrides() -> list[str]:
    """The overrides of the command line as Hydra received them; none outside of a Hydra program."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def choices(group: str) -> list[str]:
    """The names that the command line chooses of a group, such as exp or recipe; none outside of a Hydra program."""
    # Hydra's own record of choices omits lists.
    overrides = OverridesParser.create().parse_overrides(task_overrides())
    found = [override.value() for override in overrides if override.key_or_group == group]
    return [str(name) for names in found for name in (names if isinstance(names, list) else [names])]


def swept_overrides() -> dict[str, str]:
    """In a multirun, this job's value of each key that is swept; else nothing."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return {}
    given = OverridesParser.create().parse_overrides([word for word in sys.argv[1:] if "=" in word and word[0] != "-"])
    swept = {override.key_or_group for override in given if override.is_sweep_override()}
    overrides = OverridesParser.create().parse_overrides(task_overrides())
    return {
        override.key_or_group: override.get_value_element_as_str()
        for override in overrides
        if override.key_or_group in swept
    }
