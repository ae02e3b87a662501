"""Keys of the configuration from the environment: ``DEEPREC__SERVING__PORT=9000`` is ``serving.port``, its value YAML.

For pods, whose settings come from a ConfigMap or a Secret. A file's values give way to the environment's, and those to
``--set`` and options. Every key of a fixed name has a variable; what is a mapping of names of one's own (columns, node
labels) is one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import yaml

from deeprec.config.explained import PREFIX, keys, variable
from deeprec.config.section import Section
from deeprec.errors import ConfigError


def environment_overrides(tree: type[Section], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The overrides ``section.key=value`` that the variables beginning with ``PREFIX`` make, in the order of keys.

    Raises:
        ConfigError: a variable names no key, and the message the nearest; or its value is not YAML.
    """
    known = {variable(key.name): key.name for key in sorted(keys(tree), key=lambda key: key.name) if not key.is_section}
    given = {name: text for name, text in environment.items() if name.startswith(PREFIX)}
    for name, text in given.items():
        if name not in known:
            near = get_close_matches(name, known, 1, 0.0)
            raise ConfigError(f"the environment variable {name} names no key of the configuration; nearest: {near[0]}")
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise ConfigError(f"the environment variable {name}: the value is not valid YAML: {problem}") from error
    return tuple(f"{key}={given[name]}" for name, key in known.items() if name in given)
