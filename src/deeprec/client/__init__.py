"""Calling the servers from Python: typed answers, timeouts, a connection pool, retries within a deadline.

``Client`` blocks, ``AsyncClient`` awaits; they know the same calls. Neither torch nor KServe is imported. What goes
wrong is a ``ClientError`` of one of four kinds.
"""

from deeprec.client.client import AsyncClient, Client
from deeprec.client.exchange import RequestRefused, ServerBusy, ServerFailed, ServerUnreachable
from deeprec.client.stream import Step
from deeprec.errors import ClientError
from deeprec.wire.events import Event, RefusedEvent, Stored
from deeprec.wire.questions import RecommendQuestion, TrmOnlyQuestion
from deeprec.wire.reason import Reason, ReasonKind
from deeprec.wire.recommendation import (
    FoundItem,
    Milliseconds,
    Recommendation,
    RecommendedItem,
    TrmCall,
    TrmItem,
)

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "FoundItem",
    "Milliseconds",
    "Reason",
    "ReasonKind",
    "RecommendQuestion",
    "Recommendation",
    "RecommendedItem",
    "RefusedEvent",
    "RequestRefused",
    "ServerBusy",
    "ServerFailed",
    "ServerUnreachable",
    "Step",
    "Stored",
    "TrmCall",
    "TrmItem",
    "TrmOnlyQuestion",
]
