"""Files that are written completely or not at all; hashes of paths; numbers with nouns."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.system.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the path of a temporary file, which takes the place of `path` when the block ends without an error; a
    missing folder is made. Raises a UserError if the disk is full, or the folder cannot be written to."""
    path = Path(path)
    # The suffix stays, as it decides the format of a figure. Hidden, so that what a kill leaves is no dataset's image.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        advice = "make room, or choose another place"
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from None
    finally:
        if os.path.exists(partial):  # False, too, where the name is too long
            partial.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write text to a file, completely or not at all, as UTF-8 with its line ends unchanged; raises as `replacing`."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8", newline="")


def hash_of_paths(*paths: Path) -> str:
    """Hash full paths into eight hexadecimal digits, so that files of the same name in two folders stay apart."""
    full = "\n".join(str(path.resolve()) for path in paths)
    return hashlib.sha256(full.encode(errors="surrogatepass")).hexdigest()[:8]  # a name may hold bytes that are no text


def file_state(path: Path) -> str:
    """Hash what the system knows of a file, which changes with the file, into 16 digits; OSError if it is not there."""
    found = os.stat(path)
    state = found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def state_if_there(path: Path) -> str:
    """The `file_state` of a file, "" if there is none."""
    with suppress(OSError):
        return file_state(path)
    return ""


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: 1 image, 2 images."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
