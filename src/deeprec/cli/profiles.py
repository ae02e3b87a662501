"""Reading the configuration a command was given: a YAML file, the name of a committed profile, or neither."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from deeprec.config import Config, apply_override, load_config, parse_config
from deeprec.config.environment import environment_overrides
from deeprec.errors import ConfigError

CONFIG_HELP = (
    "A YAML file, or a profile that comes with the package: quickstart, ml-1m, ml-1m-accurate, qwen2.5-7b, cluster."
)
SET_HELP = "Override one key, for example --set trm.epochs=5; can be given several times."


def read_config(name: str | None, overrides: list[str] | None) -> Config:
    """The configuration of ``--config``, the environment over it and ``--set`` over both; without a name, the defaults.

    Raises:
        ConfigError: there is no such file or profile, or the configuration is not valid.
    """
    asked = (*environment_overrides(Config, os.environ), *(overrides or ()))
    if name is None:
        raw: dict[str, Any] = {}
        for override in asked:
            apply_override(raw, override)
        return parse_config(raw, "command line and environment")
    path = Path(name)
    if not path.exists():
        profiles = sorted(
            file.name.removesuffix(".yaml")
            for file in resources.files("deeprec.configs").iterdir()
            if file.name.endswith(".yaml")
        )
        if name not in profiles:
            raise ConfigError(f"there is no file {name}, and no such profile; profiles: {', '.join(profiles)}")
        with resources.as_file(resources.files("deeprec.configs") / f"{name}.yaml") as found:
            return load_config(found, asked)
    return load_config(path, asked)


def pair(text: str, option: str, example: str) -> tuple[str, str]:
    """Key and value of an option's ``key=value``.

    Raises:
        ConfigError: it is not of that form.
    """
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise ConfigError(f"{option} {text!r} is not of the form key=value; write for example {option} {example}")
    return key, value
