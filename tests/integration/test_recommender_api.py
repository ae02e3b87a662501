"""``Recommender.open``: a bundle's answers without a server are those over HTTP, and a script needs nothing besides."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.shelf import Shelf
from deeprec.client import Client, Recommendation
from deeprec.config import ServingConfig
from deeprec.errors import ArtifactError, ConfigError, FeatureError, RequestError
from deeprec.features.directory import DirectoryPlace
from deeprec.recommender import Recommender
from tests import forkserver
from tests.integration.rooms import PATIENCE_MS
from tests.integration.servers import ServerProcess, until

pytest_plugins = ["tests.integration.rooms"]

PATIENT = ServingConfig(deadline_ms=PATIENCE_MS, max_deadline_ms=PATIENCE_MS)
QUESTIONS: list[dict[str, Any]] = [
    {"user_id": "u02", "k": 5},
    {"user_id": "u07", "k": 10, "preference": "comedy"},
    {"user_id": "nobody", "k": 3},
    {"history": ["i01", "i02", "i09"], "k": 4, "filters": ["year >= 1960"], "exclude": ["i03"]},
    {"history": [], "preference": ["drama"], "k": 3},
    {"history": ["i05"], "k": 3, "explain": True},
]


@pytest.fixture(scope="module")
def opened(taught: Path) -> Iterator[Recommender]:
    """The run's recommender in this process."""
    with forkserver.routed(), Recommender.open(taught, serving=PATIENT) as recommender:
        yield recommender


def told(answer: Recommendation) -> dict[str, Any]:
    """The answer as JSON, but for the time it took."""
    return {name: value for name, value in answer.raw.items() if name != "milliseconds"}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: " ".join(question))
def test_answers_are_those_over_http(opened: Recommender, recommender: ServerProcess, question: dict[str, Any]) -> None:
    with Client(recommender.url, timeout=PATIENCE_MS / 1000) as client:
        asked = client.recommend(**question)
        plain = {name: value for name, value in question.items() if name != "explain"}
        alone = client.retrieve(**plain)

    assert told(opened.recommend(**question)) == told(asked)
    assert told(opened.retrieve(**{name: value for name, value in question.items() if name != "explain"})) == told(
        alone
    )
    assert asked.bundle == opened.version


def test_several_threads_may_ask(opened: Recommender) -> None:
    wanted = [told(opened.recommend(**question)) for question in QUESTIONS]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = told(opened.recommend(**QUESTIONS[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(QUESTIONS))] == wanted


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ({}, "name a user_id"),
        ({"history": [1.5]}, "history.0: give a string, not the number 1.5"),
        ({"history": [], "filters": ["year"]}, "not of the form COLUMN OPERATOR VALUE"),
        ({"history": [], "filters": ["mood = 1"]}, "mood"),
        ({"history": [], "k": 100_000}, "at most"),
        ({"history": [], "moood": 1}, "unknown field 'moood'"),
    ],
)
def test_a_bad_question_is_one_sentence(opened: Recommender, question: dict[str, Any], part: str) -> None:
    with pytest.raises(RequestError) as caught:
        opened.recommend(**question)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shelf_opens_at_its_live_version_and_at_a_named_one(taught: Path, tmp_path: Path) -> None:
    shelf = Shelf.make(tmp_path / "shelf")
    version = shelf.push(Bundle.load(taught / "bundle")).version
    trm = shelf.push(Bundle.load(taught / "bundle"), "trm").version
    shelf.promote(trm)
    with Recommender.open(tmp_path / "shelf") as live:
        answer = live.recommend(history=["i01"], k=2)
        assert (live.version, answer.bundle, answer.path) == (trm, trm, "trm")
    with forkserver.routed(), Recommender.open(f"{tmp_path / 'shelf'}@{version}", serving=PATIENT) as named:
        assert named.recommend(history=["i01"], k=2).path == "policy"


def test_what_cannot_be_opened_is_said(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a bundle nor a shelf"):
        Recommender.open(tmp_path)
    (tmp_path / "bundle.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError):
        Recommender.open(tmp_path)
    with pytest.raises(FeatureError, match="no feature store at"):
        Recommender.open(taught / "bundle", features=tmp_path / "nothing")
    DirectoryPlace(tmp_path / "empty").prepare()
    with pytest.raises(FeatureError, match=r"has no publication '\w+'; name the place that the bundle was made with"):
        Recommender.open(taught / "bundle", features=tmp_path / "empty")


def test_closing_ends_the_policys_process_and_a_second_time_does_nothing(taught: Path) -> None:
    with forkserver.routed():
        recommender = Recommender.open(taught, serving=PATIENT)
    explorer = recommender._recommender.explorer
    assert explorer is not None
    process: int = explorer.pid  # type: ignore[attr-defined]
    recommender.close()
    recommender.close()
    until(lambda: not _runs(process), "the policy's process does not end")
    with pytest.raises(RuntimeError, match="closed; open another"):
        recommender.recommend(history=[])


def test_a_script_without_a_main_guard_opens_one_recommender(taught: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from deeprec.config import ServingConfig\n"
        "from deeprec.recommender import Recommender\n"
        "print('begins', flush=True)\n"
        f"limits = ServingConfig(deadline_ms={PATIENCE_MS}, max_deadline_ms={PATIENCE_MS})\n"
        f"recommender = Recommender.open({str(taught)!r}, serving=limits)\n"
        "print(recommender.recommend(user_id='u01', k=3).path)\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["begins", "policy"]), done.stderr


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
