"""Bytes of text files to text: one encoding, or several tried in turn, and a precise complaint when none fits."""

from __future__ import annotations

import codecs

from finetune.data.layout import DataFile
from finetune.errors import DataError

_BOM = codecs.BOM_UTF8


def decode_file(file: DataFile, encoding: str, fallback: list[str] | None = None) -> str:
    """The text of a file, without a byte order mark; files that needed another than the first encoding join `fallback`.

    Raises DataError with the byte offset at which the first encoding failed.
    """
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error.strerror or error}; check its permissions") from error
    return _decode(data, encoding, file, fallback)


def _decode(data: bytes, encoding: str, file: DataFile, fallback: list[str] | None) -> str:
    failure: tuple[UnicodeDecodeError, int] | None = None
    names = [name.strip() for name in encoding.split(",")]
    for name in names:
        skip = 0
        try:
            if codecs.lookup(name).name == "utf-8" and data.startswith(_BOM):
                skip = len(_BOM)
            text = data[skip:].decode(name)
        except LookupError:
            raise DataError(f"data.encoding: '{name}' is no text encoding; use for example utf-8 or cp1252") from None
        except UnicodeDecodeError as error:
            failure = failure or (error, skip + error.start)
            continue
        except UnicodeError as error:  # UTF-16 without a byte order mark, for one
            raise DataError(f"{file.name} cannot be decoded as {name}: {error}; set data.encoding") from error
        if failure is not None and fallback is not None:
            fallback.append(file.place)
        return text
    assert failure is not None, "an encoding either decodes or fails"
    advice = f"{names[0]},cp1252" if len(names) == 1 else "one that fits"
    raise DataError(
        f"{file.name} is not valid {' or '.join(names)} (byte {data[failure[1]]:#04x} at offset {failure[1]}); "
        f"convert the file, or set data.encoding (encodings separated by commas are tried in turn: {advice})"
    ) from failure[0]
