"""The index of a folder, made and kept up to date: new, changed and deleted files."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm.auto import tqdm

from utils.explain.occlusion import region_effects
from utils.explain.removal import embed_in_parts
from utils.images.decoding import decode
from utils.images.folder import images_below, printable
from utils.images.frame import Frame
from utils.images.reading import what_is_wrong
from utils.models import network_for
from utils.search.store import FileState, Index
from utils.Siamese import SiameseNetwork
from utils.system.errors import DataError
from utils.system.files import counted, file_state, hash_of_paths
from utils.system.settings import Config

INDEX = ".sqlite"
# Images between two commits, which are what a killed run may lose: some seconds of a CPU's work either way.
EMBEDDED_AT_ONCE = 64
MEASURED_AT_ONCE = 8


@dataclass
class Report:
    """What a build did to an index."""

    folder: Path
    images: int = 0  # in the index now
    unexplained: int = 0  # of these, images whose regions are not measured
    embedded: int = 0  # new or changed images
    gone: int = 0  # images whose files are no longer there
    problems: list[str] = field(default_factory=list)  # a line for each file or folder left out
    notes: list[str] = field(default_factory=list)  # a line for each folder whose images were not found any more
    emptied: bool = False  # because it was made by another network
    stopped: bool = False  # by the user

    def __str__(self) -> str:
        lines = ["the index was of another network or version: built from the start"] if self.emptied else []
        if self.problems:
            lines += ["left out:", *self.problems]
        lines += self.notes
        changes = f"new or changed: {self.embedded}, gone: {self.gone}"
        lines.append(f"{self.folder}: {counted(self.images, 'image')} in the index; {changes}")
        if self.stopped:
            lines.append("stopped: what is in the index can be searched; build again to go on from there")
        if self.unexplained:
            lines.append(f"{counted(self.unexplained, 'image')} not measured yet; a query measures those that it finds")
        return "\n".join(lines)


def place_of(config: Config, path: Path, suffix: str) -> Path:
    """The file in which the index of a folder, or the figure of an image, is kept; each path has its own."""
    return config.outputs_path / "search" / f"{path.resolve().stem[:40]}-{hash_of_paths(path)}{suffix}"


def build_index(
    model: SiameseNetwork, folder: Path, path: Path, explain: bool = False, num_workers: int = 2, verbose: bool = True
) -> Report:
    """Bring the index of a folder and its sub-folders up to date: embed new and changed images, remove deleted ones.

    Images are written in batches: after a killed run, the next one goes on from there; others can search meanwhile.

    Args:
        path: file of the index; it is made if it is not there.
        explain: also measure the effects of regions, some 100 passes an image; otherwise a query measures its hits.
        num_workers: threads that read files.

    Raises:
        DataError: no such folder, or no image in it.
        SearchError: the index is damaged or cannot be written.
    """
    report = Report(folder)
    found, problems = images_in(folder)
    with Index(path, model, folder) as index:
        report.emptied, known = index.emptied, index.states()
        lost = {state.file for state in known} - {state.file for state in found}
        staying, report.notes = may_come_back(folder, lost, problems)
        index.remove(state for state in known - found if state.file not in staying)
        missing, report.gone = sorted(found - known), len(lost - staying)
        report.problems = [f"{name}: {what}" for name, what in problems.items()]
        batches = partial(_batches, folder, model.frame, num_workers, verbose, report.problems)
        try:
            for states, pixels, sizes in batches("Embedding", missing, EMBEDDED_AT_ONCE):
                z = embed_in_parts(model, model.normalize(pixels), EMBEDDED_AT_ONCE)
                index.add(states, sizes, z.cpu().numpy())
                report.embedded += len(states)
            ids = index.unexplained() if explain else {}
            for states, pixels, _ in batches("Occluding regions", list(ids), MEASURED_AT_ONCE):
                effects = region_effects(model, model.normalize(pixels), verbose=False)
                index.add_effects([ids[state] for state in states], effects.delta)
        except KeyboardInterrupt:
            report.stopped = True
        report.images, report.unexplained = len(index), len(index.unexplained())
    return report


def _batches(
    folder: Path, frame: Frame, num_workers: int, verbose: bool, problems: list[str], title: str, files: list, size: int
) -> Iterator[tuple[Sequence[FileState], torch.Tensor, Sequence[tuple[int, int]]]]:
    """Read up to `size` images at a time: their states, pixels (N, 3, H, W), uint8, and widths and heights.

    `problems` gets a line for each image that cannot be read.
    """
    # A state is taken before its file is read: if the file changes meanwhile, queries and builds see the change.
    paths = [folder / state.file for state in files]
    found = decode(paths, frame, num_workers, verbose=False, describe=lambda path, image: image.size)
    images = zip(files, tqdm(found, title, len(files), unit="image", disable=not verbose, delay=2))
    while batch := list(islice(images, size)):
        problems += [f"{state.file}: {image}" for state, image in batch if isinstance(image, str)]
        if readable := [(state, *image) for state, image in batch if not isinstance(image, str)]:
            states, pixels, sizes = zip(*readable)
            yield states, torch.from_numpy(np.stack(pixels)), sizes


def images_in(folder: Path) -> tuple[set[FileState], dict[str, str]]:
    """List the files of a folder and its sub-folders that are named as images; hidden ones are skipped.

    Returns:
        The files; and what is wrong with each file or folder that cannot be listed or named, by its path in `folder`.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; name the folder of images to search")
    if printable(full := str(folder.resolve())) != full:
        raise DataError(f"{folder}: a path that is not valid text; rename the folder")
    found, wrong = set(), {}
    for path in images_below(folder, wrong):
        file = path.relative_to(folder).as_posix()
        try:
            if printable(file) == file:
                found.add(FileState(file, file_state(path)))
            else:
                wrong[path] = "a name that is not valid text; rename it"
        except OSError as error:
            wrong[path] = what_is_wrong(path, error)
    problems = {printable(path.relative_to(folder).as_posix()): what for path, what in wrong.items()}
    if not found:
        lines = [f"{name}: {what}" for name, what in problems.items()]
        raise DataError("\n".join([f"{folder}: no image in it or its sub-folders; name another folder", *lines]))
    return found, problems


def may_come_back(folder: Path, lost: Iterable[str], problems: dict[str, str]) -> tuple[set[str], list[str]]:
    """Tell which of the indexed files that were not found may come back: those that cannot be looked for, and those in
    a folder that is empty, as a drive is that is not mounted.

    Returns:
        These files; and a line for each folder that they are in, and for each folder that is gone.
    """
    staying, places = set(), Counter()
    for file in sorted(lost):
        inside = (*map(str, reversed(PurePosixPath(file).parents[:-1])), file)
        place = next(x for x in inside if x in problems or not os.path.isdir(folder / x) or not os.listdir(folder / x))
        if place in problems or os.path.isdir(folder / place):
            staying.add(file)
        places[place, file in staying] += place != file  # which has a line of its own, or is counted
    stays, gone = "nothing is found in it now; the index keeps {} of it until it is deleted", "gone, with {}"
    lines = {place: (stays if stay else gone).format(counted(n, "image")) for (place, stay), n in places.items() if n}
    return staying, [f"{place}: {line}" for place, line in lines.items()]


def build_and_report(config: Config, folder: Path, explain: bool = False) -> None:
    """Build as the command line does, and print what was done."""
    model, note = network_for(config, [folder])
    print(note)
    options = config.hyperparameters
    print(build_index(model, folder, place_of(config, folder, INDEX), explain, options.num_workers, options.verbose))
