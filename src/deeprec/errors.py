"""Errors named by the boundary at which they arise.

A message says what was found, where, and what to do about it. They are raised with ``from`` where another
exception caused them, and are translated once: to an exit code in ``cli``, to an HTTP status in ``serving``.
"""


class DeepRecError(Exception):
    """Base of every error this package raises on purpose; ``exit_code`` is what the command line ends with."""

    exit_code = 2


class ConfigError(DeepRecError):
    """The configuration cannot be read, holds an unknown key, or contradicts itself."""


class DataError(DeepRecError):
    """Interactions or a catalogue cannot be read, or do not fit together."""


class ArtifactError(DeepRecError):
    """An artifact or bundle is missing, unreadable, of the wrong kind, or its contents differ from its hashes."""


class StoreError(DeepRecError):
    """Local or object storage refused a read or a write."""


class FeatureError(DeepRecError):
    """The feature store cannot be reached, or does not hold what was asked for."""


class TrmError(DeepRecError):
    """The TRM cannot be trained, loaded or queried as asked."""


class ProtocolError(DeepRecError):
    """A prompt, vocabulary or catalogue cannot be expressed in the exploration protocol."""


class PolicyError(DeepRecError):
    """A policy cannot be built, loaded or trained as asked."""


class RequestError(DeepRecError):
    """A request to a server is malformed, too large or names something unknown; answered with a 4xx."""

    status = 400


class ClientError(DeepRecError):
    """A server could not be called, or refused. ``deeprec.client`` has one kind for each way that it can go.

    ``status`` is the HTTP status, None without an answer; ``sentence`` is what the server said, or what happened.
    """

    exit_code = 1

    def __init__(self, message: str, *, status: int | None = None, sentence: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.sentence = sentence or message


class PipelineError(DeepRecError):
    """A pipeline cannot be compiled, or one of its tasks failed."""

    exit_code = 1


class ReleaseError(DeepRecError):
    """A release cannot go on, or the cluster refuses it. The message says what serves."""

    exit_code = 1


class CheckFailed(DeepRecError):
    """A gate did not pass. The message is the gate's reason, in one line."""

    exit_code = 1
