"""From YAML to typed values: strict about keys and about types, so that a misspelt override is refused."""

import dataclasses
import importlib
import inspect
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


class ConfigError(ValueError):
    """A value of the configuration is missing, unknown or of the wrong type; the message names its key."""


def to_dataclass(cls: type[T], node: DictConfig, where: str = "") -> T:
    """Turn a configuration node into the dataclass `cls`.

    `where` is the node's place in the whole configuration, for the message. Raises ConfigError on an
    unknown key, a missing key and a value of the wrong type.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.to_container(node, resolve=True))
        missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{_place(where)}missing key(s): {', '.join(missing)}")
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None)
        reason = str(error).splitlines()[0]
        known = ", ".join(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        raise ConfigError(f"{_place(where)}{key}: {reason}. Known keys: {known}") from error
    # OmegaConf has one kind of sequence; a field annotated as a tuple gets a tuple.
    tuples = {
        field.name: tuple(getattr(value, field.name))
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if isinstance(getattr(value, field.name), list) and "tuple" in str(field.type).lower()
    }
    return dataclasses.replace(value, **tuples) if tuples else value  # type: ignore[type-var,return-value]


def build(node: DictConfig, where: str = "", **given: Any) -> Any:
    """Call the class or function named by the node's `_target_` with the node's other keys, type-checked.

    `given` are arguments that do not come from the configuration. Raises ConfigError as `to_dataclass`
    does, and for a `_target_` that cannot be imported.
    """
    node = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(node, resolve=True)))
    target = node.get("_target_")
    if not target or "." not in target:
        raise ConfigError(f"{_place(where)}_target_: expected 'package.module.name', got {target!r}")
    module_name, name = target.rsplit(".", 1)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{_place(where)}_target_: cannot import {target!r}: {error}") from error
    hints = inspect.get_annotations(
        function if inspect.isfunction(function) else function.__init__, eval_str=True
    )
    fields = [
        (parameter.name, hints[parameter.name])
        if parameter.default is inspect.Parameter.empty
        else (parameter.name, hints[parameter.name], dataclasses.field(default=parameter.default))
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in given
    ]
    schema = dataclasses.make_dataclass(f"{name} arguments", fields, kw_only=True)
    values = {key: value for key, value in node.items() if key != "_target_"}
    arguments: Any = to_dataclass(schema, OmegaConf.create(values), where)
    return function(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(schema)}, **given
    )


def _place(where: str) -> str:
    return f"{where}: " if where else ""
