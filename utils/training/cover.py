"""Training that does not see some regions, such as a shortcut that `python -m utils evidence` found: other images cover
them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from utils.evaluate.localisation import load_masks
from utils.images.places import in_frame
from utils.images.frame import Frame
from utils.images.stored import StoredImages
from utils.system.errors import DataError
from utils.system.settings import Config

TRIES = 20  # draws of another image and of its shift, the best of which covers an image's regions


class CoveredImages:
    """N stored images, used by length and positions, whose regions are covered by the same positions of another image,
    shifted at random, as CutMix does (Yun et al., 2019); if possible by none of that image's own regions.

    An image without regions gets those of another one. Otherwise a cover would tell the class.

    Args:
        masks: of the regions, bool (N, H, W); one image at least has some.
    """

    def __init__(self, images: StoredImages, masks: np.ndarray, seed: int) -> None:
        self.images, self.seed, self.checksums, self.width = images, seed, images.checksums, masks.shape[2]
        self.bits = np.packbits(masks, axis=2)  # an eighth of the memory
        self.with_regions = np.flatnonzero(masks.any((1, 2)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: np.ndarray) -> torch.Tensor:
        images = self.images[positions]
        for image, position in zip(images, np.asarray(positions).tolist()):
            rng = np.random.default_rng([self.seed, position])
            mask = self.mask(position)
            mask = mask if mask.any() else self.mask(rng.choice(self.with_regions))
            best = None
            for _ in range(TRIES):
                other, shift = rng.integers(len(self)), [int(rng.integers(side)) for side in mask.shape]
                seen = int((np.roll(self.mask(other), shift, (0, 1)) & mask).sum())
                if best is None or seen < best[0]:
                    best = seen, other, shift
                if not seen:
                    break
            inside = torch.from_numpy(mask)
            image[:, inside] = self.images[[best[1]]][0].roll(best[2], (1, 2))[:, inside]
        return images

    def mask(self, position: int) -> np.ndarray:
        return np.unpackbits(self.bits[position], axis=1, count=self.width).view(bool)


def covered(config: Config, images: StoredImages, files: Sequence[str], known: Sequence[str], frame: Frame):
    """Cover the regions that `image.cover` names in training images; what has no region anywhere stays as it is.

    Args:
        files: of the images; `known` are those of all splits.

    Raises:
        DataError: the file or folder holds no such regions, an unknown image, or a box outside of its image.
    """
    path = config.image.cover
    if path.is_dir():
        masks = load_masks(config.data_path, files, frame, folder=path)
        if masks is None:
            raise DataError(f"image.cover: {path} holds no mask <class>/<image stem>.png of a training image")
        return CoveredImages(images, masks.numpy(), config.seed)
    regions = read_regions(path)
    if unknown := sorted(set(regions.file) - set(known)):
        raise DataError(f"image.cover: {path}: {unknown[0]} is not among the images of this split; correct the file")
    regions = in_frame(config, regions, frame, path)
    masks, place = np.zeros((len(files), *frame.size), bool), {file: i for i, file in enumerate(files)}
    for row in regions[regions.file.isin(place)].itertuples():
        masks[place[row.file], row.top : row.bottom, row.left : row.right] = True
    return CoveredImages(images, masks, config.seed) if masks.any() else images


def read_regions(path) -> pd.DataFrame:
    """Read the regions of a CSV as `python -m utils evidence` writes it: those of suspects, or of its only group."""
    columns = ["file", "top", "bottom", "left", "right"]
    try:
        regions = pd.read_csv(path, dtype={"file": str}, keep_default_na=False)
        regions[columns[1:]] = regions[columns[1:]].astype(int)
        regions["file"]
    except (ValueError, KeyError, OSError, UnicodeError) as error:
        raise DataError(f"image.cover: {path}: needs the columns {', '.join(columns)} ({error})") from None
    if "suspect" in regions and "group" in regions and regions.group.nunique() > 1:
        regions = regions[regions.suspect.astype(str) == "True"]
        if regions.empty:
            raise DataError(
                f"image.cover: {path}: none of its groups is a suspect; delete the rows of all groups that training "
                "should see"
            )
    return regions
