"""Write an image's bill of materials, CycloneDX 1.6 as JSON: what pip and Debian have installed in it.

``python3 bom.py NAME VERSION INSPECTED > bom.json``; INSPECTED is what ``pip inspect`` printed in its environment.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(name: str, version: str, inspected: str) -> None:
    """Print the document."""
    components = [*python_packages(Path(inspected)), *debian_packages()]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        "components": sorted(components, key=lambda one: str(one["purl"])),
    }
    print(json.dumps(document, indent=1))


def python_packages(inspected: Path) -> Iterator[dict[str, Any]]:
    """Distributions, with their licences as they state them."""
    for one in json.loads(inspected.read_text(encoding="utf-8"))["installed"]:
        told = one["metadata"]
        found = component("pypi", told["name"].lower().replace("_", "-"), told["version"])
        if told.get("license_expression"):
            found["licenses"] = [{"expression": told["license_expression"]}]
        yield found


def debian_packages() -> Iterator[dict[str, Any]]:
    """Packages of the base and of what was installed on it."""
    asked = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\n"]
    listed = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    yield from (component("deb/debian", *line.split("\t")) for line in listed.splitlines())


def component(kind: str, name: str, version: str) -> dict[str, Any]:
    """One library, by its package URL."""
    purl = f"pkg:{kind}/{name}@{version}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    main(*sys.argv[1:])
