"""Binary tensors of the V2 protocol, as KServe's client sends NumPy arrays by default, written into the JSON.

A body is JSON of as many bytes as the header ``Inference-Header-Content-Length`` says, then the tensors' bytes, each as
long as its parameter ``binary_data_size``. Our models take text, datatype BYTES: each element is its length in four
bytes, the smallest first, and then itself in UTF-8.
"""

from __future__ import annotations

import json

LENGTH = "inference-header-content-length"
_SIZE = 4


def joined(body: bytes, length: bytes) -> bytes:
    """The body as JSON alone.

    Raises:
        ValueError: with one clause that says what does not fit.
    """
    if not length.isdigit() or len(length) > 9 or int(length) > len(body):
        raise ValueError(f"the header {LENGTH} is not the length of its JSON")
    whole, tail = json.loads(body[: int(length)]), body[int(length) :]
    inputs = whole.get("inputs") if isinstance(whole, dict) else None
    for tensor in inputs if isinstance(inputs, list) else ():
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.pop("binary_data_size", None) if isinstance(parameters, dict) else None
        if size is None:
            continue
        if tensor.get("datatype") != "BYTES":
            raise ValueError("a tensor is not of datatype BYTES; send JSON texts")
        if not isinstance(size, int) or not 0 <= size <= len(tail):
            raise ValueError("binary_data_size is not the length of what follows")
        tensor["data"] = _elements(tail[:size])
        tail = tail[size:]
    if tail:
        raise ValueError("bytes follow that no tensor names")
    return json.dumps(whole).encode()


def _elements(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + _SIZE], "little")
        at += _SIZE
        if at + size > len(data):
            raise ValueError("an element is longer than its tensor")
        found.append(data[at : at + size].decode())
        at += size
    return found
