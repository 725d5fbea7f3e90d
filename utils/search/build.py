"""The index of a folder, made and kept up to date: new, changed and deleted files."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from utils.explain.occlusion import region_effects
from utils.files import counted, digits_of
from utils.images.folder import images_below, printable
from utils.images.frame import Frame, to_uint8
from utils.images.reading import DataError, read_image, what_is_wrong
from utils.models import load_trained
from utils.search.store import FileState, Index
from utils.settings import Config
from utils.Siamese import SiameseNetwork, eval_mode

INDEX = ".sqlite"
# Images between two commits, which are what a killed run may lose: some seconds of a CPU's work either way.
EMBEDDED_AT_ONCE = 256
MEASURED_AT_ONCE = 8


@dataclass
class Report:
    """What a build did to an index.

    Attributes:
        images: in the index now; `unexplained`: those of them whose effects are not known.
        embedded: new or changed images; `gone`: images taken out.
        problems: files left out, a line each with the reason and what to do.
        emptied: why the index was made anew.
        stopped: whether the user has stopped it.
        process: which one of how many has done it, where there are several.
    """

    folder: Path
    images: int = 0
    unexplained: int = 0
    embedded: int = 0
    gone: int = 0
    problems: list[str] = field(default_factory=list)
    emptied: str | None = None
    stopped: bool = False
    process: str | None = None

    def __str__(self) -> str:
        lines = [f"the index that was there is {self.emptied}: made anew"] if self.emptied else []
        if self.problems:
            lines += [f"{counted(len(self.problems), 'image')} cannot be read: left out", *self.problems]
        gone = "1 that has gone was" if self.gone == 1 else f"{self.gone} that have gone were"
        lines.append(
            f"{self.folder}: {counted(self.images, 'image')} in the index, {self.embedded} of them new or changed; "
            f"{gone} taken out"
        )
        if self.process:
            lines[-1] += f", as far as {self.process} knows: others may still be at work"
        if self.stopped:
            lines.append("stopped: what is in the index can be searched; build again to go on from there")
        if self.unexplained:
            are, them = ("is", "it") if self.unexplained == 1 else ("are", "them")
            lines.append(f"{self.unexplained} of them {are} measured when a query first finds {them}")
        return "\n".join(lines)


def place_of(config: Config, path: Path, suffix: str) -> Path:
    """Where what belongs to a folder or image is kept, apart from that of others of its name."""
    return config.outputs_path / "search" / f"{path.resolve().stem[:40]}-{digits_of(path)}{suffix}"


def build_index(
    model: SiameseNetwork, folder: Path, path: Path, effects: bool = True, num_workers: int = 2, verbose: bool = True
) -> Report:
    """Bring the index of a folder and its sub-folders up to date: forget images that have gone, embed new and changed
    ones, and then measure what their regions do.

    It is committed in batches: a run that was killed goes on where it was, and others can search meanwhile. Under
    torchrun each process takes a share of the files.

    Args:
        path: of the index, made if it is not there.
        effects: measure regions, some 170 passes an image; without, a query measures those of the images that it finds.

    Raises:
        DataError: no such folder, or no image in it.
        SearchError: the index is damaged or cannot be written.
    """
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    report = Report(folder, process=f"process {rank + 1} of {processes}" if processes > 1 else None)
    found = images_in(folder, report.problems)

    def mine(file: str) -> bool:
        return zlib.crc32(file.encode()) % processes == rank

    with Index(path, model, folder) as index, ThreadPoolExecutor(max(1, num_workers)) as pool:
        report.emptied = index.emptied
        files, report.gone = index.keep_only(found)
        step = _Step(pool, folder, model, report, verbose and rank == 0)
        try:
            _embed(step, index, [file for file in files if mine(file)])
            if effects:
                _measure(step, index, {s.file: (number, s) for number, s in index.unexplained() if mine(s.file)})
        except KeyboardInterrupt:
            report.stopped = True
        report.images, report.unexplained = len(index), len(index.unexplained())
    return report


def _embed(step: _Step, index: Index, files: list[str]) -> None:
    model = step.model
    for states, sizes, batch in step.batches("Embedding", files, EMBEDDED_AT_ONCE):
        with eval_mode(model), torch.no_grad():
            embeddings = torch.cat([model.embed(model.normalize(part)) for part in batch.split(64)])
        index.add(states, sizes, embeddings.cpu().numpy())
        step.report.embedded += len(states)


def _measure(step: _Step, index: Index, wanted: dict[str, tuple[int, FileState]]) -> None:
    """`wanted`: the ids and states of images, by file."""
    for states, _, batch in step.batches("Measuring regions", list(wanted), MEASURED_AT_ONCE):
        same = [k for k, state in enumerate(states) if wanted[state.file][1] == state]  # not changed since
        if same:
            effects = region_effects(step.model, step.model.normalize(batch[same]), verbose=False)
            index.add_effects([wanted[states[k].file][0] for k in same], effects)


def images_in(folder: Path, problems: list[str]) -> list[FileState]:
    """The files of a folder and its sub-folders that are images by their names, sorted; hidden ones are skipped.

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
        if printable(file) != file:
            problems.append(f"{printable(file)}: a name that is not valid text; rename it")
            continue
        try:
            found.append(state_of(folder, file))
        except OSError as error:
            problems.append(f"{file}: {what_is_wrong(path, error)}")
    if not found:
        raise DataError("\n".join([f"{folder}: no image in it or its sub-folders; name another folder", *problems]))
    return sorted(found)


