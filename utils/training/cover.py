"""Training that does not see some regions, such as a shortcut that `python -m utils evidence` found."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from utils.evaluate.localisation import load_masks
from utils.explain.removal import equal_shares, filled
from utils.images.cache import StoredImages
from utils.images.frame import Frame
from utils.images.places import BOX, in_frame
from utils.system.errors import DataError
from utils.system.settings import Config

MARGIN = 1 / 32  # of the frame's sides: a region's neighbours are covered, too, or its rim would be spread over it


class CoveredImages:
    """N stored images, used by length and positions; `masks`, bool (N, H, W), are filled from their surroundings."""

    def __init__(self, images: StoredImages, masks: np.ndarray) -> None:
        self.images, self.checksums, self.width = images, images.checksums, masks.shape[2]
        self.bits, self.marked = np.packbits(masks, axis=2), masks.any((1, 2))  # an eighth of the memory

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: np.ndarray) -> torch.Tensor:
        images = self.images[positions]
        for k in np.flatnonzero(self.marked[positions]):
            mask = np.unpackbits(self.bits[positions[k]], axis=1, count=self.width).view(bool)
            images[k] = filled(images[k][None].float(), torch.from_numpy(mask)[None, None])[0].round()
        return images


def covered(
    config: Config, images: StoredImages, rows: pd.DataFrame, known: Sequence[str], frame: Frame
) -> CoveredImages:
    """Cover the regions that `image.cover` names in training images of `rows`, `file` and `label`; `known` are the
    files of all splits. Further images are covered at the same places, see `equal_shares`.

    Raises:
        DataError: no readable regions, none in training images, an unknown image, or a box outside of its image.
    """
    path, files, labels = config.image.cover, rows.file.tolist(), rows.label.to_numpy()
    masks = np.zeros((len(files), *frame.size), bool)
    if path.is_dir():
        found = load_masks(config.data_path, files, frame, folder=path)
        masks = masks if found is None else found.numpy()
    else:
        regions, source = read_regions(path), f"image.cover: {path}"
        if unknown := sorted(set(regions.file) - set(known)):
            raise DataError(f"{source}: {unknown[0]} is no image of this dataset's split; correct it")
        place, (down, across) = {file: i for i, file in enumerate(files)}, (round(MARGIN * side) for side in frame.size)
        for file, (top, bottom, left, right) in zip(regions.file, in_frame(config, regions, frame, source)):
            if file in place:
                masks[place[file], max(0, top - down) : bottom + down, max(0, left - across) : right + across] = True
    if not masks.any():
        raise DataError(f"image.cover: {path}: holds no region of a training image; correct it, or set cover: null")
    more, like = equal_shares(labels, masks.any((1, 2)), np.random.default_rng(config.seed))
    masks[more] = masks[like]
    return CoveredImages(images, masks)


def read_regions(path: object) -> pd.DataFrame:
    """Read a CSV of `evidence`: the regions of suspects, or of its only group."""
    try:
        regions = pd.read_csv(path, dtype={"file": str}, keep_default_na=False).astype(dict.fromkeys(BOX, int))
        several = len(regions["file"]) and "suspect" in regions and regions["group"].nunique() > 1
    except (ValueError, KeyError, OSError, OverflowError) as error:
        raise DataError(f"image.cover: {path}: needs the columns file, {', '.join(BOX)} ({error})") from None
    regions = regions[regions.suspect.astype(str) == "True"] if several else regions
    if regions.empty:
        raise DataError(f"image.cover: {path}: has no suspect; keep the rows of the groups that training must not see")
    return regions
