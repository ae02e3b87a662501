"""The page of the request log: its columns are those of the files, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deeprec.config import RequestLogConfig
from deeprec.recommender.observer import AnsweredRequest
from deeprec.serving.log.request_log import SCHEMA, RequestLog
from deeprec.wire.reason import Reason, ReasonKind

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "request-log.md").read_text(encoding="utf-8")
TYPES = {
    "timestamp, µs, UTC": "timestamp[us, tz=UTC]",
    "string": "string",
    "boolean": "bool",
    "list of strings": "list<element: string>",
    "list of doubles": "list<element: double>",
    "double": "double",
    "integer": "int64",
}


LATE = Reason(kind=ReasonKind.LATE, sentence="late")


def test_its_columns_are_those_of_the_files() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, flags=re.MULTILINE)
    found = [(name, TYPES[kind]) for name, kind in rows]
    assert found == [(name, str(SCHEMA.field(name).type).replace("item:", "element:")) for name in SCHEMA.names]


def test_its_settings_exist() -> None:
    for name in re.findall(r"(?<!deeprec\.)serving\.log\.(\w+)", PAGE):
        assert name in RequestLogConfig.model_fields


def test_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RequestLog(RequestLogConfig(path=str(tmp_path / "log")))
    log(AnsweredRequest("deeprec", "u0001", "trm", LATE, ("a",), ("a",), (), 5.0, (), 100, 1, "v1", 1e9))
    log.close()
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        assert "logs/recommender" in code
        exec(
            compile(code.replace("logs/recommender", str(tmp_path / "log")), "docs/reference/request-log.md", "exec"),
            {},
        )
    assert re.search(r"trm\D+1\b", out := capsys.readouterr().out)
    assert re.search(r"^[0-9a-f]{32}$", out, flags=re.MULTILINE)
