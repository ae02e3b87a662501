"""``deeprec explore``: one exploration of the catalogue in the terminal, turn by turn as it happens.

It runs the loop that training, evaluation and the server run, with no deadline. A rollout that ends badly is shown for
what it is; the exit status is 0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprec.cli.output import print_json
from deeprec.cli.places import explore_of, find_bundle

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.bundle.bundle import Bundle
    from deeprec.config import ExploreConfig
    from deeprec.evaluation.reading import ReadAnswer, ReadCall
    from deeprec.types import Call, Catalogue, Filter, Query, RetrievedItem, Trajectory


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explore")(explore)


def explore(
    bundle: Annotated[
        str | None,
        typer.Argument(help="Bundle, or the directory of a run that has one. Default: the newest under runs/."),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user of the bundle's feature store.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option("--history", help="Titles or ids, oldest first, separated by `;`; repeatable.", metavar="TITLES"),
    ] = None,
    preference: Annotated[
        str, typer.Option("--preference", "-p", help="Phrases separated by `;`, added to every call.")
    ] = "",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Condition that every item satisfies; repeatable.", metavar="CONDITION"),
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Items shown of the answer and of the TRM's own list.", min=1)
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Fixes what is sampled.", min=0)] = 0,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Another policy that was made from the bundle's TRM.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Read the user's history from this dataset instead.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Feature store. Default: `features` beside the bundle.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON when it has ended.")] = False,
) -> None:
    """Let the policy explore the catalogue for one user, and show each turn as it happens.

    A `+` marks an item that no earlier turn had found. The answer says which turn and preference first found each item,
    beside the list that the TRM alone would give. Sampling (`--temperature 1`) shows other explorations.

    Examples:

    `deeprec explore --user u0001`

    `deeprec explore runs/ml-1m --history "Toy Story (1995); Heat (1995)" --preference comedy --filter "year >= 1990"`

    `deeprec explore runs/ml-1m --user 1 --temperature 1 --seed 7 --policy models/stage1 --json`
    """
    from deeprec.bundle.opening import open_bundle
    from deeprec.cli.turns import terminal
    from deeprec.errors import ConfigError

    if (user is None) == (not history):
        raise ConfigError("name a user with --user, or give a history with --history; one of the two")
    address = find_bundle(bundle)
    loaded = open_bundle(address)
    seen = _named(loaded, history) if history else _of_user(loaded, str(user), dataset, features, address)
    asked = _query(loaded, seen, preference, filters)
    console = None if as_json else terminal()
    if console is not None:
        console.print(f"bundle {loaded.version} in {address}", soft_wrap=True)
        if policy is None and loaded.serve == "trm":
            console.print(f"a server does not run its policy: {loaded.why}", soft_wrap=True)
        _show_question(console, loaded.catalogue, asked, user)
    done = _explore(loaded, policy, asked, user or "unknown", k, temperature, seed, console)
    if console is None:
        print_json({"bundle": loaded.version, "user": user, **done.to_json()})
    else:
        _show_outcome(console, done)


# -------------------------------------------------------------------------------------------------------- printing


def _show_question(console: Console, catalogue: Catalogue, asked: Query, user: str | None) -> None:
    from deeprec.cli.turns import show_history

    show_history(console, catalogue, asked.history, f"history of {user}" if user else "history")
    if asked.preference:
        console.print(f"asked for in every call besides: {'; '.join(asked.preference)}", soft_wrap=True)


def _show_outcome(console: Console, done: Explored) -> None:
    """The answer beside the TRM's own list, and the end; the turns were shown as they happened."""
    from deeprec.cli.turns import show_answer, show_end
    from deeprec.evaluation.reading import title_of
    from deeprec.explore.written import thought_of, written

    own = [title_of(done.catalogue, item.item_id) for item in done.trm]
    show_answer(console, thought_of(written(done.trajectory)[-1]), done.answer[: done.k], own)
    show_end(console, done.trajectory.end, len(done.trajectory.calls), done.violations, done.seconds)


# -------------------------------------------------------------------------------------------------------- who asks


def _named(loaded: Bundle, texts: list[str]) -> tuple[str, ...]:
    from deeprec.trm.asking import ItemNames

    names = ItemNames(loaded.catalogue)
    return tuple(item for text in texts for item in names.split(text))


def _of_user(loaded: Bundle, user: str, dataset: Path | None, features: Path | None, address: str) -> tuple[str, ...]:
    """The user's whole history, from a dataset or the feature store."""
    from deeprec.errors import ConfigError, DataError

    if dataset is not None:
        from deeprec.data.dataset import read_dataset

        sequences = read_dataset(dataset).sequences
        place, history, example = str(dataset), sequences.get(user), next(iter(sequences), None)
    else:
        from deeprec.cli.places import find_features
        from deeprec.cli.profiles import read_config
        from deeprec.features.places import open_place

        store = find_features(read_config(None, None), features, address)
        if store is None:
            raise ConfigError(
                f"{address} has no feature store beside it; name one with --features, a dataset with --dataset, or "
                f"give a --history"
            )
        opened = open_place(store)
        history = opened.open(loaded.publication).history(user)
        place, example = opened.name, loaded.info.get("example_user")
        opened.close()
    if history is None:
        named = f", for example {example}" if example else ""
        raise DataError(f"{place} has no user {user!r}; name one it has{named}, or give a --history")
    return history


