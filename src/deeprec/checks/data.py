"""The data gate: Great Expectations suites on a dataset's interactions and items.

Reads a Dataset directory (``interactions.parquet``, ``items.parquet``, ``dataset.json``) as it lies, so that a dataset
that breaks its contract is reported rather than refused by a reader; writes a report and returns the verdict. Suites
are code, the context lives only for one call, and what no expectation counts cheaply (orphans, repeats, shortest
history) is aggregated first. Nothing is sent over a network. This is the only module that imports Great Expectations.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deeprec.checks.facts import Tables, read_tables
from deeprec.checks.gate import CheckRow, ReportSection, Verdict, one_line, write_report
from deeprec.config import ChecksConfig
from deeprec.errors import ConfigError

GATE = "data"
COLUMNS = {"interactions": ("user_id", "item_id", "timestamp"), "items": ("item_id", "title")}
_NOT_MEASURED = "could not be measured"


@dataclass(frozen=True, slots=True)
class _Rule:
    """One row of the gate: the expectation's class and arguments, and how its result is shown."""

    table: str
    name: str
    rule: str
    expectation: str
    arguments: dict[str, Any]
    show: Callable[[dict[str, Any]], str]


def check_dataset(dataset: Path, checks: ChecksConfig, report: Path) -> Verdict:
    """Check a Dataset directory against ``checks`` and write the HTML file ``report``, passed or not.

    Raises:
        DataError: a file of the dataset is missing or cannot be read.
        ConfigError: ``checks.earliest`` is not an ISO date.
        StoreError: the report cannot be written.
    """
    earliest = _earliest(checks.earliest)
    tables = read_tables(Path(dataset))
    rows = _column_rows(tables)
    if all(row.passed for row in rows):
        rules = [*_interaction_rules(checks), *_item_rules(checks), *_aggregate_rules(checks, tables)]
        in_order = tables.info.get("time_unit") == "order"
        if not in_order:
            rules += _clock_rules(earliest)
        rows += _validate(tables, rules)
        if in_order:
            rows += _skipped_clock_rows(checks)
    verdict = Verdict.of(GATE, rows)
    write_report(verdict, report, "Data checks", _sections(tables))
    return verdict


def _earliest(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"checks.earliest is {text!r}, not an ISO date such as 1990-01-01; correct it") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _column_rows(tables: Tables) -> list[CheckRow]:
    rows = []
    for table, needed in COLUMNS.items():
        present = tables.frame(table).columns
        missing = [column for column in needed if column not in present]
        observed = f"missing: {', '.join(missing)}" if missing else "all present"
        rows.append(CheckRow(f"{table}: columns", observed, ", ".join(needed), not missing))
    return rows


def _interaction_rules(checks: ChecksConfig) -> list[_Rule]:
    table = "interactions"
    return [
        *_identifier_rules(table, "user_id"),
        *_identifier_rules(table, "item_id"),
        _not_null(table, "timestamp"),
        _of_type(table, "timestamp", "int64"),
        _Rule(
            table,
            "interactions: number",
            f"at least {checks.min_interactions:,}",
            "ExpectTableRowCountToBeBetween",
            {"min_value": checks.min_interactions},
            _show_number,
        ),
        _Rule(
            table,
            "interactions: distinct users",
            f"at least {checks.min_users:,}",
            "ExpectColumnUniqueValueCountToBeBetween",
            {"column": "user_id", "min_value": checks.min_users},
            _show_number,
        ),
    ]


def _item_rules(checks: ChecksConfig) -> list[_Rule]:
    table = "items"
    return [
        *_identifier_rules(table, "item_id"),
        *_identifier_rules(table, "title"),
        _unique(table, "item_id"),
        _unique(table, "title"),
        _Rule(
            table,
            "items: number",
            f"at least {checks.min_items:,}",
            "ExpectTableRowCountToBeBetween",
            {"min_value": checks.min_items},
            _show_number,
        ),
    ]


def _aggregate_rules(checks: ChecksConfig, tables: Tables) -> list[_Rule]:
    def at_most(column: str, name: str, limit: float, rule: str, show: Callable[[dict[str, Any]], str]) -> _Rule:
        arguments = {"column": column, "max_value": limit}
        return _Rule("aggregates", name, rule, "ExpectColumnMaxToBeBetween", arguments, show)

    rules = [
        at_most("orphans", "interactions: items that are not in the catalogue", 0, "none", _show_number),
        at_most(
            "duplicates",
            "interactions: repeated (user, item, timestamp)",
            checks.max_duplicate_interactions,
            f"at most {checks.max_duplicate_interactions:.2%} of rows",
            _show_share,
        ),
        at_most(
            "missing_titles",
            "items: titles missing at the source",
            checks.max_missing_titles,
            f"at most {checks.max_missing_titles:.2%} of items",
            _show_share,
        ),
    ]
    if tables.shortest_allowed is not None:
        shortest = _Rule(
            "aggregates",
            "interactions: shortest history",
            f"at least {tables.shortest_allowed} items, to split it",
            "ExpectColumnMinToBeBetween",
            {"column": "shortest", "min_value": tables.shortest_allowed},
            _show_number,
        )
        rules.append(shortest)
    return rules


