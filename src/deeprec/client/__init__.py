"""Calling the servers from Python: typed answers, timeouts, a connection pool, retries within a deadline.

``Client`` blocks, ``AsyncClient`` awaits; they know the same calls. Neither torch nor KServe is imported. What goes
wrong is a ``ClientError`` of one of four kinds.
"""

from deeprec.client.answers import (
    Event,
    FoundItem,
    Milliseconds,
    Recommendation,
    RecommendedItem,
    RefusedEvent,
    Stored,
    TrmCall,
    TrmItem,
)
from deeprec.client.client import AsyncClient, Client
from deeprec.client.exchange import RequestRefused, ServerBusy, ServerFailed, ServerUnreachable
from deeprec.client.questions import RecommendQuestion, TrmOnlyQuestion
from deeprec.client.stream import Step
from deeprec.errors import ClientError

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "FoundItem",
    "Milliseconds",
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
