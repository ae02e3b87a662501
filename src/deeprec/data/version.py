"""The name of a source's contents, by which a training knows whether it has read them before."""

from __future__ import annotations

from pathlib import Path

from deeprec.config import DataConfig
from deeprec.errors import DataError
from deeprec.objects import is_s3, open_objects
from deeprec.store import config_digest, content_digest


def source_version(config: DataConfig) -> str:
    """64 hexadecimal digits that change with the source's files, their names or contents; or ``generated``.

    Objects of S3 are told apart by their ETags, so that none is fetched.

    Raises:
        DataError: there is nothing at ``data.path``, or a file of it cannot be read.
        StoreError: the store cannot be reached.
    """
    check_source(config)
    if config.source == "sample":
        return "generated"
    if is_s3(config.path):
        return config_digest({"objects": [(listed.name, listed.tag) for listed in open_objects(config.path).names()]})
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
        StoreError: the store cannot be reached.
    """
    if config.source == "sample":
        return
    if config.path and (open_objects(config.path).names() if is_s3(config.path) else Path(config.path).exists()):
        return
    named = f"there is nothing at {config.path}" if config.path else "data.path is empty"
    raise DataError(f"{named}; give the source's directory, or its s3:// address, with --set data.path=DIR")