_CLOCK_NAMES = ("interactions: earliest timestamp", "interactions: latest timestamp")


def _clock_rules(earliest: int) -> list[_Rule]:
    now = int(time.time())
    bounds = (
        ("ExpectColumnMinToBeBetween", {"min_value": earliest}, f"not before {_date(earliest)}"),
        ("ExpectColumnMaxToBeBetween", {"max_value": now}, f"not in the future (now {_date(now)})"),
    )
    return [
        _Rule("interactions", name, rule, expectation, {"column": "timestamp", **arguments}, _show_time)
        for name, (expectation, arguments, rule) in zip(_CLOCK_NAMES, bounds, strict=True)
    ]


def _skipped_clock_rows(checks: ChecksConfig) -> list[CheckRow]:
    rules = (f"not before {checks.earliest}", "not in the future")
    observed = "not checked: timestamps are an order, not a clock"
    return [CheckRow(name, observed, rule, None) for name, rule in zip(_CLOCK_NAMES, rules, strict=True)]


def _identifier_rules(table: str, column: str) -> list[_Rule]:
    not_empty = _Rule(
        table,
        f"{table}: {column} is not empty",
        "at least one character",
        "ExpectColumnValueLengthsToBeBetween",
        {"column": column, "min_value": 1},
        _show_unexpected,
    )
    return [_not_null(table, column), _of_type(table, column, "str"), not_empty]


def _not_null(table: str, column: str) -> _Rule:
    arguments = {"column": column}
    name = f"{table}: {column} is present"
    return _Rule(table, name, "no nulls", "ExpectColumnValuesToNotBeNull", arguments, _show_unexpected)


def _of_type(table: str, column: str, type_name: str) -> _Rule:
    arguments = {"column": column, "type_": type_name}
    name = f"{table}: type of {column}"
    rule = "text" if type_name == "str" else type_name
    return _Rule(table, name, rule, "ExpectColumnValuesToBeOfType", arguments, _show_type)


def _unique(table: str, column: str) -> _Rule:
    arguments = {"column": column}
    name = f"{table}: {column} is unique"
    return _Rule(table, name, "no repeats", "ExpectColumnValuesToBeUnique", arguments, _show_unexpected)


def _show_number(result: dict[str, Any]) -> str:
    value = result.get("observed_value")
    return _NOT_MEASURED if value is None else f"{int(value):,}"


def _show_share(result: dict[str, Any]) -> str:
    value = result.get("observed_value")
    return _NOT_MEASURED if value is None else f"{float(value):.2%}"


def _show_time(result: dict[str, Any]) -> str:
    value = result.get("observed_value")
    return _NOT_MEASURED if value is None else _date(int(value))


def _show_type(result: dict[str, Any]) -> str:
    if "observed_value" in result:
        return str(result["observed_value"])
    if "element_count" not in result:
        return _NOT_MEASURED
    return "as expected" if not result.get("unexpected_count") else f"{_show_unexpected(result)} of another type"


def _show_unexpected(result: dict[str, Any]) -> str:
    if "element_count" not in result:
        return _NOT_MEASURED
    count = int(result.get("unexpected_count") or 0)
    shown = f"{count:,} of {int(result['element_count']):,}"
    distinct = dict.fromkeys(value for value in result.get("partial_unexpected_list") or () if value is not None)
    examples = [one_line(str(value))[:60] for value in distinct][:3]
    return f"{shown}, such as {', '.join(map(repr, examples))}" if count and examples else shown


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return f"{seconds} (not Unix seconds)"


def _validate(tables: Tables, rules: Sequence[_Rule]) -> list[CheckRow]:
    """Run the rules, table by table, in one ephemeral context; the rows are in the rules' order."""
    outcomes: dict[int, tuple[bool, dict[str, Any]]] = {}
    with _quiet_great_expectations() as gx:
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        source = context.data_sources.add_pandas("dataset")
        for table in dict.fromkeys(rule.table for rule in rules):
            expectations = [
                getattr(gx.expectations, rule.expectation)(**rule.arguments, meta={"rule": position})
                for position, rule in enumerate(rules)
                if rule.table == table
            ]
            definition = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("whole")
            batch = definition.get_batch(batch_parameters={"dataframe": tables.pandas(table)})
            suite = gx.ExpectationSuite(name=table, expectations=expectations)
            for result in batch.validate(suite, result_format="SUMMARY").results:
                position = result.expectation_config.meta["rule"]
                outcomes[position] = (bool(result.success), dict(result.result))
    return [
        CheckRow(rule.name, rule.show(outcomes[position][1]), rule.rule, outcomes[position][0])
        for position, rule in enumerate(rules)
    ]


@contextmanager
def _quiet_great_expectations() -> Iterator[Any]:
    """The module, with its analytics off, and its log and warnings held back while the block runs."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logger = logging.getLogger("great_expectations")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx
        import great_expectations.expectations

        logger.setLevel(logging.CRITICAL)
        try:
            yield gx
        finally:
            logger.setLevel(level)


def _sections(tables: Tables) -> list[ReportSection]:
    source = one_line(str(tables.info.get("source", "not stated")))
    text = f"Source: {source}.\n\n{tables.interactions.height:,} interactions, {tables.items.height:,} items."
    return [ReportSection("What was checked", text=text)]
