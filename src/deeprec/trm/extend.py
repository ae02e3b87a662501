"""New items for a trained TRM, without training: their text makes them retrievable.

A new item gets its text vector, an ID embedding of zero and a popularity of zero, so its item vector is its adapted
text alone until the TRM is trained again. Rows of items and phrases that were there keep their place and every number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeprec.data.catalogue import distinct_titles
from deeprec.data.phrases import item_phrases
from deeprec.errors import TrmError
from deeprec.trm.artifact import MEASURED, TrainedTrm, Vocabulary, read_record, read_trm, write_trm
from deeprec.trm.text import item_text, load_embedder
from deeprec.types import Catalogue, Embedder, FloatArray, Item

if TYPE_CHECKING:
    from deeprec.trm.model import Trm

_NAMED = 3


def extend(trained: TrainedTrm, items: Sequence[Item], embedder: Embedder) -> TrainedTrm:
    """The TRM with further items at the end of its catalogue; what is passed in is left as it is.

    Titles are made different from all others as at ingest (``Item <id>`` for an empty one, ``(2)`` after a repeated
    one). An item without phrases gets those that its attributes give, by the catalogue's own columns.

    Raises:
        TrmError: an id is empty, repeated or already in the catalogue, or the text encoder is not the TRM's.
    """
    old, vocabulary = trained.catalogue, trained.vocabulary
    _check_ids(items, old)
    if embedder.identity != vocabulary.text_identity:
        raise TrmError(
            f"the TRM was trained with the text encoder {vocabulary.text_identity}, but {embedder.identity} is given; "
            f"new items need the former"
        )
    added = _prepared(items, old)
    known = set(vocabulary.phrases)
    phrases = tuple(sorted({phrase for item in added for phrase in item.phrases} - known))
    kind = vocabulary.item_text.dtype
    new_text = embedder.embed([item_text(item) for item in added]).astype(kind, copy=False)
    extended = Vocabulary(
        item_ids=vocabulary.item_ids + tuple(item.item_id for item in added),
        phrases=vocabulary.phrases + phrases,
        item_text=_stacked(vocabulary.item_text, new_text),
        phrase_text=_stacked(vocabulary.phrase_text, embedder.embed(phrases)),
        popularity=np.concatenate([vocabulary.popularity, np.zeros(len(added), dtype=vocabulary.popularity.dtype)]),
        text_identity=vocabulary.text_identity,
    )
    catalogue = replace(old, items=old.items + tuple(added))
    return TrainedTrm(_grown(trained.model, extended.item_text), extended, catalogue)


def extend_trm(trm: Path, items: Sequence[Item], out: Path) -> TrainedTrm:
    """Write the TRM artifact at ``trm`` with further items as the artifact ``out``, and return it.

    Metrics and learning curve are those of the training, without the new items.

    Raises:
        ArtifactError: there is no readable TRM at ``trm``.
        TrmError: see ``extend``, or the text encoder cannot be loaded.
        StoreError: ``out`` cannot be written.
    """
    record = read_record(trm)
    extended = extend(read_trm(trm), items, load_embedder(record.text))
    record = record.extended()
    write_trm(
        out,
        extended,
        record.text,
        record.metrics,
        record.curves,
        parents=(trm,),
        seed=record.seed,
        extends=record.extends,
        refit_of=record.refit_of,
        held_out=record.held_out,
        measured=trm if (trm / MEASURED).is_file() else None,
    )
    return extended


def _check_ids(items: Sequence[Item], catalogue: Catalogue) -> None:
    blank = sum(not item.item_id.strip() for item in items)
    if blank:
        raise TrmError(f"{blank} of {len(items)} new items have an empty item_id; give every item its own")
    present = [item.item_id for item in items if item.item_id in catalogue]
    if present:
        raise TrmError(
            f"{len(present)} of {len(items)} new items are already in the catalogue ({_some(present)}); "
            f"leave them out, an item keeps the text it was added with until the TRM is trained again"
        )
    repeated = [item_id for item_id, count in Counter(item.item_id for item in items).items() if count > 1]
    if repeated:
        raise TrmError(f"{len(repeated)} ids are given to more than one new item ({_some(repeated)}); name each once")


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(repr(item_id) for item_id in ids[:_NAMED]) + more


def _prepared(items: Sequence[Item], catalogue: Catalogue) -> list[Item]:
    plain = [" ".join(item.title.split()) or f"Item {item.item_id}" for item in items]
    titles = distinct_titles(plain, {item.title for item in catalogue.items})
    columns, year = catalogue.text_columns, catalogue.year_column
    return [
        replace(item, title=title, phrases=item.phrases or item_phrases(item.attributes, columns, year))
        for item, title in zip(items, titles, strict=True)
    ]


def _stacked(old: FloatArray, new: FloatArray) -> FloatArray:
    return np.concatenate([old, new]) if len(new) else old


def _grown(model: Trm, text: FloatArray) -> Trm:
    """A network for more items: the same parameters, rows of zeros for the items that are new."""
    import torch

    from deeprec.trm.model import Trm

    before = len(model.item_text)
    with torch.random.fork_rng(devices=[]):
        grown = Trm(model.config, torch.from_numpy(text))
    state = model.state_dict()
    for name, wanted in grown.state_dict().items():
        value = state[name]
        if value.shape != wanted.shape and len(value) == before:
            state[name] = torch.cat([value, value.new_zeros(len(text) - before, *value.shape[1:])])
    grown.load_state_dict(state)
    return grown.to(model.item_text.device).eval()
