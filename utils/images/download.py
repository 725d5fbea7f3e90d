"""Downloads the paper's public image sets from its authors' repository.

One zip archive holds all three sets; it is kept in `Data/.downloads`. A set appears under its final name only when it
is complete, so an interrupted run can be repeated.
"""

import shutil
import urllib.error
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

from torch.hub import download_url_to_file

from utils.system.errors import DataError

REPOSITORY = "https://github.com/ioannislivieris/Grad_CAM_Siamese"
COMMIT = "ee2107a"
PUBLIC_SETS = ("Flowers", "Skin_cancer", "AirBnB")


def download_public(name: str, data_root: Path | str = "Data", base_url: str = f"{REPOSITORY}/archive") -> Path:
    """Download the public set `name` to `data_root/name`, one folder per class, and return that folder; what is there
    already is not downloaded again.

    Raises:
        DataError: unknown name, no connection, an error of the server, a damaged archive, or a disk that cannot be
            written. No incomplete set is left.
    """
    if name not in PUBLIC_SETS:
        raise DataError(f"unknown public set {name!r}; choose one of {', '.join(PUBLIC_SETS)}")
    root = Path(data_root).expanduser()
    final, partial, url = root / name, root / f".{name}.part", f"{base_url}/{COMMIT}.zip"
    archive = root / ".downloads" / f"{REPOSITORY.rsplit('/', 1)[-1]}-{COMMIT}.zip"
    again = f"run this again, or download it by hand from {REPOSITORY} and put its folder Data/{name} at {final}"
    if final.exists():
        print(f"{final}: there already; move it away to download it again")
        return final
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        if not zipfile.is_zipfile(archive):
            download_url_to_file(url, str(archive))
        print(f"unpacking {name}")
        with zipfile.ZipFile(archive) as zipped:  # writes nowhere else, whatever a member's name, and makes no links
            inside = f"Data/{name}/"  # of the archive's only folder
            members = [file for file in zipped.namelist() if file.partition("/")[2].startswith(inside)]
            zipped.extractall(partial, members)
        next(partial.glob(f"*/Data/{name}")).rename(final)
    except (zipfile.BadZipFile, zlib.error, EOFError, StopIteration) as error:  # cut short, which raises none before
        archive.unlink()
        raise DataError(f"{url}: came damaged or not whole ({error}), and was deleted; {again}") from error
    except (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException) as error:
        advice = f"check the network and proxy settings, wait some minutes, and {again}"
        raise DataError(f"{url}: cannot be fetched ({error}); {advice}") from error
    except OSError as error:
        advice = "free some space there or check its permissions, then run this again"
        raise DataError(f"cannot write to {root} ({error}); {advice}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{final}: complete. {archive} has the other sets too; delete it if you need no more")
    return final
