"""Downloads the paper's public image sets from its authors' repository.

One zip archive holds all three sets; it is kept in `Data/.downloads`. A set appears under its final name only when it
is complete, so an interrupted run can be repeated.
"""

import http.client
import shutil
import ssl
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.auto import tqdm

from utils.system.errors import DataError
from utils.system.files import counted, replacing

REPOSITORY = "https://github.com/ioannislivieris/Grad_CAM_Siamese"
COMMIT = "ee2107a"
PUBLIC_SETS = {"Flowers": 4317, "Skin_cancer": 2800, "AirBnB": 864}  # name -> number of images
TIMEOUT = 60  # seconds in which no data arrive
MAX_BYTES = 4 * 1024**3  # that a set may unpack to, against damaged archives; the real sets are far smaller


def download_public(name: str, data_root: Path | str = "Data", base_url: str = f"{REPOSITORY}/archive") -> Path:
    """Download the public set `name` to `data_root/name`, one folder per class, and return that folder; what is there
    already is not downloaded again.

    Raises:
        DataError: unknown name, another folder in the way, no connection, an error of the server, a damaged
            archive, an unexpected number of images, or a disk that cannot be written. No incomplete set is left.
    """
    if name not in PUBLIC_SETS:
        raise DataError(f"unknown public set {name!r}; choose one of {', '.join(PUBLIC_SETS)}")
    root = Path(data_root).expanduser()
    final, partial = root / name, root / f".{name}.part"
    archive = root / ".downloads" / f"{REPOSITORY.rsplit('/', 1)[-1]}-{COMMIT}.zip"
    by_hand = f"download it by hand from {REPOSITORY} and put its folder Data/{name} at {final}"
    if final.exists():
        _check_count(final, name, f"{final} holds", "move it away and run this again")
        print(f"{final}: all {PUBLIC_SETS[name]} images are there already")
        return final
    try:
        if not zipfile.is_zipfile(archive):
            _fetch(f"{base_url}/{COMMIT}.zip", archive, by_hand)
        shutil.rmtree(partial, ignore_errors=True)
        folder = _unpack(archive, name, partial)
        _check_count(folder, name, f"{archive}: {name} in it holds", f"delete it and run this again, or {by_hand}")
        folder.rename(final)
    except OSError as error:
        raise DataError(
            f"cannot write to {root} ({error}); free some space there or check its permissions, then run this again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{final}: all {PUBLIC_SETS[name]} images. {archive} has the other sets too; delete it if you need no more")
    return final


def _check_count(folder: Path, name: str, holds: str, advice: str) -> None:
    found = sum(path.suffix.lower() in IMG_EXTENSIONS for path in folder.rglob("*"))
    if found != PUBLIC_SETS[name]:
        raise DataError(f"{holds} {counted(found, 'image')} instead of {PUBLIC_SETS[name]}; {advice}")


def _fetch(url: str, archive: Path, by_hand: str) -> None:
    """Download `url` to `archive`, which appears only when it is a complete zip file."""
    with replacing(archive) as partial:
        try:
            with (
                urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
                partial.open("wb") as file,
                tqdm.wrapattr(file, "write", total=answer.length, desc=f"Downloading {url}") as out,
            ):
                shutil.copyfileobj(answer, out)
        except urllib.error.HTTPError as error:
            wait = "" if error.code == 404 else "wait some minutes and run this again, or "
            raise DataError(f"HTTP {error.code} ({error.reason}) from {url}; {wait}{by_hand}") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise DataError(
                f"the connection to {url} failed ({reason}); check the network and proxy settings and run this again, "
                f"or {by_hand}"
            ) from error
        if not zipfile.is_zipfile(partial):  # a transfer that was cut short raises nothing
            raise DataError(f"the download of {url} ended early; run this again, or {by_hand}")


def _unpack(archive: Path, name: str, folder: Path) -> Path:
    """Unpack a set into `folder` (`extract` writes nowhere else, whatever a member's name, and makes no links)."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            inside = f"Data/{name}/"  # of the archive's only folder
            members = [info for info in zipped.infolist() if info.filename.partition("/")[2].startswith(inside)]
            if sum(info.file_size for info in members) > MAX_BYTES:  # no member unpacks to more than it announces
                raise zipfile.BadZipFile(f"unpacks to more than {MAX_BYTES / 1024**3:g} GiB")
            for info in tqdm(members, desc=f"Unpacking {name}", unit="file"):
                zipped.extract(info, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise DataError(
            f"the archive {archive} is damaged ({error}) and was removed; run this again to download a fresh one"
        ) from error
    return next(folder.glob(f"*/Data/{name}"), folder)
