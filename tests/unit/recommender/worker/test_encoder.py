"""The text encoder's process: loaded, asked, killed, replaced, closed, and gone with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deeprec.recommender.phrases import PhraseEncoder
from deeprec.recommender.worker.encoder import Away, EncoderProcess
from deeprec.recommender.worker.supervision import SupervisionTimeouts
from deeprec.types import FloatArray
from tests.unit.recommender.encoders import FakeText

pytestmark = pytest.mark.usefixtures("forked")

SOON = 60.0


class Kept:
    """The vectors that came."""

    def __init__(self) -> None:
        self.vectors: dict[str, list[float]] = {}

    def keep(self, texts: Sequence[str], vectors: FloatArray) -> None:
        self.vectors.update(zip(texts, vectors.tolist(), strict=True))

    def knows(self, text: str) -> bool:
        return text in self.vectors


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def make(kept: Kept) -> Iterator[Callable[..., EncoderProcess]]:
    made: list[EncoderProcess] = []

    def make(encoder: FakeText | None = None, **timeouts: float) -> EncoderProcess:
        quick = SupervisionTimeouts(**{"first_pause": 0.05, **timeouts})
        made.append(EncoderProcess(encoder or FakeText(), kept.keep, quick))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_vectors_are_made_in_another_process_and_kept(make: Any, kept: Kept) -> None:
    encoder = make()
    assert not encoder.available
    asyncio.run(encoder.loaded(SOON))
    assert encoder.available
    assert kept.vectors[""][0] == 0, "kept before anybody asks"
    assert encoder.encode("four").result(SOON) >= 0
    assert kept.vectors["four"] == [4.0, float(encoder.pid)]
    assert encoder.pid != os.getpid()


def test_a_text_that_cannot_be_encoded_is_an_answer(make: Any, kept: Kept) -> None:
    encoder = make()
    asyncio.run(encoder.loaded(SOON))
    with pytest.raises(Away):
        encoder.encode("raise").result(SOON)
    encoder.encode("fine").result(SOON)
    assert (encoder.restarts, "raise" in kept.vectors) == (0, False)


def test_one_that_is_killed_leaves_phrases_out_and_comes_back(make: Any, kept: Kept) -> None:
    encoder = make(first_pause=1.0)
    phrases = PhraseEncoder(kept, encoder)
    asyncio.run(phrases.loaded(SOON))
    assert asyncio.run(phrases.encode(("before",), "ann", SOON)) == ("before",)
    os.kill(encoder.pid, signal.SIGKILL)
    until(lambda: not encoder.available)
    began = time.monotonic()
    assert asyncio.run(phrases.encode(("during", "before"), "ann", SOON)) == ("before",)
    assert time.monotonic() - began < 1
    until(lambda: encoder.available)
    assert asyncio.run(phrases.encode(("after",), "ann", SOON)) == ("after",)
    assert encoder.restarts == 1


@pytest.mark.parametrize("text", ["die", "hang"])
def test_one_that_dies_or_hangs_over_a_text_is_replaced(make: Any, kept: Kept, text: str) -> None:
    encoder = make(silence=0.5)
    phrases = PhraseEncoder(kept, encoder)
    asyncio.run(phrases.loaded(SOON))
    assert asyncio.run(phrases.encode((text, "next"), "ann", SOON)) == ()
    until(lambda: encoder.restarts == 1 and encoder.available)
    assert asyncio.run(phrases.encode(("next",), "ann", SOON)) == ("next",)


def test_one_that_cannot_load_says_why_and_is_tried_again(make: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    encoder = make(FakeText(broken))
    with pytest.raises(Away, match="there is no encoder here"):
        asyncio.run(encoder.loaded(SOON))
    with pytest.raises(Away):
        encoder.encode("four").result(SOON)
    broken.unlink()
    until(lambda: encoder.available)
    asyncio.run(encoder.loaded(SOON))


def test_closing_ends_the_process_and_what_waits(make: Any) -> None:
    encoder = make()
    asyncio.run(encoder.loaded(SOON))
    pid, waits = encoder.pid, encoder.encode("hang")
    encoder.close()
    with pytest.raises(Away):
        waits.result(SOON)
    until(lambda: gone(pid))
    with pytest.raises(Away):
        encoder.encode("four").result(SOON)


def test_closing_while_it_loads_ends_the_wait(make: Any) -> None:
    encoder = make()
    encoder.close()
    with pytest.raises(Away):
        asyncio.run(encoder.loaded(SOON))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when it next reads")
def test_it_ends_with_its_parent_even_in_the_middle_of_a_text() -> None:
    program = """
import asyncio, time
from deeprec.recommender.worker.encoder import EncoderProcess
from tests.unit.recommender.encoders import FakeText
encoder = EncoderProcess(FakeText(), lambda texts, vectors: None)
asyncio.run(encoder.loaded(60))
encoder.encode("hang")
print(encoder.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: gone(pid))
