"""Generated sample data with structure that makes learning visible; the same seed gives the same data.

Items have one to three genres, a maker (each maker works in two genres), a year, and a Zipf-like popularity. About a
third of them belong to franchises of numbered titles. A user is in a mood: a genre, an era and sometimes a maker. Most
choices follow the mood, moods last several choices and drift to a neighbouring genre or era; whoever has begun a
franchise mostly takes its next title. So the recent past says much about the next item, and the next item's phrases
say much about it, while popularity alone says little. Nobody takes an item twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.config import SampleConfig
from deeprec.data.source import Source

GENRES = (
    "Adventure", "Comedy", "Crime", "Documentary", "Drama", "Family", "Fantasy", "History", "Horror", "Music",
    "Mystery", "Romance", "Science Fiction", "Sport",
)  # fmt: skip
_FIRST = (
    "Amber", "Broken", "Cedar", "Distant", "Eastern", "Frozen", "Golden", "Hidden", "Iron", "Jade", "Last", "Little",
    "Midnight", "Northern", "Open", "Paper", "Quiet", "Restless", "Silver", "Tall", "Under", "Velvet", "Winter",
    "Young",
)  # fmt: skip
_SECOND = (
    "Anchor", "Bridge", "Canyon", "Dancer", "Echo", "Feather", "Garden", "Harbor", "Island", "Journey", "Kingdom",
    "Lantern", "Mirror", "Nest", "Orchard", "Promise", "Quarry", "River", "Station", "Tide", "Umbrella", "Valley",
    "Window", "Yard",
)  # fmt: skip
_MAKERS = (
    "Alder", "Birchwood", "Copperline", "Driftwell", "Elmstead", "Foxglove", "Greywater", "Hollowpine", "Ivorytown",
    "Juniper", "Kestrel", "Larkspur", "Moorland", "Nightjar", "Oakhaven", "Plumfield", "Quillon", "Redbarn",
    "Stonebrook", "Thistle", "Umberly", "Vantage", "Willowmere", "Yarrow",
)  # fmt: skip
_YEARS = (1970, 2020)
_FRANCHISE_SHARE = 0.35
_SEQUEL_CHANCE = 0.7
_MOOD_CHANCE = 0.85
_DRIFT_CHANCE = 0.12
_MIN_HISTORY = 8
_START = (1_420_070_400, 1_577_836_800)
_MEAN_GAP = 172_800.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """The generated catalogue: row-aligned lists, and the arrays choices are made from.

    ``membership`` is (items, genres), 1 for the first genre and 0.6 for further ones; ``popularity`` (items,);
    ``decade`` (items,) counted from the first; ``maker`` (items,) rows of maker names; ``sequel`` (items,) the row of
    the next title of the franchise, or -1.
    """

    titles: list[str]
    genres: list[str]
    makers: list[str]
    years: Ints
    membership: Floats
    popularity: Floats
    decade: Ints
    maker: Ints
    sequel: Ints
    opens: NDArray[np.bool_]


def read_sample(config: SampleConfig, seed: int) -> Source:
    """Generate the data as if it had been read. Roles are its own: genres and maker are text, year is the year."""
    generator = np.random.default_rng(seed)
    world = _world(config.items, generator)
    width = len(str(max(config.users, config.items)))
    users: list[NDArray[np.str_]] = []
    rows: list[Ints] = []
    times: list[Ints] = []
    for user in range(config.users):
        history = _history(world, _length(config, generator), generator)
        start = generator.integers(*_START)
        gaps = 60 + generator.exponential(_MEAN_GAP, size=len(history)).astype(np.int64)
        users.append(np.full(len(history), f"u{user + 1:0{width}d}"))
        rows.append(history)
        times.append(start + np.cumsum(gaps))
    ids = np.array([f"i{row + 1:0{width}d}" for row in range(config.items)])
    interactions = pl.DataFrame(
        {
            "user_id": np.concatenate(users).tolist(),
            "item_id": ids[np.concatenate(rows)].tolist(),
            "timestamp": np.concatenate(times),
        }
    )
    items = pl.DataFrame(
        {
            "item_id": ids.tolist(),
            "title": world.titles,
            "genres": world.genres,
            "maker": world.makers,
            "year": world.years,
        }
    )
    return Source("sample", interactions, items, "seconds", text_columns=("genres", "maker"), year_column="year")


def _world(count: int, generator: np.random.Generator) -> World:
    names = _names(generator)
    makers = generator.permutation(len(_MAKERS))[: max(2, min(len(_MAKERS), count // 10))]
    fields = {int(maker): generator.choice(len(GENRES), size=2, replace=False) for maker in makers}
    titles: list[str] = []
    genre_rows: list[list[int]] = []
    maker_rows: list[int] = []
    years: list[int] = []
    sequel = np.full(count, -1, dtype=np.int64)
    opens = np.zeros(count, dtype=np.bool_)
    while len(titles) < count:
        series = generator.random() < _FRANCHISE_SHARE / 2
        size = min(int(generator.integers(3, 6)) if series else 1, count - len(titles))
        maker = int(generator.choice(makers))
        first = int(generator.choice(fields[maker]))
        others = generator.choice(len(GENRES), size=int(generator.integers(0, 3)), replace=False)
        genres = [first, *(int(other) for other in others if other != first)]
        year = int(generator.integers(*_YEARS))
        name = next(names)
        opens[len(titles)] = size > 1
        for part in range(size):
            if part + 1 < size:
                sequel[len(titles)] = len(titles) + 1
            titles.append(name if part == 0 else f"{name} {part + 1}")
            genre_rows.append(genres)
            maker_rows.append(maker)
            years.append(year + 2 * part)
    membership = np.zeros((count, len(GENRES)))
    for row, genres in enumerate(genre_rows):
        membership[row, genres] = 0.6
        membership[row, genres[0]] = 1.0
    ranks = generator.permutation(count) + 1.0
    return World(
        titles=titles,
        genres=["|".join(GENRES[genre] for genre in genres) for genres in genre_rows],
        makers=[f"{_MAKERS[maker]} Studio" for maker in maker_rows],
        years=np.array(years),
        membership=membership,
        popularity=np.power(ranks + 10.0, -0.7, dtype=np.float64),
        decade=np.array(years) // 10 - _YEARS[0] // 10,
        maker=np.array(maker_rows),
        sequel=sequel,
        opens=opens,
    )


def _names(generator: np.random.Generator) -> _Names:
    return _Names([int(number) for number in generator.permutation(len(_FIRST) * len(_SECOND))])


class _Names:
    """Distinct two-word names; a third word is added once all pairs are used."""

    def __init__(self, order: list[int]) -> None:
        self._order = order
        self._used = 0

    def __next__(self) -> str:
        turn, place = divmod(self._used, len(self._order))
        self._used += 1
        first, second = divmod(self._order[place], len(_SECOND))
        name = f"{_FIRST[first]} {_SECOND[second]}"
        return name if turn == 0 else f"{name} of {_MAKERS[(turn - 1) % len(_MAKERS)]}{'' if turn <= 24 else turn}"

    def __iter__(self) -> _Names:
        return self


def _length(config: SampleConfig, generator: np.random.Generator) -> int:
    extra = generator.gamma(2.0, max(config.mean_history - _MIN_HISTORY, 1) / 2.0)
    return int(min(_MIN_HISTORY + round(extra), max(config.items // 2, 1)))


def _history(world: World, length: int, generator: np.random.Generator) -> Ints:
    """(length,) rows of distinct items in the order one user takes them."""
    decades = int(world.decade.max()) + 1
    weight = world.popularity.copy()
    weight[(~world.opens) & _is_sequel(world)] *= 0.05
    home = generator.choice(len(GENRES), size=3, replace=False)
    genre, decade = int(generator.choice(home)), int(generator.integers(decades))
    maker = -1
    last = -1
    taken: list[int] = []
    free = np.ones(len(weight), dtype=np.bool_)
    for _ in range(length):
        following = int(world.sequel[last]) if last >= 0 else -1
        if following >= 0 and free[following] and generator.random() < _SEQUEL_CHANCE:
            choice = following
        else:
            scores = weight * free
            if generator.random() < _MOOD_CHANCE:
                near = np.exp(-1.5 * np.abs(world.decade - decade))
                liked = scores * world.membership[:, genre] ** 2 * near * np.where(world.maker == maker, 6.0, 1.0)
                scores = liked if liked.sum() > 0 else scores
            choice = int(generator.choice(len(scores), p=scores / scores.sum()))
        taken.append(choice)
        free[choice] = False
        last = choice
        maker = int(world.maker[choice])
        if generator.random() < _DRIFT_CHANCE:
            genre = int(generator.choice(home)) if generator.random() < 0.5 else (genre + 1) % len(GENRES)
            decade = int(np.clip(decade + generator.choice([-1, 1]), 0, decades - 1))
    return np.array(taken, dtype=np.int64)


def _is_sequel(world: World) -> NDArray[np.bool_]:
    found = np.zeros(len(world.sequel), dtype=np.bool_)
    found[world.sequel[world.sequel >= 0]] = True
    return found
