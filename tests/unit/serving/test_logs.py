"""Lines of a log, for people and as JSON, each with the request that it belongs to."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys

from deeprec.serving.logs import JsonLines, TextLines, identified, request_id


def record(message: str, trace: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("a reason")
    except ValueError:
        info = sys.exc_info() if trace else None
    return logging.LogRecord("deeprec.x", logging.WARNING, "x.py", 1, message, (), info)


def test_a_line_names_its_request_in_tasks_too() -> None:
    async def main() -> None:
        with identified("a-7") as name:
            assert name == request_id() == "a-7"
            line = await asyncio.create_task(asyncio.to_thread(TextLines().format, record("found")))
            assert line.endswith("WARNING deeprec.x: found (request a-7)")
        assert request_id() == ""
        assert TextLines().format(record("found")).endswith("deeprec.x: found")

    asyncio.run(main())


def test_json_lines_are_one_line_each() -> None:
    with identified("a-7"):
        line = JsonLines().format(record("two\nlines", trace=True))
    assert "\n" not in line
    found = json.loads(line)
    assert found["time"].endswith("Z")
    assert (found["level"], found["logger"], found["message"]) == ("warning", "deeprec.x", "two\nlines")
    assert found["request_id"] == "a-7"
    assert "ValueError: a reason" in found["trace"]
    assert set(json.loads(JsonLines().format(record("x")))) == {"time", "level", "logger", "message"}


def test_every_line_of_a_process_is_of_the_format_that_was_asked_for() -> None:
    script = (
        "import logging, warnings\n"
        "from deeprec.serving.logs import set_up_logging\n"
        "set_up_logging('json')\n"
        "from deeprec.serving.http.kserve_server import Server\n"
        "Server(None)\n"
        "for name in ('deeprec.x', 'kserve', 'uvicorn.error'): logging.getLogger(name).info('x')\n"
        "logging.getLogger('other').warning('x')\n"
        "logging.getLogger('uvicorn.access').info('x')\n"
        "warnings.warn('beware')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["deeprec.x", "kserve", "uvicorn.error", "other", "py.warnings"]