def _query(loaded: Bundle, seen: tuple[str, ...], preference: str, filters: list[str] | None) -> Query:
    from deeprec.errors import DataError
    from deeprec.trm.asking import parse_filter, parse_preference
    from deeprec.trm.filters import filter_mask
    from deeprec.types import Query

    conditions: tuple[Filter, ...] = tuple(parse_filter(text) for text in filters or ())
    for condition in conditions:
        filter_mask(loaded.catalogue, condition)
    known = tuple(item for item in seen if item in loaded.catalogue)
    if not known:
        raise DataError("the history holds no item of the bundle's catalogue; the policy has nothing to go by")
    return Query(known, parse_preference(preference), frozenset(seen), conditions)


# --------------------------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Explored:
    """One exploration and what it is read beside: ``trm`` is the TRM's own list of ``k``."""

    catalogue: Catalogue
    asked: Query
    k: int
    temperature: float
    seed: int
    trajectory: Trajectory
    turns: tuple[ReadCall, ...]
    trm: tuple[RetrievedItem, ...]
    violations: tuple[str, ...]
    seconds: float

    @property
    def answer(self) -> tuple[ReadAnswer, ...]:
        """The answered lines with where each came from."""
        from deeprec.evaluation.reading import read_answer

        found = {
            item.item_id: (turn.number, rank)
            for turn in self.turns
            for rank, item in enumerate(turn.items, 1)
            if item.new
        }
        return read_answer(self.trajectory, found, [item.item_id for item in self.trm], self.catalogue)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokens, as plain values; ranks and turns are 1-based."""
        from dataclasses import asdict

        turns = zip(self.turns, self.trajectory.calls, strict=True)
        return {
            "history": list(self.asked.history),
            "preference": list(self.asked.preference),
            "filters": [asdict(condition) for condition in self.asked.filters],
            "temperature": self.temperature,
            "seed": self.seed,
            "turns": [
                {
                    "turn": turn.number,
                    "thought": turn.thought,
                    "preference": turn.preference,
                    "phrases": list(call.phrases),
                    "items": [
                        {
                            "id": item.item_id,
                            "title": item.title,
                            "score": round(found.score, 4),
                            "new": item.new,
                            "first_turn": item.first,
                        }
                        for item, found in zip(turn.items, call.items, strict=True)
                    ],
                }
                for turn, call in turns
            ],
            "answer": [
                {
                    "rank": rank,
                    "id": line.item_id,
                    "title": line.title,
                    "turn": line.call,
                    "preference": line.preference or None,
                    "rank_there": line.rank,
                    "trm_rank": line.trm_rank,
                }
                for rank, line in enumerate(self.answer[: self.k], 1)
            ],
            "trm": [
                {"rank": rank, "id": item.item_id, "score": round(item.score, 4)}
                for rank, item in enumerate(self.trm, 1)
            ],
            "end": self.trajectory.end.value,
            "valid": not self.violations,
            "violations": list(self.violations),
            "seconds": round(self.seconds, 3),
        }


class _Watch:
    """Takes the rollout's turns as they happen: keeps them resolved, and prints them where there is a console."""

    def __init__(self, catalogue: Catalogue, console: Console | None) -> None:
        self.turns: list[ReadCall] = []
        self._catalogue, self._console = catalogue, console
        self._found: dict[str, tuple[int, int]] = {}

    def __call__(self, row: int, call: Call, text: str) -> None:
        from deeprec.cli.turns import show_call
        from deeprec.evaluation.reading import read_call
        from deeprec.explore.written import plain

        turn = read_call(len(self.turns) + 1, call, text, self._found, self._catalogue)
        self.turns.append(turn)
        if self._console is not None:
            known = [item.item_id for item in turn.items if item.item_id in self._catalogue]
            show_call(self._console, turn, {one: plain(", ".join(self._catalogue[one].phrases)) for one in known})


def _explore(
    loaded: Bundle,
    policy: Path | None,
    asked: Query,
    user: str,
    k: int | None,
    temperature: float,
    seed: int,
    console: Console | None,
) -> Explored:
    place, config = _policy(loaded, policy)
    from deeprec.explore.loading import load_policy
    from deeprec.explore.protocol import TitleBook
    from deeprec.explore.rollout import rollout
    from deeprec.rewards.format import format_violations
    from deeprec.trm.retriever import TrmRetriever
    from deeprec.trm.text import load_embedder
    from deeprec.types import Conditions, Example

    retriever = TrmRetriever.load(loaded.part("trm"), loaded.catalogue, load_embedder(loaded.text))
    actor = load_policy(place)
    watch = _Watch(loaded.catalogue, console)
    began = time.monotonic()
    trajectory = rollout(
        actor,
        retriever,
        TitleBook(loaded.catalogue),
        [Example(user, asked.history, target="")],
        config,
        temperature=temperature,
        seed=seed,
        on_call=watch,
        conditions=[Conditions(asked.preference, asked.exclude, asked.filters)],
    )[0]
    seconds = time.monotonic() - began
    size = k or config.answer_size
    return Explored(
        loaded.catalogue,
        asked,
        size,
        temperature,
        seed,
        trajectory,
        tuple(watch.turns),
        retriever.retrieve([asked], size)[0],
        format_violations(trajectory, config, strict=True),
        seconds,
    )


def _policy(loaded: Bundle, named: Path | None) -> tuple[Path, ExploreConfig]:
    """Where the policy is and the exploration it was built for: the bundle's, or another that fits its TRM."""
    if named is None:
        return loaded.part("policy"), loaded.explore
    from deeprec.errors import ArtifactError
    from deeprec.store import read_artifact
    from deeprec.trm.artifact import fits_policy_of

    if not fits_policy_of(loaded.part("trm"), read_artifact(named, "policy", verify=False).parents.get("trm")):
        raise ArtifactError(f"the policy {named} was not made from the TRM of this bundle; name the run it belongs to")
    return named, explore_of(named)
