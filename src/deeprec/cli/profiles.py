"""Reading the configuration a command was given: a YAML file, or the name of a committed profile."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from deeprec.config import Config, load_config
from deeprec.errors import ConfigError

CONFIG_HELP = "A YAML file, or a profile that comes with the package: quickstart, ml-1m, cluster."
SET_HELP = "Override one key, for example --set trm.epochs=5; can be given several times."


def read_config(name: str, overrides: list[str] | None) -> Config:
    """The configuration of ``--config`` and ``--set``.

    Raises:
        ConfigError: there is no such file or profile, or the configuration is not valid.
    """
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
            return load_config(found, tuple(overrides or ()))
    return load_config(path, tuple(overrides or ()))
