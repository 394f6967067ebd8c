"""Text files as blocks of whole lines: bounded memory, exact line numbers, bytes as they are.

Compressed files (.gz, .zst, .bz2) are read through Arrow's codecs. `\\r\\n` is a line end like `\\n`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.errors import DataError
from sonder.events.files import compression_of, open_source

BLOCK_BYTES = 16 << 20
MAX_LINE_BYTES = 256 << 20
NEWLINE, RETURN = ord("\n"), ord("\r")


@dataclass(frozen=True)
class LineBlock:
    """N whole lines of a file; `data` ends with a newline."""

    data: bytes
    first_line: int  # of the file, from 0
    is_last: bool

    @property
    def bytes_array(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.data, np.uint8)

    def bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start and end of each line [N], without its newline."""
        ends = np.flatnonzero(self.bytes_array == NEWLINE)
        return np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))[: len(ends)], ends


def read_blocks(source: str, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Chunks of a file that end at a line end; the last one is given a newline if it has none."""
    rest = b""
    try:
        with open_source(source) as raw:
            codec = compression_of(source)
            file = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec) if codec else raw
            is_first = True
            while chunk := file.read(block_bytes):
                if is_first:
                    chunk, is_first = _without_mark(chunk, source), False
                cut = chunk.rfind(b"\n") + 1
                if cut == 0:
                    rest += chunk
                    if len(rest) > MAX_LINE_BYTES:
                        raise DataError(
                            f"{source} has a line of more than {MAX_LINE_BYTES >> 20} MiB", expected="lines"
                        )
                    continue
                whole, rest = (rest + chunk[:cut]) if rest else chunk[:cut], chunk[cut:]
                yield whole.replace(b"\r\n", b"\n") if b"\r\n" in whole else whole
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{source} is gone", do="Run the command again on the files that are there.") from error
        raise DataError(f"{source} cannot be read to its end: {error}", expected="a whole file") from error
    if rest:
        yield rest.removesuffix(b"\r") + b"\n"


def _without_mark(chunk: bytes, source: str) -> bytes:
    if chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{source} is UTF-16", expected="UTF-8 text", do="Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE"
        )
    return chunk.removeprefix(b"\xef\xbb\xbf")


def line_blocks(source: str) -> Iterator[LineBlock]:
    """The lines of a file, block by block."""
    first_line = 0
    pending: bytes | None = None
    for chunk in read_blocks(source):
        if pending is not None:
            yield LineBlock(pending, first_line, is_last=False)
            first_line += pending.count(b"\n")
        pending = chunk
    if pending is not None:
        yield LineBlock(pending, first_line, is_last=True)


def first_lines(source: str, num: int) -> list[bytes]:
    """The first lines of a file, for a look at it."""
    for chunk in read_blocks(source, 1 << 20):
        return chunk.split(b"\n", num)[:num] if chunk.count(b"\n") > num else chunk.split(b"\n")[:-1]
    return []
