"""Open one local file for reading, whatever it is compressed with."""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow

from keepset.errors import TextError

ENDINGS = frozenset({".gz", ".bz2", ".zst", ".zstd", ".lz4", ".xz"})
"""What is added to the name of a file that is compressed."""

_CODECS = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    **{b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)},
}
_XZ, _ZIP = b"\xfd7zXZ\0", b"PK\x03\x04"


@contextmanager
def opened(path: Path, label: str) -> Iterator[BinaryIO]:
    """Open a file for reading; its first bytes, not its name, say whether it is compressed.

    Args:
        path: the file.
        label: the configuration key, for messages.

    Raises:
        TextError: the file cannot be read, is damaged, or is an archive of files.
    """
    try:
        with path.open("rb") as file:
            yield _decompressed(file, path, label)
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TextError(f"{label}: cannot read {path}: {reason}") from None


def _decompressed(file: io.BufferedReader, path: Path, label: str) -> BinaryIO:
    head = file.read(10)
    file.seek(0)
    if head.startswith(_ZIP):
        raise TextError(f"{label}: {path} is a zip archive; unpack it and give the files in it")
    if head.startswith(_XZ):
        return cast(BinaryIO, lzma.open(file))
    for magic, codec in _CODECS.items():
        if head.startswith(magic):
            stream = pyarrow.CompressedInputStream(file, codec)
            return cast(BinaryIO, io.BufferedReader(stream))
    return file


def read_text(path: Path, label: str) -> str:
    """The text of a UTF-8 file, with "\\n" as line end and without a byte order mark.

    Raises:
        TextError: the file cannot be read, is binary, or is not UTF-8.
    """
    with opened(path, label) as file:
        return decode(file.read(), path, label)


def decode(data: bytes, path: Path, label: str) -> str:
    """The text of `data`, a part of the file at `path`; see `read_text`.

    Raises:
        TextError: the data is binary or not UTF-8.
    """
    if b"\0" in data:
        raise TextError(f"{label}: {path} is a binary file; give a text file, or set format")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{label}: {path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
