"""The index of a folder, made and kept up to date: new, changed and deleted files."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm.auto import tqdm

from utils.explain.occlusion import region_effects
from utils.explain.removal import embed_in_parts
from utils.images.folder import images_below, printable
from utils.images.frame import decode
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


def place_of(config: Config, path: Path, suffix: str) -> Path:
    """The file in which the index of a folder, or the figure of an image, is kept; each path has its own."""
    return config.outputs_path / "search" / f"{path.resolve().stem[:40]}-{hash_of_paths(path)}{suffix}"


def build_index(
    model: SiameseNetwork, folder: Path, path: Path, explain: bool = False, num_workers: int = 2, verbose: bool = True
) -> str:
    """Bring the index of a folder and its sub-folders up to date: embed new and changed images, remove deleted ones.

    Images are written in batches: after a killed run, the next one goes on from there; others can search meanwhile.

    Args:
        path: file of the index; it is made if it is not there.
        explain: also measure the effects of regions, some 100 passes an image; otherwise a query measures its hits.
        num_workers: threads that read files.

    Returns:
        What was done, in lines.

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
        batches = partial(_batches, model, folder, left_out, num_workers, verbose)
        for states, pixels in batches(found.items() - known, EMBEDDED_AT_ONCE, "Embedding"):
            z = embed_in_parts(model, model.normalize(pixels), EMBEDDED_AT_ONCE)
            index.add(states, z.cpu().numpy())
            embedded += len(states)
        ids = index.files(unexplained=True) if explain else {}
        for states, pixels in batches(ids, MEASURED_AT_ONCE, "Occluding regions"):
            effects = region_effects(model, model.normalize(pixels), verbose=False)
            index.add_effects([ids[state] for state in states], effects.delta)
        images, unexplained = len(index.files()), len(index.files(unexplained=True))
    lines = ["the index was of another network or version: built from the start"] if index.emptied else []
    lines += ["left out:", *left_out] if left_out else []
    for (place, may_come_back), count in Counter(places.values()).items():
        if place not in lost:  # a file has its line, or is counted
            kept = "nothing is found in it now; the index keeps {} of it until it is deleted"
            lines.append(f"{place}: {(kept if may_come_back else 'gone, with {}').format(counted(count, 'image'))}")
    changes = f"new or changed: {embedded}, gone: {len(lost - staying)}"
    lines.append(f"{folder}: {counted(images, 'image')} in the index; {changes}")
    if unexplained:
        lines.append(f"{counted(unexplained, 'image')} not measured yet; a query measures those that it finds")
    return "\n".join(lines)


def _batches(
    model: SiameseNetwork,
    folder: Path,
    left_out: list[str],
    num_workers: int,
    verbose: bool,
    files: Iterable[tuple[str, str]],
    size: int,
    title: str,
) -> Iterator[tuple[Sequence[tuple[str, str]], torch.Tensor]]:
    """Read up to `size` images at a time: files with states, and pixels (N, 3, H, W), uint8; `left_out` gets a line for
    each image that cannot be read."""
    # A state is taken before its file is read: if the file changes meanwhile, queries and builds see the change.
    files = sorted(files)
    paths = [folder / file for file, _ in files]
    found = decode(paths, model.frame, lambda path, image: None, num_workers, verbose=False)
    images = zip(files, tqdm(found, title, len(files), unit="image", disable=not verbose, delay=2))
    while batch := list(islice(images, size)):
        left_out += [f"{file}: {image}" for (file, _), image in batch if isinstance(image, str)]
        if readable := [(state, image[0]) for state, image in batch if not isinstance(image, str)]:
            states, pixels = zip(*readable)
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
