"""Divides the images of a folder into splits, and loads a split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.images.cache import StoredImages, read_fingerprints, read_images
from utils.images.fingerprints import join, near_duplicate_groups, notes_on_looks
from utils.images.folder import SPLITS, check_two_classes, doubtful_folders, first_names, scan
from utils.images.frame import Frame
from utils.images.splitting import draw_classes, on_own_side, split_images
from utils.images.synthetic import CLASSES, SYNTHETIC, ensure_synthetic
from utils.system.errors import DataError
from utils.system.files import counted
from utils.system.settings import Config


def group_images(table: pd.DataFrame, fingerprints: pd.DataFrame, config: Config) -> tuple[np.ndarray, list[str]]:
    """Group the images that must stay in one split, whatever their classes: near duplicates, and files that agree in
    what `group_pattern` captures of their paths; returns each one's group, (N,), and notes for the user."""
    notes, groups = [], np.arange(len(table))
    if config.dataset != SYNTHETIC:  # the built-in scenes are drawn one by one: none is a duplicate
        groups = near_duplicate_groups(fingerprints, config.hyperparameters.verbose)
        sizes = np.bincount(groups)
        if (duplicates := sizes[sizes > 1]).size and "split" not in table:
            number = f"{counted(len(duplicates), 'group')} of near-duplicate images ({duplicates.sum()} files)"
            notes.append(f"{number}: each stays in one split; python -m utils audit {config.dataset} lists them")
    if config.group_pattern is not None:
        places = table.file.str.split("/", n=1 + ("split" in table)).str[-1], table.file.str.rpartition("/")[2]
        in_path, in_name = (place.str.extract(config.group_pattern, expand=False) for place in places)
        captured, positions = in_path.fillna(in_name), pd.Series(np.arange(len(table)), table.index)
        firsts = positions.groupby(captured).transform("min")  # NaN where nothing is captured
        groups = join(groups, positions.to_numpy(), firsts.fillna(positions).to_numpy(int))
        if captured.isna().all():
            problem = f"{config.group_pattern.pattern!r} matches no path or file name, so it groups nothing"
            notes.append(f"group_pattern: {problem}; correct it in config.yml")
        if crossing := captured[table.label.groupby(captured).transform("nunique") > 1].unique().tolist():
            number = f"{counted(len(crossing), 'group')} of several classes ({first_names(crossing)})"
            advice = "if a name means another thing in each class, rename the files"
            notes.append(f"group_pattern: {number}; each stays in one split; {advice}")
    return groups, notes


def prepare_folder(config: Config) -> None:
    """Draw the missing images of the built-in dataset, if the configuration is for it and its folder holds no other."""
    if config.dataset == SYNTHETIC:
        if others := {path.name for path in config.data_path.glob("[!.]*") if path.is_dir()} - set(CLASSES):
            what = f"holds {', '.join(sorted(others))}, not the built-in scenes"
            raise DataError(f"{config.data_path}: {what}; set dataset: in config.yml to the name of your dataset")
        ensure_synthetic(config.data_path, config.hyperparameters.verbose)


