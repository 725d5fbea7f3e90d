"""The index of a folder, made and kept up to date: new, changed and deleted files."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm.auto import tqdm

from utils.explain.occlusion import region_effects
from utils.explain.removal import embed_in_parts
from utils.images.folder import images_below, printable
from utils.images.frame import Frame, decode
from utils.images.reading import what_is_wrong
from utils.search.store import Index
from utils.Siamese import SiameseNetwork
from utils.system.errors import DataError
from utils.system.files import counted, file_state, hash_of_paths
from utils.system.settings import Config

INDEX = ".sqlite"
# Images between two commits, which are what a killed run may lose: some seconds of a CPU's work either way.
EMBEDDED_AT_ONCE = 64
MEASURED_AT_ONCE = 8
State = tuple[str, str]  # a file's path in the folder, and its `file_state`


def place_of(config: Config, path: Path, suffix: str) -> Path:
    """The file in which the index of a folder, or the figure of an image, is kept; each path has its own."""
    return config.outputs_path / "search" / f"{path.resolve().stem[:40]}-{hash_of_paths(path)}{suffix}"


def build_index(
    model: SiameseNetwork, folder: Path, path: Path, explain: bool = False, num_workers: int = 2, verbose: bool = True
) -> str:
    """Bring the index of a folder and its sub-folders, the file `path`, up to date: embed new and changed images,
    remove deleted ones; returns lines that say what was done.

    Images are written in batches: after a killed run, the next one goes on from there; others can search meanwhile.

    Args:
        explain: also measure the effects of regions, some 100 passes an image; otherwise a query measures its hits.
        num_workers: threads that read files.

    Raises:
        DataError: no such folder, or no image in it.
        SearchError: the index is damaged or cannot be written.
    """
    found, problems = images_in(folder)
    left_out, embedded = [f"{name}: {what}" for name, what in problems.items()], 0
    with Index(path, model, folder) as index:
        known = index.files().keys()
        lost = {file for file, _ in known} - found.keys()
        places = missing_places(folder, lost, problems)
        staying = {file for file, (_, may_come_back) in places.items() if may_come_back}
        index.remove(state for state in known - found.items() if state[0] not in staying)
        images = _read(found.items() - known, folder, model.frame, left_out, num_workers, "Embedding" * verbose)
        for states, pixels in _batches(images, EMBEDDED_AT_ONCE):
            index.add(states, embed_in_parts(model, model.normalize(pixels), EMBEDDED_AT_ONCE).cpu().numpy())
            embedded += len(states)
        ids = index.files(unexplained=True) if explain else {}
        images = _read(ids, folder, model.frame, left_out, num_workers, "Occluding regions" * verbose)
        for states, pixels in _batches(images, MEASURED_AT_ONCE):
            effects = region_effects(model, model.normalize(pixels), verbose=False)
            index.add_effects([ids[state] for state in states], effects.delta)
        images, unexplained = len(index.files()), len(index.files(unexplained=True))
    lines = ["the index was of another network or version: built from the start"] if index.emptied else []
    lines += ["left out:", *left_out] if left_out else []
    for (place, may_come_back), count in Counter(places.values()).items():
        if place not in lost:  # a file has its line, or is counted
            kept = "empty, or cannot be listed; the index keeps {} of it; connect its drive, or delete it"
            lines.append(f"{place}: {(kept if may_come_back else 'gone, with {}').format(counted(count, 'image'))}")
    changes = f"new or changed: {embedded}, gone: {len(lost - staying)}"
    lines.append(f"{folder}: {counted(images, 'image')} in the index; {changes}")
    if unexplained:
        lines.append(f"{counted(unexplained, 'image')} not measured yet; a query measures those that it finds")
    return "\n".join(lines)


def _read(
    files: Iterable[State], folder: Path, frame: Frame, left_out: list[str], num_workers: int, title: str
) -> Iterator[tuple[State, np.ndarray]]:
    """Read images: yields each file's state, taken before, and its pixels, uint8 (3, H, W), under a bar if it has a
    title; `left_out` gets a line for each that cannot be read."""
    files = sorted(files)
    found = decode([folder / file for file, _ in files], frame, lambda path, image: None, num_workers, verbose=False)
    for image, state in zip(tqdm(found, title, len(files), unit="image", disable=not title, delay=2), files):
        if isinstance(image, str):
            left_out.append(f"{state[0]}: {image}")
        else:
            yield state, image[0]


def _batches(images: Iterator[tuple[State, np.ndarray]], size: int) -> Iterator[tuple[list[State], torch.Tensor]]:
    while batch := list(islice(images, size)):
        states, pixels = zip(*batch)
        yield states, torch.from_numpy(np.stack(pixels))


def images_in(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """List the images in a folder and its sub-folders, hidden ones aside: the state of each file; and what is wrong
    with each file or folder that cannot be listed or named. Raises a DataError if there is none."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; name the folder of images to search")
    if printable(full := str(folder.resolve())) != full:
        raise DataError(f"{folder}: a path that is not valid text; rename the folder")
    found, wrong = {}, {}
    for path in images_below(folder, wrong):
        try:
            found[path.relative_to(folder).as_posix()] = file_state(path)
        except OSError as error:
            wrong[path] = what_is_wrong(path, error)
    problems = {printable(path.relative_to(folder).as_posix()): what for path, what in wrong.items()}
    if not found:
        lines = [f"{name}: {what}" for name, what in problems.items()]
        raise DataError("\n".join([f"{folder}: no image in it or its sub-folders; name another folder", *lines]))
    return found, problems


def missing_places(folder: Path, lost: Iterable[str], problems: dict[str, str]) -> dict[str, tuple[str, bool]]:
    """Tell of each indexed file that was not found which folder, or else the file, is gone, and whether it may come
    back: it cannot be looked for, or is a folder that is empty, as a drive is that is not mounted."""
    places = {}
    for file in sorted(lost):
        inside = [*map(str, reversed(PurePosixPath(file).parents[:-1])), file]
        missing = (x for x in inside if x in problems or not os.path.isdir(folder / x) or not os.listdir(folder / x))
        place = next(missing, file)
        places[file] = place, place in problems or os.path.isdir(folder / place)
    return places
