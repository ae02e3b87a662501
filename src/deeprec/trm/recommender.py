"""The TRM in Python: train or load one, then ask it for a history given by titles, a preference, or both.

    trm = TrmRecommender.load("models/trm")
    for item in trm.recommend(history=["Toy Story (1995)"], preference="comedy; 1990s", k=5, filters=["year >= 1990"]):
        print(f"{item.score:.2f}  {item.title}")

Items are named by id or title (see ``trm.asking``). A history gives personal recommendations, a preference alone what
matches it, and neither the most popular items. Safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deeprec.config import TextConfig, TrmConfig
from deeprec.store import read_artifact
from deeprec.trm.artifact import TrainedTrm, TrmRecord, read_record, read_trm, write_trm
from deeprec.trm.asking import ItemNames, parse_filter, parse_preference
from deeprec.trm.extend import extend
from deeprec.types import Catalogue, Embedder, Filter, Item, Query, RetrievedItem

if TYPE_CHECKING:
    from deeprec.trm.retriever import TrmRetriever
    from deeprec.trm.training import Progress


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended item: ``rank`` is 1-based, ``score`` in [0, 1] as in ``RetrievedItem``."""

    rank: int
    item_id: str
    title: str
    score: float
    phrases: tuple[str, ...] = ()


class TrmRecommender:
    """A TRM that answers by itself."""

    def __init__(self, trained: TrainedTrm, embedder: Embedder, record: TrmRecord) -> None:
        """Make it ready; ``record`` is what ``save`` writes beside it.

        Raises:
            TrmError: the text encoder is not the one the TRM was trained with.
        """
        from deeprec.trm.retriever import TrmRetriever

        self._trained, self._embedder, self._record = trained, embedder, record
        self._retriever = TrmRetriever(trained, trained.catalogue, embedder)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TRM artifact, or the TRM of a bundle.

        Raises:
            ArtifactError: there is neither, or it cannot be read.
            TrmError: its text encoder cannot be loaded.
        """
        from deeprec.trm.text import load_embedder

        place = trm_directory(Path(path))
        record = read_record(place)
        return cls(read_trm(place), load_embedder(record.text), record)

    @classmethod
    def train(
        cls,
        dataset: str | Path,
        out: str | Path,
        trm: TrmConfig | None = None,
        text: TextConfig | None = None,
        *,
        seed: int = 0,
        standalone: bool = True,
        progress: Progress | None = None,
    ) -> Self:
        """Train on a dataset directory, write the artifact ``out``, and load it.

        A training that was killed goes on where it was when it is called again; see ``trm.run``.

        Raises:
            ArtifactError, DataError: the dataset cannot be read.
            TrmError: training failed.
            StoreError: ``out`` cannot be written.
        """
        from deeprec.trm.run import train_directory

        train_directory(
            Path(dataset),
            trm or TrmConfig(),
            text or TextConfig(),
            seed,
            Path(out),
            standalone=standalone,
            progress=progress,
        )
        return cls.load(out)

    @property
    def catalogue(self) -> Catalogue:
        """The items it recommends."""
        return self._trained.catalogue

    @property
    def retriever(self) -> TrmRetriever:
        """The port the loop, evaluation and the servers use; asks in batches."""
        return self._retriever

    @cached_property
    def names(self) -> ItemNames:
        """Finds items by id or title."""
        return ItemNames(self.catalogue)

    def recommend(
        self,
        history: Sequence[str] = (),
        preference: str | Sequence[str] = (),
        k: int = 10,
        *,
        filters: Iterable[str | Filter] = (),
        exclude: Iterable[str] = (),
        allow_seen: bool = False,
    ) -> list[Recommendation]:
        """The best ``k`` items, best first; fewer when exclusion and filters leave fewer.

        Args:
            history: item ids or titles, oldest first; not recommended again unless ``allow_seen``.
            preference: phrases, as one text separated by ``;`` or as a sequence.
            filters: conditions such as ``year >= 1990`` that every item satisfies.
            exclude: item ids or titles that are not recommended.

        Raises:
            TrmError: an item is unknown, a filter is malformed, or ``k`` is below 1.
        """
        query = Query(
            history=self.names.resolve(history),
            preference=parse_preference(preference),
            exclude=frozenset(self.names.resolve(exclude)),
            filters=tuple(parse_filter(one) if isinstance(one, str) else one for one in filters),
            allow_seen=allow_seen,
        )
        return self._shown(self._retriever.retrieve([query], k)[0])

    def similar(self, item: str, k: int = 10) -> list[Recommendation]:
        """The ``k`` items nearest to one, named by id or title, best first.

        Raises:
            TrmError: the item is unknown, or ``k`` is below 1.
        """
        item_ids = self.names.resolve([item])
        return self._shown(self._retriever.similar(item_ids, k)[0])

    def add_items(self, items: Iterable[Item]) -> Self:
        """A recommender that also knows these items, from their texts alone; this one stays as it is.

        Raises:
            TrmError: see ``extend.extend``.
        """
        extended = extend(self._trained, tuple(items), self._embedder)
        return type(self)(extended, self._embedder, self._record.extended())

    def save(self, path: str | Path) -> Path:
        """Write it as a TRM artifact.

        Raises:
            StoreError: the place cannot be written.
        """
        record = self._record
        write_trm(
            Path(path),
            self._trained,
            record.text,
            record.metrics,
            record.curves,
            seed=record.seed,
            extends=record.extends,
            refit_of=record.refit_of,
            held_out=record.held_out,
        )
        return Path(path)

    def _shown(self, found: Sequence[RetrievedItem]) -> list[Recommendation]:
        items = [(one, self.catalogue[one.item_id]) for one in found]
        return [
            Recommendation(rank, item.item_id, item.title, one.score, item.phrases)
            for rank, (one, item) in enumerate(items, start=1)
        ]


def trm_directory(path: Path) -> Path:
    """Where the TRM is: ``path`` itself, or its part ``trm`` when ``path`` is a bundle.

    Raises:
        ArtifactError: there is no artifact at ``path``.
    """
    return path / "trm" if read_artifact(path, verify=False).kind == "bundle" else path
