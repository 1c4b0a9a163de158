"""Images as JPEG files leave them: to see what lossy copies of a data set cost."""

import io

import numpy as np
from PIL import Image

from experiments.common.data import Dataset, Split


def recompressed(dataset: Dataset, quality: int) -> Dataset:
    """The data set after a round trip of every image through a JPEG file.

    Colours are kept at half the resolution of the brightness (4:2:0).

    Args:
      dataset: of images with one or three channels.
      quality: of the files, 1 to 100, with the tables of libjpeg.
    """
    train, test = (
        Split(np.stack([_round_trip(image, quality) for image in images]), labels)
        for images, labels in (dataset.train, dataset.test)
    )
    return dataset._replace(train=train, test=test)


def _round_trip(image: np.ndarray, quality: int) -> np.ndarray:
    # Pillow knows no images of shape [H, W, 1].
    flat = image[..., 0] if image.shape[-1] == 1 else image
    with io.BytesIO() as file:
        Image.fromarray(flat).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        with Image.open(file, formats=["JPEG"]) as decoded:
            return np.asarray(decoded).reshape(image.shape)
