"""The command line: ``deeprec run | config | data | features | trm | policy | explore | evaluate | serve | …``.

Errors of ours are translated here, once: one red line on standard error, and the error's exit status (2 for bad input,
1 for a failed gate or task). Commands import what they need when they run, so that ``deeprec --help`` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from deeprec import __version__
from deeprec.cli import (
    bundle,
    config,
    data,
    doctor,
    drift,
    evaluate,
    explore,
    features,
    pipeline,
    policy,
    release,
    run,
    schedule,
    serve,
    trm,
)
from deeprec.errors import DeepRecError
from deeprec.extras import missing

app = typer.Typer(
    name="deeprec",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"deeprec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """From a log of interactions and a catalogue to a served DeepRec recommender."""


run.register(app)
doctor.register(app)
drift.register(app)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(features.app, name="features")
app.add_typer(trm.app, name="trm")
app.add_typer(policy.app, name="policy")
explore.register(app)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(bundle.app, name="bundle")
app.add_typer(serve.app, name="serve")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(release.app, name="release")
app.add_typer(schedule.app, name="schedule")


def main() -> None:
    """Entry point of the ``deeprec`` command."""
    try:
        app()
    except DeepRecError as error:
        _fail(" ".join(str(error).split()), error.exit_code)
    except ModuleNotFoundError as error:
        cure = missing(error)
        if cure is None:
            raise
        _fail(cure, 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        _fail(f"the disk is full{where}; free some space and run again", 2)


def _fail(message: str, status: int) -> None:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error: {message}{plain}", file=sys.stderr)
    raise SystemExit(status)
