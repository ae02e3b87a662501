"""Our policy server's own routes on a real port, in a thread: what ``deeprec serve policy`` runs, without KServe."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager

import uvicorn
from fastapi import FastAPI

from deeprec.config import ServingConfig
from deeprec.serving.completions.completer import Completer
from deeprec.serving.completions.routes import Completions, router
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.server import guard

SERVING = ServingConfig(max_body_bytes=16 << 20)


@contextmanager
def serving_policy(policy, serving=SERVING, fingerprint="", **completer):
    """The address at which ``policy`` answers completions, and what answers; ``completer`` are its settings."""
    with ExitStack() as stack:
        found = Completer(policy, **{"batch": serving.batch, "waiting": serving.max_waiting, **completer})
        stack.callback(found.close)
        asyncio.run(found.started())
        completions = Completions(policy, found, serving, fingerprint)
        app = FastAPI()
        guard(app, serving, Admission(serving))
        app.include_router(router(completions))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(setattr, server, "should_exit", True)
        stack.callback(setattr, server, "force_exit", True)
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", completions
