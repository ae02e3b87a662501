"""What a server is made of: what answers on which port, and what is done before the first answer and after the last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deeprec.config import ServingConfig
from deeprec.serving.http.admission import Admission
from deeprec.serving.metrics import ServingMetrics

if TYPE_CHECKING:
    from fastapi import APIRouter

    from deeprec.serving.http.model import JsonModel

Hook = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Port:
    """What answers on one port: models over V1 and V2, and routers, whose paths come before KServe's own."""

    models: Sequence[JsonModel] = ()
    routers: Sequence[APIRouter] = ()
    metrics: bool = False
    """Whether ``/metrics`` is here."""


@dataclass(frozen=True)
class Service:
    """What a server answers with, and what is done before the first answer and after the last."""

    serving: ServingConfig
    public: Port
    admission: Admission
    """The server's places, for who else wants to know of them."""
    admin: Port | None = None
    """What is on ``serving.admin_port``; None where it is on none."""
    metrics: ServingMetrics = field(default_factory=ServingMetrics)
    start: Hook | None = None
    """Prepares what serves, in the server's event loop, while the port is open and nothing is ready."""
    close: Hook | None = None
    """Puts it away after the last answer, or where ``start`` was given up."""
    alive: Callable[[], bool] = lambda: True
    """Whether the process can still recover."""
    introduction: Callable[[str], str] | None = None
    """From the server's address to what people are told when it is ready."""

    @property
    def models(self) -> tuple[JsonModel, ...]:
        """Every port's."""
        return (*self.public.models, *(self.admin.models if self.admin else ()))


def ports(serving: ServingConfig, models: Sequence[JsonModel], behind: Port) -> tuple[Port, Port | None]:
    """The public port with its models, and what is behind doors on the admin port, or beside them without one."""
    if serving.admin_port is not None:
        return Port(models), behind
    return Port([*models, *behind.models], behind.routers, behind.metrics), None
