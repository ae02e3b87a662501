from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.errors import ConfigError
from deeprec.release.cron import Cron

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
CHANGES = (datetime(2027, 3, 12, tzinfo=UTC), datetime(2027, 10, 24, tzinfo=UTC))
"""Before the clocks of America and Europe are changed, in spring and in autumn."""


def told(cron: str, zone: str, server: str = "UTC") -> str:
    return str(Cron.read(cron, zone).told_to(server, NOW))


def moments(cron: Cron, start: datetime, days: int) -> list[datetime]:
    until = start + timedelta(days=days)
    return [tick.astimezone(UTC) for tick in takewhile(lambda tick: tick <= until, cron.ticks(start))]


@pytest.mark.parametrize(
    ("cron", "fields", "words"),
    [
        ("0 3 * * 0", "0 0 3 * * 0", "At 03:00, only on Sunday (UTC)"),
        ("0 3 * * 7", "0 0 3 * * 0", "At 03:00, only on Sunday (UTC)"),
        ("30 15 2 1 jan *", "30 15 2 1 JAN *", "At 02:15:30, on day 1 of the month, only in January (UTC)"),
        ("0 3 * * 5-7", "0 0 3 * * 0,5,6", "At 03:00, only on Sunday, Friday, and Saturday (UTC)"),
        ("*/15 * * * *", "0 */15 * * * *", "Every 15 minutes (UTC)"),
        ("0 3 * * mon-fri", "0 0 3 * * MON-FRI", "At 03:00, Monday through Friday (UTC)"),
    ],
)
def test_five_and_six_fields_are_read_and_said(cron: str, fields: str, words: str) -> None:
    read = Cron.read(cron, "UTC")
    assert (str(read), read.words()) == (fields, words)


def test_words_are_the_same_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    assert Cron.read("0 15 * * 0", "UTC").words() == "At 15:00, only on Sunday (UTC)"


@pytest.mark.parametrize(
    ("cron", "sentence"),
    [
        ("0 25 * * *", "'25' is no hour, 0 to 23"),
        ("60 3 * * *", "'60' is no minute, 0 to 59"),
        ("0 3 32 * *", "'32' is no day of the month, 1 to 31"),
        ("0 3 * 13 *", "'13' is no month, 1 to 12"),
        ("0 3 * * 8", "'8' is no day of the week, 0 to 7"),
        ("0 3 L * *", "'L' is no day of the month"),
        ("0 3 * * 5#2", "'5#2' is no day of the week"),
        ("0 3 ? * 1", "'?' is no day of the month"),
        ("0 3 * * fri-mon", "'fri-mon' is no day of the week"),
        ("0 */0 * * *", "'*/0' is no hour"),
        ("0 *,5 * * *", "'*,5' is no hour"),
        ("* 0 3 * * *", "'*' is no second, 0 to 59; KFP's server knows a single number"),
        ("0 3 30 2 *", "names a day that no such month has"),
        ("TZ=UTC 0 0 3 * * 0", "7 fields"),
        ("@daily", "1 fields"),
    ],
)
def test_a_bad_field_is_named(cron: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"^schedule\.cron") as raised:
        Cron.read(cron, "UTC")
    assert sentence in str(raised.value)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd", "/etc/localtime"])
