"""The index of a folder, made and kept up to date: new, changed and deleted files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from utils.explain.occlusion import region_effects
from utils.explain.removal import embed_in_parts
from utils.images.decoding import decode
from utils.images.folder import images_below, printable
from utils.images.frame import Frame
from utils.images.reading import what_is_wrong
from utils.search.store import FileState, Index
from utils.Siamese import SiameseNetwork, network_for
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
    problems: list[str] = field(default_factory=list)  # a line for each file left out
    emptied: bool = False  # because it was made by another network
    stopped: bool = False  # by the user

    def __str__(self) -> str:
        lines = ["the index was of another network or version: built from the start"] if self.emptied else []
        if self.problems:
            lines += [f"{counted(len(self.problems), 'image')} cannot be read: left out", *self.problems]
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
    found = images_in(folder, report.problems)
    with Index(path, model, folder) as index:
        report.emptied = index.emptied
        missing, report.gone = index.keep_only(found)
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


def images_in(folder: Path, problems: list[str]) -> list[FileState]:
    """List the files of a folder and its sub-folders that are named as images, sorted; hidden ones are skipped.

    Args:
        problems: gets a line for what cannot be listed or named.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; name the folder of images to search")
    if printable(full := str(folder.resolve())) != full:
        raise DataError(f"{folder}: a path that is not valid text; rename the folder")
    found = []
    for path in images_below(folder, problems):
        file = path.relative_to(folder).as_posix()
        try:
            found.append(FileState(file, file_state(path)))
            if printable(file) != file:
                problems.append(f"{printable(found.pop().file)}: a name that is not valid text; rename it")
        except OSError as error:
            problems.append(f"{file}: {what_is_wrong(path, error)}")
    if not found:
        raise DataError("\n".join([f"{folder}: no image in it or its sub-folders; name another folder", *problems]))
    return sorted(found)


def build_and_report(config: Config, folder: Path, explain: bool = False) -> None:
    """Build as the command line does, and print what was done."""
    model, note = network_for(config, [folder])
    print(note)
    options = config.hyperparameters
    print(build_index(model, folder, place_of(config, folder, INDEX), explain, options.num_workers, options.verbose))
