"""The command line: `python -m utils COMMAND`. Everything else is done in the notebooks."""

from __future__ import annotations  # so that Config is not loaded

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from utils.system.settings import Config

EPILOG = """A dataset is a folder Data/NAME with a sub-folder of images for each class, and a block NAME under
`datasets:` in config.yml. After training, 02_Inference.ipynb explains the network and 03_Evaluate.ipynb scores it."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, not with the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists what is allowed\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m utils", description="Explainable image similarity.", epilog=EPILOG)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    of_dataset, of_images = Parser(add_help=False), Parser(add_help=False)  # what several commands take
    text = "dataset; if not given, the one that the configuration names"
    of_dataset.add_argument("dataset", nargs="?", metavar="NAME", help=text)
    of_images.add_argument("--dataset", metavar="NAME", help=text.replace("dataset", "dataset whose network is used"))
    for common in (of_dataset, of_images):
        common.add_argument("--config", default="config.yml", metavar="FILE", help="configuration (config.yml)")

    download = _add(commands, "download", "download one of the paper's image sets into Data/", _download)
    download.add_argument("name", metavar="NAME", help="AirBnB, Flowers or Skin_cancer; not again if it is there")
    for name, run, text in (
        ("audit", _audit, "list near duplicates, conflicting labels, unreadable files and tiny classes of a dataset"),
        ("train", _train, "train a network on a dataset, as notebook 01 does, and write it to checkpoints/NAME/"),
        ("evidence", _evidence, "find what a trained network relies on, and write a page and a CSV to outputs/NAME/"),
        ("export", _export, "write a trained network as ONNX, for programs without PyTorch, to outputs/NAME/"),
    ):
        _add(commands, name, text, run, of_dataset)
    text = "compare images, and write a page for a browser that shows which regions decide"
    page = _add(commands, "report", text, _report, of_images)
    page.add_argument("images", nargs="+", type=_there, help="two images or more, or a folder with its sub-folders")
    page.add_argument("--checkpoint", type=_there, metavar="FILE", help="network to use instead of the dataset's")
    page.add_argument("--output", type=Path, metavar="FILE", help="page (.html) or folder to write into")

    text = "index a folder of images; find the images nearest to one image, and explain them"
    steps = _add(commands, "search", text).add_subparsers(required=True, metavar="STEP", title="steps")
    build = _add(steps, "build", "write or update the index of a folder of images", _search_build, of_images)
    build.add_argument("folder", type=_there, help="folder, with its sub-folders; if stopped, run again: it continues")
    text = "measure the effects of regions of all images now (100 passes each), not when a query finds an image"
    build.add_argument("--explain", action="store_true", help=text)
    text = "find the images nearest to an image, and draw which regions decide, to outputs/NAME/search/"
    query = _add(steps, "query", text, _search_query, of_images)
    query.add_argument("image", type=_there, help="image to search for")
    query.add_argument("--hits", type=_count, default=10, metavar="N", help="number of images to find (10)")
    text = "write paths and embeddings of an index as Parquet, for a database of vectors"
    export = _add(steps, "export", text, _search_export, of_images)
    export.add_argument("file", type=Path, metavar="FILE.parquet", help="file to write")
    for step in (query, export):
        step.add_argument("--folder", type=Path, help="indexed folder; if not given, the one indexed last")
    return parser.parse_args(arguments)


def _add(commands: Any, name: str, text: str, run: Callable | None = None, *parents: Parser) -> Parser:
    """Add a command that is done by `run`, and takes what its parents take."""
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents)
    parser.set_defaults(run=run)
    return parser


def _there(text: str) -> Path:
    """A path that exists; checked here, before PyTorch takes its time to load."""
    if not os.path.exists(text):  # Path.exists raises where a name is too long
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return Path(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: should be a whole number, 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    # Imported here, so that --help does not wait for torch.
    from utils.config import load_config
    from utils.system.errors import UserError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # letters that the terminal lacks are printed as their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        options.run(options, load_config(options.config, options.dataset) if "config" in options else None)
        print(end="", flush=True)
    except BrokenPipeError:  # its reader has enough, as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as shells count it
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)  # as shells count an interrupt


def _download(options: argparse.Namespace, config: None) -> None:
    from utils.images.download import download_public

    download_public(options.name)


def _audit(options: argparse.Namespace, config: Config) -> None:
    from utils.evaluate.audit import audit, report

    print(report(audit(config)))


def _train(options: argparse.Namespace, config: Config) -> None:
    from utils.Siamese import SiameseNetwork
    from utils.training import train

    history, path = train(config), config.checkpoints_path / "model.pth"
    if (os.environ.get("RANK") or "0") == "0":  # the first of several processes
        kept = SiameseNetwork.load(path).info["epoch"]
        print(f"kept epoch {kept} of {len(history)}: validation AUC {history.valid_auc[kept - 1]:.3f}; {path}")
        explains = f"python -m utils report --dataset {config.dataset} A.jpg B.jpg"
        print(f"next: 03_Evaluate.ipynb scores the network; {explains} shows which regions decide")


def _evidence(options: argparse.Namespace, config: Config) -> None:
    from utils.compare.evidence import write_evidence

    reliance, paths = write_evidence(config)
    for number, finding in reliance.table.finding.items():
        print(f"group {number}: {finding}")
    print(*paths, sep="\n")


def _export(options: argparse.Namespace, config: Config) -> None:
    from utils.models import load_trained
    from utils.networks.export import export_onnx

    model, _ = load_trained(config)
    path, size = config.outputs_path / "model.onnx", ", ".join(map(str, model.image_size))
    export_onnx(model, path)
    print(f"{path}: the network in {config.trained_path}; images (N, 3, {size}) as uint8")


def _report(options: argparse.Namespace, config: Config) -> None:
    from utils.compare.report import write_report

    written, note, unreadable = write_report(config, options.images, options.checkpoint, options.output)
    print(note)
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    print(written)


def _search_build(options: argparse.Namespace, config: Config) -> None:
    from utils.models import network_for
    from utils.search import INDEX, build_index, place_of

    model, note = network_for(config, [options.folder])
    print(note)
    path, given = place_of(config, options.folder, INDEX), config.hyperparameters
    print(build_index(model, options.folder, path, options.explain, given.num_workers, given.verbose))


def _search_query(options: argparse.Namespace, config: Config) -> None:
    from utils.imshow import save_figure
    from utils.search import MOST_ROWS, Index, find_index, place_of, search, show_hits

    path, model, note = find_index(config, options.folder)
    print(note)
    with Index(path, model) as index:
        if options.folder is None:
            print(f"searched: {index.folder}, which was indexed last; --folder chooses another")
        found = search(model, index, options.image, options.hits)
    print(*found.strange, found.table().to_string(index=False), *found.shared, sep="\n")
    for hit in found.hits:
        if hit.pair is None:
            print(f"{hit.file}: gone or changed; run python -m utils search build {found.folder} again")
    path = place_of(config, options.image, ".png")
    save_figure(show_hits(found), path)
    print(f"which regions decide: {path}" + f" (the first {MOST_ROWS} hits)" * (len(found.hits) > MOST_ROWS))


def _search_export(options: argparse.Namespace, config: Config) -> None:
    from utils.search import Index, export_parquet, find_index
    from utils.system.files import counted

    path, model, _ = find_index(config, options.folder)
    with Index(path, model) as index:
        written = counted(export_parquet(index, options.file), "image")
        print(f"{options.file}: {written} of {index.folder} with path and embedding")


if __name__ == "__main__":
    main()
