"""Files that are written whole or not at all, and what is said of them on a terminal."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from utils.system.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The path of a new file that takes the place of `path` once it is written; until then, and if that fails, `path`
    stays as it was. The folder is made, if it is not there.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    # Figures go by the suffix; a hidden file that a kill leaves is no image of a dataset.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or choose another place"
        ) from None
    finally:
        with suppress(OSError):  # on a read-only disk even this fails, and would hide what is said above
            partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write text as UTF-8, line ends as they are; raises as `replacing` does."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8", newline="")


def digits_of(*paths: Path) -> str:
    """Eight digits of a hash of full paths, which keep files of one name apart."""
    full = "\n".join(str(path.resolve()) for path in paths)
    return hashlib.sha256(full.encode(errors="surrogatepass")).hexdigest()[:8]  # for bytes in names that are no text


def state_of(path: Path, *more: object) -> str:
    """Digits that change with a file, or when another one takes its place, and with what else is given.

    Raises:
        OSError: it is not there.
    """
    found = os.stat(path)
    state = found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, *more
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def counted(number: int, noun: str) -> str:
    """A number of things: 1 image, 2 images."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_any_name() -> None:
    """Let what this program prints hold letters that its terminal lacks, which are then shown as their numbers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
