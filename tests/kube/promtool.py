"""Prometheus' own checker of rules, from Debian's package, and what each of our alerts is tried with."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.kube.rendered import NAMESPACE, Rendered

ANSWERS = f'deeprec_answer_duration_seconds_count{{namespace="{NAMESPACE}", pod="p", path="%s", reason="%s"}}'
REQUESTS = f'deeprec_http_requests_total{{namespace="{NAMESPACE}", pod="p", status="%s"}}'
SINGLE = f'%s{{namespace="{NAMESPACE}", pod="p"}}'
ALERTS: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "DeeprecAnswersByPopularity": (
        [(ANSWERS % ("popularity", "store"), "0+3x60"), (ANSWERS % ("policy", "none"), "0+97x60")],
        [(ANSWERS % ("popularity", "unknown_user"), "0+30x60"), (ANSWERS % ("policy", "none"), "0+70x60")],
    ),
    "DeeprecFailing": (
        [(REQUESTS % "500", "0+3x60"), (REQUESTS % "200", "0+97x60")],
        [(REQUESTS % "429", "0+30x60"), (REQUESTS % "200", "0+70x60")],
    ),
    "DeeprecShedding": ([(SINGLE % "deeprec_shed_total", "0+120x60")], [(SINGLE % "deeprec_shed_total", "0+20x60")]),
    "DeeprecPolicyDown": ([(SINGLE % "deeprec_policy_down", "1x60")], [(SINGLE % "deeprec_policy_down", "0x60")]),
    "DeeprecStoreAway": ([(SINGLE % "deeprec_store_away", "1x60")], [(SINGLE % "deeprec_store_away", "0x60")]),
    "DeeprecBundleRefused": (
        [(SINGLE % "deeprec_bundle_refused", "1x60")], [(SINGLE % "deeprec_bundle_refused", "0x60")],
    ),
    "DeeprecLogDropsRows": (
        [(f'deeprec_log_rows_total{{namespace="{NAMESPACE}", pod="p", outcome="dropped"}}', "0+1x60")],
        [(f'deeprec_log_rows_total{{namespace="{NAMESPACE}", pod="p", outcome="written"}}', "0+9x60")],
    ),
}  # fmt: skip
"""Alert → series, a sample a minute, at which it fires after half an hour, and at which it does not."""


@cache
def promtool() -> Path:
    """The program, unpacked from Debian's package without installing it; kept in ``~/.cache/deeprec-tests``."""
    cache_root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deeprec-tests"
    place = cache_root / "prometheus"
    place.mkdir(parents=True, exist_ok=True)
    with (cache_root / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = place / "usr" / "bin" / "promtool"
        if not program.exists():
            if subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=place, check=False).returncode:
                subprocess.run(["apt-get", "update", "-qq"], check=True)
                subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=place, check=True)
            [package] = place.glob("*.deb")
            subprocess.run(["dpkg", "-x", package, place], check=True)
            package.unlink()
    return program


def check(objects: Sequence[Rendered], place: Path) -> None:
    """Every rule is one that Prometheus takes, fires when it should, and does not when it should not."""
    [rules] = [one.object["spec"] for one in objects if one.kind == "PrometheusRule"]
    known = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
    assert known.keys() == ALERTS.keys()
    (place / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    tests = [
        _test(known[name], series, fires)
        for name, (firing, quiet) in ALERTS.items()
        for series, fires in ((firing, True), (quiet, False))
    ]
    told = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (place / "tests.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    for command in (("check", "rules", "rules.yaml"), ("test", "rules", "tests.yaml")):
        done = subprocess.run([promtool(), *command], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def _test(rule: dict[str, Any], series: list[tuple[str, str]], fires: bool) -> dict[str, Any]:
    labels = {**rule["labels"], **({"pod": "p"} if "by (pod)" in rule["expr"] else {})}
    expected = [{"exp_labels": labels, "exp_annotations": rule["annotations"]}] if fires else []
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "alert_rule_test": [{"eval_time": "30m", "alertname": rule["alert"], "exp_alerts": expected}],
    }