def state_of(folder: Path, file: str) -> FileState:
    state = os.stat(folder / file)
    return FileState(file, state.st_size, state.st_mtime_ns)


@dataclass
class _Step:
    """Files in batches, read ahead by a pool of threads; those that cannot be read are named in the report."""

    pool: ThreadPoolExecutor
    folder: Path
    model: SiameseNetwork
    report: Report
    verbose: bool

    def batches(
        self, title: str, files: Sequence[str], size: int
    ) -> Iterator[tuple[list[FileState], list[tuple[int, int]], torch.Tensor]]:
        """States, widths and heights, and pixels (N, 3, H, W), uint8, of up to `size` files at a time."""
        frame = self.model.frame
        starts = range(0, len(files), size)
        with tqdm(total=len(files), desc=title, unit="image", disable=not self.verbose, delay=2) as bar:
            ahead: list[Future] = []
            for start in [*starts, None]:
                now, ahead = ahead, []
                if start is not None:  # the next ones are read while the network computes
                    ahead = [self.pool.submit(_read, self.folder, file, frame) for file in files[start : start + size]]
                opened = [result for result in (future.result() for future in now) if not isinstance(result, str)]
                self.report.problems += [r for r in (future.result() for future in now) if isinstance(r, str)]
                if opened:
                    states, sizes, pixels = zip(*opened)
                    yield list(states), list(sizes), torch.stack(pixels)
                bar.update(len(now))


def build_and_report(config: Config, folder: Path, effects: bool = True) -> None:
    """Build as the command line does, and print what was done."""
    if "LOCAL_RANK" in os.environ:  # under torchrun: a card for each process
        config = config.model_copy(update={"gpu": int(os.environ["LOCAL_RANK"])})
    model, note = load_trained(config, [folder])
    print(note)
    options = config.hyperparameters
    print(build_index(model, folder, place_of(config, folder, INDEX), effects, options.num_workers, options.verbose))


def _read(folder: Path, file: str, frame: Frame) -> tuple[FileState, tuple[int, int], torch.Tensor] | str:
    """A file's state before it was read, its width and height, and its pixels (3, H, W); or what is wrong with it."""
    try:
        state = state_of(folder, file)
        image = read_image(folder / file)
    except DataError as error:
        return str(error).replace(f"{folder / file}", file, 1)
    except OSError:
        return f"{file}: has gone since the folder was listed"
    return state, image.size, to_uint8(image, frame)
