"""The name of a source's contents, by which a training knows whether it has read them before."""

from __future__ import annotations

from pathlib import Path

from deeprec.config import DataConfig
from deeprec.errors import DataError
from deeprec.store import content_digest


def source_version(config: DataConfig) -> str:
    """64 hexadecimal digits that change with the source's files, their names or contents; or ``generated``.

    Raises:
        DataError: there is nothing at ``data.path``, or a file of it cannot be read.
    """
    check_source(config)
    if config.source == "sample":
        return "generated"
    try:
        return content_digest(Path(config.path))
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or config.path}: {error.strerror}; check its permissions"
        ) from error


def check_source(config: DataConfig) -> None:
    """See that there is something to read; nothing is read yet.

    Raises:
        DataError: there is not.
    """
    if config.source == "sample" or (config.path and Path(config.path).exists()):
        return
    named = f"there is nothing at {config.path}" if config.path else "data.path is empty"
    raise DataError(f"{named}; give the source's directory with --set data.path=DIR")
