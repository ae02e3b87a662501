"""Feast imported without its run-time checks of types: what we lean on, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import typeguard
checked = typeguard.typechecked
{imported}
assert typeguard.typechecked is checked
from feast.feature_view import FeatureView
print(any("check_argument" in name for name in FeatureView.__init__.__code__.co_names))
"""


@pytest.mark.parametrize(
    ("imported", "shown"),
    [
        ("import feast", "True"),
        ("from deeprec.features.feast_import import feature_store; assert feature_store().get_feature_view", "False"),
    ],
)
def test_feast_has_checks_of_its_own_and_they_are_left_out(imported: str, shown: str) -> None:
    script = SCRIPT.format(imported=imported)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == shown, done.stderr
