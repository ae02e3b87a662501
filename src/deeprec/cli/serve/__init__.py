"""``deeprec serve …``: one command per server, each on one local port; all but vLLM's speak KServe's V1 and V2."""

from __future__ import annotations

import typer

from deeprec.cli.serve import events, policy, recommender, trm

app = typer.Typer(
    help="Serve a bundle: the recommender, or one of its parts.", no_args_is_help=True, rich_markup_mode="markdown"
)
for command in (recommender, trm, policy, events):
    command.register(app)
