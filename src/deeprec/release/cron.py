"""When a schedule ticks: cron in a time zone, in words, and as KFP's server has to be told.

KFP's server reads cron with robfig/cron 1.2: six fields, seconds first, no time zone among them. Every schedule of a
server is read in one zone, UTC unless its operator has set ``CRON_SCHEDULE_TIMEZONE``. What is meant in another zone is
moved to the server's clock where that is right on every day of the coming two years, and refused otherwise.

Limits: what one of the two libraries does not know is refused: ``L``, ``W``, ``#``, ``?`` and words such as
``@daily``. A run begins once a minute at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice, product, takewhile
from zoneinfo import ZoneInfo

from cron_descriptor import Options, get_description
from cronsim import CronSim, CronSimError

from deeprec.errors import ConfigError

FIELDS = (
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day of the week", "0 to 7 or SUN to SAT"),
)
_NAMES = frozenset({"WED", "JUL"})
"""Names with a letter of what KFP's server does not know."""
_AHEAD = timedelta(days=731)
"""How far ahead clocks are compared: longer than a year, so that each change is seen."""


@dataclass(frozen=True)
class Cron:
    """Six fields, seconds first, in a time zone; made by ``read``."""

    fields: tuple[str, ...]
    zone: ZoneInfo

    @classmethod
    def read(cls, text: str, zone: str, key: str = "schedule.timezone") -> Cron:
        """``text`` with five fields, or six, as it is meant in the time zone named ``zone``, which ``key`` says.

        Raises:
            ConfigError: a field is none, the schedule never ticks or ticks every second, or there is no such zone.
        """
        fields = text.upper().split()
        if len(fields) not in (5, 6):
            raise ConfigError(f"schedule.cron {text!r} has {len(fields)} fields; write five, or six with seconds first")
        for place in range(len(fields)):
            _check_field(text, place)
        fields = fields if len(fields) == 6 else ["0", *fields]
        try:
            week = _sim(fields).weekdays
        except CronSimError as error:
            raise ConfigError(f"schedule.cron {text!r} names a day that no such month has; correct it") from error
        if 7 in week and not fields[5].startswith("*"):
            fields[5] = _list({int(str(day)) % 7 for day in week})
        return cls(tuple(fields), _zone(zone, key))

    def __str__(self) -> str:
        return " ".join(self.fields)

    def words(self) -> str:
        """In words: ``At 03:00, only on Sunday (Europe/Lisbon)``."""
        told = get_description(str(self), Options(use_24hour_time_format=True, locale_code="en_US"))
        return f"{told} ({self.zone.key})"

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """The ticks after a moment, in this zone, without end."""
        return iter(_sim(self.fields, after.astimezone(self.zone)))

    def next_ticks(self, after: datetime, count: int = 3) -> list[datetime]:
        """The next ``count`` ticks after a moment."""
        return list(islice(self.ticks(after), count))

    def told_to(self, server: str, now: datetime) -> Cron:
        """The same moments on the clock of a server whose zone is named ``server``.

        Raises:
            ConfigError: no six fields say them on every day of the coming two years.
        """
        clock = _zone(server, "schedule.server_timezone")
        offsets = {timedelta()} if clock.key == self.zone.key else _offsets(self.zone, clock, now)
        moved = {self._moved(offset) for offset in offsets}
        if len(moved) != 1 or None in moved:
            raise ConfigError(
                f"schedule.cron {str(self)!r} in {self.zone.key} cannot be said so that it is right all year on a "
                f"server that counts in {clock.key}; let KFP count in {self.zone.key} (CRON_SCHEDULE_TIMEZONE of its "
                f"scheduledworkflow controller) and say so in schedule.server_timezone, or write the cron in "
                f"{clock.key} and set schedule.timezone to {clock.key}"
            )
        told = Cron(next(fields for fields in moved if fields), clock)
        told._check_changes(now)
        return told

    def _moved(self, offset: timedelta) -> tuple[str, ...] | None:
        """The fields on a clock that is ``offset`` behind; None where no fields say it."""
        if not offset:
            return self.fields
        sim, times = _sim(self.fields), dict[int, set[tuple[int, int]]]()
        for hour, minute in product(sim.hours, sim.minutes):
            day, rest = divmod(60 * hour + minute - offset // timedelta(minutes=1), 24 * 60)
            times.setdefault(day, set()).add(divmod(rest, 60))
        second, minute_text, hour_text, month_day, month, week_day = self.fields
        if (month_day, month, week_day) == ("*", "*", "*"):
            times = {0: set.union(*times.values())}
        if len(times) > 1:
            return None
        ((day, clock),) = times.items()
        hours, minutes = {hour for hour, _ in clock}, {minute for _, minute in clock}
        if clock != set(product(hours, minutes)) or (day and (month_day, month) != ("*", "*")):
            return None
        if day:
            week_day = _list({(int(str(one)) + day) % 7 for one in sim.weekdays})
        minute_text = minute_text if minutes == sim.minutes else _list(minutes)
        hour_text = hour_text if hours == sim.hours else _list(hours)
        return second, minute_text, hour_text, month_day, month, week_day

    def _check_changes(self, now: datetime) -> None:
        """
        Raises:
            ConfigError: a tick falls into the hour that this zone's clock leaves out or repeats.
        """
        if self.fields[2].startswith("*"):
            return
        for day in _changes(self.zone, now):
            meant, real = self._count(day, None), self._count(day, self.zone)
            if meant != real:
                raise ConfigError(
                    f"schedule.cron {str(self)!r}: on {day} the clock of {self.zone.key} is changed, so that it would "
                    f"tick {real} times instead of {meant}; choose an hour that is neither left out nor repeated"
                )

    def _count(self, day: date, zone: ZoneInfo | None) -> int:
        """Ticks on a day: of the zone's clock, or of one that is never changed."""
        start = datetime.combine(day, time(), zone)
        before = start - timedelta(seconds=1) if zone is None else _later(start, timedelta(seconds=-1))
        return sum(1 for _ in takewhile(lambda tick: tick.date() == day, _sim(self.fields, before)))


def _check_field(text: str, place: int) -> None:
    field = text.split()[place]
    six = place + 6 - len(text.split())
    name, allowed = FIELDS[six]
    known = "a single number" if six == 0 else "numbers, ranges 1-5, steps */2 and lists 1,3"
    strange = field.upper() not in _NAMES and any(letter in field.upper() for letter in "L#?W@")
    try:
        if strange or ("*" in field and "," in field) or (six == 0 and not field.isdecimal()):
            raise CronSimError("what only one of the libraries knows")
        _sim(["*"] * six + [field] + ["*"] * (5 - six))
    except CronSimError as error:
        raise ConfigError(
            f"schedule.cron {text!r}: {field!r} is no {name}, {allowed}; KFP's server knows {known} here"
        ) from error


def _sim(fields: tuple[str, ...] | list[str], after: datetime | None = None) -> CronSim:
    return CronSim(" ".join(fields), after or datetime(2000, 1, 1))


def _zone(name: str, key: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(
            f"{key} is {name!r}, which is no time zone; write one such as Europe/Lisbon or UTC"
        ) from error


def _list(numbers: set[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _later(moment: datetime, by: timedelta) -> datetime:
    return (moment.astimezone(UTC) + by).astimezone(moment.tzinfo)


def _offsets(zone: tzinfo, other: tzinfo, now: datetime) -> set[timedelta]:
    """How far ``zone`` is ahead of ``other``, at each hour of the coming two years."""
    hours = (now.astimezone(UTC) + timedelta(hours=hour) for hour in range(_AHEAD // timedelta(hours=1)))
    return {_ahead(zone, hour) - _ahead(other, hour) for hour in hours}


def _ahead(zone: tzinfo, moment: datetime) -> timedelta:
    return zone.utcoffset(moment.astimezone(zone)) or timedelta()


def _changes(zone: tzinfo, now: datetime) -> list[date]:
    """Days of the coming two years on which the clock of ``zone`` is changed."""
    first = now.astimezone(zone).date()
    days = [first + timedelta(days=day) for day in range(_AHEAD.days)]
    midnights = [datetime.combine(day, time(), zone).utcoffset() for day in days]
    return [day for day, here, there in zip(days, midnights, midnights[1:], strict=False) if here != there]
