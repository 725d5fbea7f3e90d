"""The command line: `python -m utils COMMAND`. Everything else is done in the notebooks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from utils.system.settings import Config

PUBLIC_SETS = ("AirBnB", "Flowers", "Skin_cancer")
EPILOG = """A dataset is a folder Data/NAME with a sub-folder of images for each class, and a block NAME under
`datasets:` in config.yml. After training, 02_Inference.ipynb explains the network and 03_Evaluate.ipynb scores it."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, not with the usage."""

    def error(self, message: str) -> NoReturn:
        fail(f"{self.prog}: {message}; --help says what there is")


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m utils",
        description="Explainable image similarity from the command line.",
        epilog=EPILOG,
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND", title="commands")
    download = _add(commands, "download", "fetch one of the paper's image sets into Data/; one that is there stays")
    download.add_argument("name", choices=PUBLIC_SETS, help="which set")
    for command, text in (
        ("audit", "list a dataset's duplicates, conflicting labels, unreadable files and tiny classes"),
        ("train", "train on a dataset, as notebook 01 does; the network is written to checkpoints/NAME/"),
        (
            "evidence",
            "find what a dataset's network relies on everywhere; a page and a CSV go to outputs/NAME/",
        ),
        ("export", "write a dataset's trained network as outputs/NAME/model.onnx, for programs without PyTorch"),
    ):
        parsed = _add(commands, command, text)
        text = "the dataset; without it, the one that the configuration names"
        parsed.add_argument("dataset", nargs="?", metavar="name", help=text)
        _add_config(parsed)
    _add_search(commands)
    text = "compare images, and write a page that shows why they are similar or not, to open in a browser"
    page = _add(commands, "report", text)
    page.add_argument("images", nargs="+", type=_there, help="two images or more, or a folder with its sub-folders")
    page.add_argument("--checkpoint", type=_there, metavar="FILE", help="model.pth of another network")
    page.add_argument(
        "--output", type=Path, metavar="FILE", help="the page to write; without it, report.html under outputs/NAME/"
    )
    _add_dataset(page)
    return parser.parse_args(arguments)


def _add(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="config.yml", metavar="FILE", help="the configuration (config.yml)")


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="NAME", help="use the network of this dataset, not the configuration's")
    _add_config(parser)


def _add_search(commands: argparse._SubParsersAction) -> None:
    search = _add(commands, "search", "index a folder of images, and find and explain those nearest to an image")
    steps = search.add_subparsers(required=True, dest="step", metavar="STEP", title="steps")
    text = "make the index of a folder and its sub-folders, or bring it up to date; it can be stopped and started again"
    build = _add(steps, "build", text)
    build.add_argument("folder", type=_there, help="the folder of images")
    build.add_argument(
        "--explain",
        action="store_true",
        help="also measure what regions do, which takes some 100 passes through the network an image; "
        "otherwise a query measures the images that it finds, and keeps that",
    )
    text = "find the images nearest to an image, and say why; the figure goes to outputs/NAME/search/"
    query = _add(steps, "query", text)
    query.add_argument("image", type=_there, help="the image to look for")
    query.add_argument("--hits", type=_count, default=10, metavar="N", help="how many to find (10)")
    export = _add(steps, "export", "write an index as Parquet, for databases that serve several machines")
    export.add_argument("file", type=Path, metavar="FILE.parquet", help="the file to write: paths and embeddings")
    for parsed in (query, export):
        parsed.add_argument("--folder", type=Path, help="the indexed folder; without it, the one indexed last")
    for parsed in (build, query, export):
        _add_dataset(parsed)


def _there(text: str) -> Path:
    """A path that exists; checked here, before PyTorch takes its time to load."""
    if not os.path.exists(text):  # Path.exists raises where a name is too long
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return Path(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: should be a number, 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    # Imported here, so that --help does not wait for torch.
    from utils.config import load_config
    from utils.system.errors import UserError
    from utils.system.files import escape_unprintable

    escape_unprintable()
    try:
        if options.command == "download":
            from utils.images.download import download_public

            download_public(options.name)
        else:
            steps = {"audit": _audit, "train": _train, "export": _export, "evidence": _evidence}
            steps |= {"search": _search, "report": _report}
            steps[options.command](options, load_config(options.config, options.dataset))
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)  # as shells count an interrupt


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


def _evidence(options: argparse.Namespace, config: Config) -> None:
    from utils.compare.evidence import write_evidence

    reliance, paths = write_evidence(config)
    for number, finding in reliance.table.finding.items():
        print(f"group {number}: {finding}")
    print(*paths, sep="\n")


def _export(options: argparse.Namespace, config: Config) -> None:
    from utils.networks.export import export_onnx
    from utils.Siamese import SiameseNetwork

    model = SiameseNetwork.load(config.trained_path / "model.pth")
    model.threshold = config.threshold
    path, size = config.outputs_path / "model.onnx", ", ".join(map(str, model.image_size))
    export_onnx(model, path)
    print(f"{path}: the network in {config.trained_path}; images (N, 3, {size}) as uint8")


def _search(options: argparse.Namespace, config: Config) -> None:
    if options.step == "build":
        from utils.search.build import build_and_report

        build_and_report(config, options.folder, options.explain)
    elif options.step == "query":
        from utils.search.figure import query_and_report

        query_and_report(config, options.image, options.folder, options.hits)
    else:
        from utils.search.export import export_and_report

        export_and_report(config, options.file, options.folder)


def _report(options: argparse.Namespace, config: Config) -> None:
    from utils.compare.report import write_report

    written, note, unreadable = write_report(config, options.images, options.checkpoint, options.output)
    print(note)
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    print(written)


if __name__ == "__main__":
    main()
