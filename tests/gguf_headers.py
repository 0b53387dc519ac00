"""The smallest file that says it is GGUF: a header of metadata alone, which is all that finding a model reads."""

from __future__ import annotations

from pathlib import Path


def gguf_header(file: Path, licence: str = "apache-2.0") -> Path:
    """Write the file: the architecture llama, a licence, no tensor."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    def entry(name: str, value: str) -> bytes:
        return text(name) + (8).to_bytes(4, "little") + text(value)

    entries = [entry("general.architecture", "llama"), entry("general.license", licence)]
    counts = (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + len(entries).to_bytes(8, "little")
    file.write_bytes(b"GGUF" + counts + b"".join(entries))
    return file