def test_a_zone_that_is_none_is_named(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.timezone is '.*', which is no time zone; write one such as"):
        Cron.read("0 3 * * 0", zone)
    with pytest.raises(ConfigError, match=r"schedule\.server_timezone"):
        Cron.read("0 3 * * 0", "UTC").told_to(zone, NOW)


@pytest.mark.parametrize(
    ("cron", "zone", "server", "fields"),
    [
        ("0 3 * * 1", "UTC", "UTC", "0 0 3 * * 1"),
        ("0 3 * * 1", "Asia/Tokyo", "UTC", "0 0 18 * * 0"),
        ("0 12 1 * *", "Asia/Tokyo", "UTC", "0 0 3 1 * *"),
        ("30 3 * * 5-7", "Asia/Kolkata", "UTC", "0 0 22 * * 4,5,6"),
        ("0 */6 * * *", "Asia/Tokyo", "UTC", "0 0 3,9,15,21 * * *"),
        ("0 22 * * SAT", "America/Bogota", "UTC", "0 0 3 * * 0"),
        ("0 3 * * 0", "Europe/Berlin", "Europe/Lisbon", "0 0 2 * * 0"),
        ("0 4 * * 0", "Europe/Berlin", "Europe/Paris", "0 0 4 * * 0"),
        ("*/20 * * * *", "Europe/Berlin", "UTC", "0 */20 * * * *"),
        ("5 * * * *", "Asia/Kolkata", "UTC", "0 35 * * * *"),
    ],
)
def test_a_schedule_is_moved_to_the_servers_clock(cron: str, zone: str, server: str, fields: str) -> None:
    meant = Cron.read(cron, zone)
    moved = meant.told_to(server, NOW)
    assert (str(moved), moved.zone.key) == (fields, server)
    for start in CHANGES:
        assert moments(moved, start, 40) == moments(meant, start, 40) != []


@pytest.mark.parametrize(
    ("cron", "zone", "server"),
    [
        ("0 3 * * 0", "Europe/Berlin", "UTC"),  # 02:00 or 01:00 UTC
        ("0 3 * * 0", "UTC", "Europe/Berlin"),
        ("0 */6 * * *", "Europe/Berlin", "UTC"),
        ("0 9 * * *", "America/New_York", "Europe/Berlin"),  # five hours apart for some weeks
        ("0 3 1 * *", "Asia/Tokyo", "UTC"),  # the last day of the month before, whichever that is
        ("0 0,12 * * 1", "Asia/Tokyo", "UTC"),  # on two days there
        ("0 3 * 6 *", "Asia/Tokyo", "UTC"),
        ("0,30 3 * * *", "Asia/Kathmandu", "Asia/Kolkata"),  # 02:45 and 03:15: two hours with other minutes
    ],
)
def test_what_would_be_wrong_on_some_day_is_refused_with_the_cure(cron: str, zone: str, server: str) -> None:
    with pytest.raises(ConfigError) as raised:
        told(cron, zone, server)
    for part in (zone, server, "schedule.server_timezone", "CRON_SCHEDULE_TIMEZONE", f"schedule.timezone to {server}"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("cron", "day", "times"),
    [
        ("30 2 * * 0", date(2027, 3, 28), "0 times instead of 1"),
        ("30 2 * * *", date(2027, 3, 28), "0 times instead of 1"),
        ("30 2 31 10 *", date(2027, 10, 31), "2 times instead of 1"),
    ],
)
def test_an_hour_that_is_left_out_or_repeated_is_refused(cron: str, day: date, times: str) -> None:
    with pytest.raises(ConfigError, match=rf"on {day} the clock of Europe/Berlin is changed, .* {times}"):
        told(cron, "Europe/Berlin", "Europe/Berlin")


@pytest.mark.parametrize("cron", ["0 3 * * 0", "30 2 * * 1", "*/30 * * * *", "59 1 * * *"])
def test_hours_around_a_change_are_fine(cron: str) -> None:
    assert told(cron, "Europe/Berlin", "Europe/Berlin").endswith(cron)


def test_ticks_follow_the_clock_over_a_change() -> None:
    ticks = Cron.read("0 3 * * *", "Europe/Berlin").next_ticks(datetime(2027, 3, 26, 12, tzinfo=UTC))
    assert [f"{tick:%d %H:%M %Z}" for tick in ticks] == ["27 03:00 CET", "28 03:00 CEST", "29 03:00 CEST"]
    assert [tick.astimezone(UTC).hour for tick in ticks] == [2, 1, 1]


ZONES = ["UTC", "Asia/Tokyo", "Asia/Kolkata", "Europe/Berlin", "Europe/Lisbon", "America/New_York", "Pacific/Apia"]
crons = st.builds(
    lambda minute, hour, month_day, week_day: f"{minute} {hour} {month_day} * {week_day}",
    st.sampled_from(["0", "30", "5,50"]),
    st.sampled_from(["*", "0", "2", "3", "12", "23", "*/6", "1,14"]),
    st.sampled_from(["*", "*", "1", "15-20"]),
    st.sampled_from(["*", "0", "1-5", "SAT"]),
)


@settings(max_examples=20, deadline=None)
@given(crons, st.sampled_from(ZONES), st.sampled_from(ZONES))
def test_what_is_accepted_is_right_on_every_day(cron: str, zone: str, server: str) -> None:
    meant = Cron.read(cron, zone)
    try:
        moved = meant.told_to(server, NOW)
    except ConfigError:
        return
    for start in CHANGES:
        assert moments(moved, start, 20) == moments(meant, start, 20)
