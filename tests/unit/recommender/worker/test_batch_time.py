from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.recommender.worker.batch_time import BatchTimeModel, Choice

seconds = st.floats(0.001, 30.0)


def test_before_any_batch_everything_fits_that_may() -> None:
    assert BatchTimeModel().choose([0.1, 0.2, 0.3], most=2) == Choice(now=(1, 2), later=(0,))


def test_a_line_is_found_from_batches_of_two_sizes() -> None:
    pace = BatchTimeModel()
    for requests in (1, 20, 1, 20):
        pace.saw(requests, 0.3 + 0.02 * requests)
    assert pace.seconds(10) == pytest.approx(0.5, rel=0.02)
    assert pace.seconds(40) == pytest.approx(1.1, rel=0.02)


def test_batches_of_one_size_say_no_more_than_a_proportion() -> None:
    pace = BatchTimeModel()
    for _ in range(50):
        pace.saw(2, 0.6)
    assert [pace.seconds(requests) for requests in (1, 2, 4)] == pytest.approx([0.3, 0.6, 1.2], rel=0.01)


def test_neither_part_is_negative() -> None:
    falling, steep = BatchTimeModel(), BatchTimeModel()
    for requests, took in ((1, 1.0), (10, 0.5)):
        falling.saw(requests, took)
    assert falling.seconds(1) == falling.seconds(100) > 0.5
    for requests, took in ((1, 0.001), (10, 1.0)):
        steep.saw(requests, took)
    assert steep.seconds(0) == 0
    assert steep.seconds(10) == pytest.approx(1.0, rel=0.02)


def test_a_batch_that_a_deadline_ended_never_makes_batches_look_faster() -> None:
    pace = BatchTimeModel()
    pace.saw(4, 1.0)
    pace.saw(4, 0.1, cut=True)
    assert pace.seconds(4) == pytest.approx(1.0, rel=0.01)
    pace.saw(4, 1.0, cut=True)
    assert pace.seconds(4) > 1.1


def test_by_hand() -> None:
    """A batch takes 0.2 s and 0.1 s for each; a second is left for those that came last."""
    pace = BatchTimeModel()
    for requests in (1, 10, 1, 10):
        pace.saw(requests, 0.2 + 0.1 * requests)
    choice = pace.choose([0.3, 0.5, 1.0, 0.9, 0.95, 0.85, 0.8, 9.0], most=64)
    assert choice.now == (2, 3, 4, 5, 7)  # 0.7 s, times 1.2; a sixth would take 0.8 s, and has no more left
    assert choice.refused == (0, 1, 6)
    assert pace.choose([9.0, 9.0, 9.0], most=2) == Choice(now=(0, 1), later=(2,))


def test_one_is_explored_whatever_is_expected() -> None:
    pace = BatchTimeModel()
    pace.saw(1, 10.0)
    assert pace.choose([0.1, 0.3, 0.2], most=64) == Choice(now=(1,), refused=(0, 2))


@given(batches=st.lists(st.tuples(st.integers(1, 64), seconds, st.booleans())), left=st.lists(seconds, min_size=1))
def test_every_request_is_in_one_part_and_the_most_are_kept_to(
    batches: list[tuple[int, float, bool]], left: list[float]
) -> None:
    pace = BatchTimeModel()
    for requests, took, cut in batches:
        pace.saw(requests, took, cut=cut)
    choice = pace.choose(left, most=8)
    assert sorted((*choice.now, *choice.later, *choice.refused)) == list(range(len(left)))
    assert 1 <= len(choice.now) <= 8
    assert pace.seconds(3) >= 0


@settings(max_examples=20, deadline=None)
@given(each=st.floats(0.01, 0.1), fixed=st.floats(0.0, 0.5), arrivals=st.integers(20, 100))
def test_under_too_much_load_the_policy_goes_on_answering(each: float, fixed: float, arrivals: int) -> None:
    """Simulated: requests with two seconds each, many more than can be taken; what is begun mostly ends in time."""
    deadline, pace, now, begun, served = 2.0, BatchTimeModel(), 0.0, 0, 0
    waiting: list[float] = []
    came = 0.0
    while now < 40:
        while came <= now:
            waiting.append(came + deadline)
            came += 1 / arrivals
        waiting = [end for end in waiting if end > now]
        if not waiting:
            now = came
            continue
        choice = pace.choose([end - now for end in waiting], most=64)
        batch = [waiting[place] for place in choice.now]
        waiting = [waiting[place] for place in choice.later]
        took = fixed + each * len(batch)
        cut = now + took > max(batch)
        end = min(now + took, max(batch))
        pace.saw(len(batch), end - now, cut=cut)
        if now > 20:
            begun += len(batch)
            served += sum(now + took <= one for one in batch)
        now = end
    assert served >= 0.9 * begun
    assert served >= 0.4 * 20 * min(arrivals, 1 / (each + fixed / 16))