def prepare_split(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """Divide the images that can be read into training, validation and test; groups of images stay in one split. Where
    folders of splits are given, these are the splits, and a missing one is drawn from training. The classes of
    `unseen_classes` are a split of their own, `unseen`.

    Returns:
        Table `file`, `label`, `split`; and notes for the user, a line each.

    Raises:
        DataError: too few images or classes or, under `on_bad_image: error`, images that cannot be read, a line each.
    """
    prepare_folder(config)
    found, skipped = scan(config.data_path)
    table, fingerprints, bad, levels = read_fingerprints(config, found)
    notes = notes_on_bad_images(bad, len(found), config) + skipped
    check_two_classes(table, config.data_path, bad)
    notes += doubtful_folders(table, config.data_path) + notes_on_looks(fingerprints.looks, levels)
    table["group"], about = group_images(table, fingerprints, config)
    notes, held, by_shares = notes + about, None, False
    if config.unseen_classes is not None:
        held, table, about = _hold_out(table, config)
        notes += about
    if "split" in table:
        table, about = _with_given_splits(table, config)
    else:
        divided = split_images(table, config.test_size, config.valid_size, config.seed, table.group.to_numpy())
        too_small = not all(_makes_pairs(divided, name) for name in SPLITS)
        if config.unseen_classes is not None and too_small and table.label.nunique() >= 6:  # two for each split
            table, about = _divide_classes(table, config)
        else:
            table, about, by_shares = divided, [], True
    notes += about
    for name in SPLITS:
        notes += check_split(table, name, config, by_shares, bad)
    return pd.concat([table, held]).sort_index().reset_index(drop=True)[["file", "label", "split"]], notes


def _hold_out(table: pd.DataFrame, config: Config) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Part the classes of `unseen_classes` from a table; returns them, the rest, and notes. Raises a DataError if there
    are no such classes, or too few on a side."""
    wanted, known = config.unseen_classes, table.label.unique()
    classes = draw_classes(table.label, wanted, config.seed) if isinstance(wanted, float) else sorted(set(wanted))
    if strangers := [name for name in classes if name not in known]:
        where = f"in {config.data_path} ({first_names(known)})"
        raise DataError(f"unseen_classes: no class {first_names(strangers)} {where}; correct the names in config.yml")
    if min(len(classes), len(known) - len(classes)) < 2:
        would = f"would hold out {len(classes)} of the {len(known)} classes in {config.data_path}"
        needed = "at least 2 must be held out, and 2 be left to train on"
        raise DataError(f"unseen_classes: {would}; {needed}; change it, or add classes")
    table, lost = _by_class(table, dict.fromkeys(classes, "unseen"))
    unseen = table.label.isin(classes)
    held, numbers = table[unseen].assign(split="unseen"), f"{len(classes)} of {len(known)} classes"
    notes = [f"unseen_classes: {numbers} are held out ({first_names(classes)}): {counted(len(held), 'image')}", *lost]
    return held, table[~unseen], notes + check_split(held, "unseen", config)


def _by_class(table: pd.DataFrame, split_of: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Leave out images of groups that are parted when these classes go to these splits, the others to training; returns
    the rest, and a note on what is left out."""
    stay = on_own_side(table.label, table.label.map(split_of).fillna("train"), table.group.to_numpy())
    number, names = counted((~stay).sum(), "image"), first_names(table.file[~stay].tolist())
    lost = f"{number} left out ({names}): near duplicates, or of one group_pattern group, with images of another split"
    return table[stay], [] if stay.all() else [lost]


def _divide_classes(table: pd.DataFrame, config: Config) -> tuple[pd.DataFrame, list[str]]:
    """Divide a table of classes that are too small to be divided, by drawing whole ones for test and validation."""
    split_of, left = {}, table.label
    for name, share in (("test", config.test_size), ("valid", config.valid_size)):
        split_of |= dict.fromkeys(draw_classes(left, share, config.seed), name)
        left = left[~left.isin(split_of)]
    table, lost = _by_class(table, split_of)
    table = table.assign(split=table.label.map(split_of).fillna("train"))
    numbers = " and ".join(f"{table.label[table.split == name].nunique()} for {name}" for name in ("valid", "test"))
    return table, [f"classes are too small to be divided, so whole classes are taken: {numbers}", *lost]


def _with_given_splits(table: pd.DataFrame, config: Config) -> tuple[pd.DataFrame, list[str]]:
    """Keep the splits that the folders give, and draw those that are missing from training; returns notes, too."""
    missing, train = [name for name in SPLITS if name not in set(table.split)], table.split == "train"
    shares = (config.test_size * ("test" in missing), config.valid_size * ("valid" in missing))
    drawn = split_images(table[train], *shares, config.seed, table.group[train].to_numpy())
    table = table.assign(split=drawn.split.reindex(table.index).fillna(table.split))
    from_train = f"; {' and '.join(missing)}: no such folder; drawn from train" if missing else ""
    notes = [f"{config.data_path}: divided already, the splits are those of its folders{from_train}"]
    if parted := groups_across(table, table.group.to_numpy(), "split"):
        number, advice = counted(len(parted), "group"), "scores will be too high; delete the images from train"
        notes.append(f"in several splits: {number} of images that belong together ({first_names(parted[0])}); {advice}")
    return table, notes


def groups_across(table: pd.DataFrame, groups: np.ndarray, column: str) -> tuple[tuple[str, ...], ...]:
    """List the files of each group whose images differ in a column, such as `label` or `split`."""
    across = (table[column].groupby(groups).transform("nunique") > 1).to_numpy()
    return tuple((*files,) for _, files in table.file[across].groupby(groups[across]))


def notes_on_bad_images(bad: list[str], count: int, config: Config) -> list[str]:
    """List the unreadable ones of `count` images under a line that counts them; `on_bad_image: error` raises it."""
    if not bad:
        return []
    number = f"{len(bad)} of {count} images cannot be read"
    if config.on_bad_image == "error":
        advice = "replace or delete them, or set on_bad_image: skip to go on without them"
        raise DataError("\n".join([f"{config.data_path}: {number}; {advice}", *bad]))
    return [f"{number}: left out (on_bad_image: skip)", *bad]


def check_split(
    table: pd.DataFrame, name: str, config: Config, by_shares: bool = False, bad: Sequence[str] = ()
) -> list[str]:
    """Check that pairs can be made in a split; returns a note if none can start from some classes. Raises a DataError,
    with the lines on `bad` images, if there can be no similar or no dissimilar pair."""
    counts = table.label[table.split == name].value_counts()
    if by_shares:  # else classes may be divided as a whole, so that some have no image here
        counts = counts.reindex(table.label.unique(), fill_value=0)
    if not _makes_pairs(table, name):
        advice = _advice(table, config) if by_shares else "; add images"
        problem = f"too few images for the {name} split, which needs two classes, one of them with two images"
        raise DataError("\n".join([f"{config.data_path}: {problem}{advice}", *bad]))
    if small := counts[counts < 2].index.tolist():
        return [f"{name}: fewer than 2 images of {first_names(small)}: no pairs start from these classes; add images"]
    return []


def _makes_pairs(table: pd.DataFrame, name: str) -> bool:
    counts = table.label[table.split == name].value_counts()
    return len(counts) > 1 and counts.iloc[0] > 1


def _advice(table: pd.DataFrame, config: Config) -> str:
    for share in np.arange(0.15, 0.51, 0.05).round(2):
        tried = split_images(table, share, share, config.seed, table.group.to_numpy())
        if all(_makes_pairs(tried, name) for name in SPLITS):
            return f"; set test_size: {share:g} and valid_size: {share:g}, or add images"
    if (largest := table.group.value_counts().max()) > 1:
        together = f"{largest} of {len(table)} images belong together, as near duplicates or by group_pattern"
        return f" ({together}); add images that differ"
    if (table.label.value_counts() > 1).sum() < 8:  # two for each of four splits
        return "; add images, or put whole classes into folders for each split, train/, valid/ and test/"
    return "; set unseen_classes: 0.25, which divides the set by whole classes, or add images"


def load_split(table: pd.DataFrame, split: str, config: Config, frame: Frame) -> tuple[StoredImages, pd.DataFrame]:
    """Load the images of one split, uint8 (N, 3, H, W), and their rows of the table, in its order; a printed line names
    files that cannot be read any more. Raises a DataError if there are such, and `on_bad_image` is `error`, or too few
    images are left."""
    prepare_folder(config)  # the network that comes with the project was trained on scenes that may not be drawn yet
    rows = table[table.split == split]
    images, problems = read_images(config, rows.file.tolist(), frame)
    if problems:
        bad = [f"{config.data_path / file}: {problem}" for file, problem in problems.items()]
        count, rows = len(rows), rows[~rows.file.isin(problems)]
        notes_on_bad_images(bad, count, config)
        check_split(rows, split, config, bad=bad)
        print(f"{split}: {len(bad)} of {count} images gone or unreadable, left out: {first_names(list(problems))}")
    return images, rows


def read_split(path: Path) -> pd.DataFrame:
    """Read the `split.csv` of a training: a table `file`, `label`, `split`."""
    if not path.is_file():
        raise DataError(f"{path}: not there yet; run 01_Train_Siamese_model.ipynb first")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)[["file", "label", "split"]]
    except (ValueError, KeyError) as error:
        what = f"no table of file, label and split ({' '.join(str(error).split())})"
        raise DataError(f"{path}: {what}; bring back the file that training wrote, or train again") from None
