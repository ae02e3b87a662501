"""Trajectories on disk: a Parquet file, written a row group at a time and read the same way.

One row per rollout with token ids, loss mask, log-probabilities (float32), text, calls, answer, end and every reward
part with its weight. Reading gives equal ``Trajectory`` values back, log-probabilities to float32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from deeprec.errors import ArtifactError, StoreError
from deeprec.types import Call, EndReason, JsonDict, RetrievedItem, RewardPart, Trajectory

_CALL = pa.struct(
    [
        ("preference", pa.string()),
        ("phrases", pa.list_(pa.string())),
        ("item_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
    ]
)
_REWARD = pa.struct([("name", pa.string()), ("value", pa.float64()), ("weight", pa.float64())])
SCHEMA = pa.schema(
    [
        ("example_key", pa.string()),
        ("user_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
        ("logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("calls", pa.list_(_CALL)),
        ("answer", pa.list_(pa.string())),
        ("end", pa.string()),
        ("rewards", pa.list_(_REWARD)),
    ]
)


class TrajectoryWriter:
    """Context manager that writes batches as row groups; the file appears, whole, when the block ends well.

    Raises:
        StoreError: the file system refuses a write; nothing is left behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._writer: Any = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._partial, SCHEMA, compression="zstd")
        except OSError as error:
            raise self._refused(error) from error
        return self

    def write(self, trajectories: Sequence[Trajectory]) -> None:
        """Append one row group."""
        if not trajectories:
            return
        try:
            self._writer.write_table(pa.Table.from_pylist([_row(one) for one in trajectories], schema=SCHEMA))
        except OSError as error:
            raise self._refused(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                os.replace(self._partial, self._path)
        except OSError as problem:
            if kind is None:
                raise self._refused(problem) from problem
        finally:
            self._partial.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(f"cannot write trajectories to {self._path}: {error}; free space or choose another directory")


def write_trajectories(path: Path, trajectories: Sequence[Trajectory], *, rows_per_group: int = 1024) -> None:
    """Write all at once; see ``TrajectoryWriter``."""
    with TrajectoryWriter(path) as writer:
        for start in range(0, len(trajectories), rows_per_group):
            writer.write(trajectories[start : start + rows_per_group])


def read_trajectories(path: Path, *, batch_size: int = 256) -> Iterator[Trajectory]:
    """Yield the file's trajectories in order; a row group as it is stored and a batch are in memory at a time.

    Raises:
        ArtifactError: the file is missing, is no Parquet file, or does not hold trajectories.
    """
    try:
        # Arrow's own default, to read ahead, fetches the whole file before the first row.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if file.schema_arrow.names != SCHEMA.names:
                raise ArtifactError(f"{path} does not hold trajectories; its columns are {file.schema_arrow.names}")
            for batch in file.iter_batches(batch_size=batch_size):
                for row in batch.to_pylist():
                    yield _trajectory(row)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"cannot read trajectories from {path}: {error}; run the task that writes it") from error


def _row(trajectory: Trajectory) -> JsonDict:
    row: JsonDict = {name: getattr(trajectory, name) for name in SCHEMA.names}
    row["end"] = str(trajectory.end)
    row["calls"] = [
        {
            "preference": call.preference,
            "phrases": call.phrases,
            "item_ids": [item.item_id for item in call.items],
            "scores": [item.score for item in call.items],
        }
        for call in trajectory.calls
    ]
    row["rewards"] = [{"name": part.name, "value": part.value, "weight": part.weight} for part in trajectory.rewards]
    return row


def _trajectory(row: JsonDict) -> Trajectory:
    calls = tuple(
        Call(
            call["preference"],
            tuple(call["phrases"]),
            tuple(RetrievedItem(*pair) for pair in zip(call["item_ids"], call["scores"], strict=True)),
        )
        for call in row["calls"]
    )
    return Trajectory(
        example_key=row["example_key"],
        user_id=row["user_id"],
        prompt_ids=tuple(row["prompt_ids"]),
        completion_ids=tuple(row["completion_ids"]),
        loss_mask=tuple(row["loss_mask"]),
        logprobs=tuple(row["logprobs"]),
        text=row["text"],
        calls=calls,
        answer=tuple(row["answer"]),
        end=EndReason(row["end"]),
        rewards=tuple(RewardPart(**part) for part in row["rewards"]),
    )
