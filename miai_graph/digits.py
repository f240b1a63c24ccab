"""The handwritten digits that ship with scikit-learn: data that needs no download.

1,797 images of 8 × 8 pixels (Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI repository).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miai_graph.op import Array


@dataclass(frozen=True)
class Digits:
    """Images [samples, 8, 8, 1] from 0 to 1 in float32, and labels [samples] from 0 to 9, in two parts."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def load_digits(test_share: float = 0.25, seed: int = 0) -> Digits:
    """The digits, with a share of each class held out for testing.

    Parameters
    ----------
    test_share : the share of the samples that is held out
    seed : of the choice of these samples
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    data = load()
    images = (data.images / 16.0).astype(np.float32)[..., None]
    parts = train_test_split(images, data.target, test_size=test_share, random_state=seed, stratify=data.target)
    train_images, test_images, train_labels, test_labels = parts
    return Digits(train_images, train_labels, test_images, test_labels)
