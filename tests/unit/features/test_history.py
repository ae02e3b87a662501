"""How interactions enter a history: by time, once, within the limit, and again without a change."""

from hypothesis import given
from hypothesis import strategies as st

from deeprec.features.history import UserHistory

INTERACTIONS = st.lists(st.tuples(st.integers(0, 8), st.sampled_from("abcde")), max_size=30)


def test_an_interaction_stands_behind_what_is_as_old():
    history = UserHistory(("a", "b"), (10, 20), 2)
    assert history.with_interactions([(20, "c")], 9) == UserHistory(("a", "b", "c"), (10, 20, 20), 3)
    assert history.with_interactions([(15, "c"), (15, "d")], 9).item_ids == ("a", "c", "d", "b")
    assert history.with_interactions([(1, "c"), (99, "d")], 9).timestamps == (1, 10, 20, 99)


def test_the_same_item_at_the_same_time_enters_once():
    history = UserHistory().with_interactions([(5, "a"), (5, "b"), (5, "a"), (6, "a")], 9)
    assert history == UserHistory(("a", "b", "a"), (5, 5, 6), 3)


def test_the_newest_are_kept():
    full = UserHistory(("a", "b"), (10, 20), 7)
    assert full.with_interactions([(30, "c")], 2) == UserHistory(("b", "c"), (20, 30), 8)
    assert full.with_interactions([(15, "c")], 2) == UserHistory(("c", "b"), (15, 20), 8)
    assert full.with_interactions([(10, "c"), (3, "d")], 2) == full
    assert full.with_interactions([(3, "d")], 3) == UserHistory(("d", "a", "b"), (3, 10, 20), 8)


@given(INTERACTIONS, INTERACTIONS, st.integers(1, 6))
def test_entering_again_changes_nothing(before, new, limit):
    history = UserHistory().with_interactions(before, limit).with_interactions(new, limit)
    assert history.with_interactions(new, limit) == history
    assert history.with_interactions([*before, *new], limit) == history


@given(INTERACTIONS, st.integers(1, 6))
def test_a_history_is_the_newest_of_what_entered_in_order(new, limit):
    history = UserHistory().with_interactions(new, limit)
    ordered = sorted(dict.fromkeys(new), key=lambda pair: pair[0])
    assert list(history.timestamps) == [time for time, _ in ordered][-limit:]
    older = [pair for pair in ordered if pair[0] > history.timestamps[0]] if history.timestamps else []
    assert list(zip(history.timestamps, history.item_ids, strict=True))[-len(older) or limit :] == older


def test_of_repeats_the_first_or_the_last_is_kept():
    history = UserHistory(("a", "b", "c"), (10, 20, 30), 3)
    new = [(25, "a"), (40, "b"), (5, "c")]
    assert history.with_interactions(new, 9, "first") == UserHistory(("c", "a", "b"), (5, 10, 20), 3)
    assert history.with_interactions(new, 9, "last") == UserHistory(("a", "c", "b"), (25, 30, 40), 3)
    assert history.with_interactions([(40, "a")], 3, "last") == UserHistory(("b", "c", "a"), (20, 30, 40), 3)


@given(INTERACTIONS, INTERACTIONS, st.sampled_from(["first", "last"]))
def test_repeats_are_kept_as_a_dataset_keeps_them(before, new, repeats):
    history = UserHistory().with_interactions(before, 99, repeats).with_interactions(new, 99, repeats)
    ordered = sorted(dict.fromkeys([*before, *new]), key=lambda pair: pair[0])
    kept = {}
    for time, item in ordered:
        if repeats == "last" or item not in kept:
            kept[item] = time
    assert dict(zip(history.item_ids, history.timestamps, strict=True)) == kept
    assert len(history.item_ids) == len(kept) == history.interactions
    assert list(history.timestamps) == sorted(history.timestamps)
    assert history.with_interactions([*before, *new], 99, repeats) == history
