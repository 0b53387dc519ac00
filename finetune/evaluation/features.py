"""Inputs as plain numbers for a linear model: words of a text, grey pixels of an image. Fitted on training rows alone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.preprocess.image_file import MAX_PIXELS, ImageInput, open_image

MAX_FEATURES = 50_000
"""Most frequent 1- and 2-grams kept; on 1,700 news articles more of them cost time and no accuracy is gained."""
PIXELS = 16
"""Height and width that images are shrunk to."""
_DECODERS = 4
"""Most images open at once: decoding releases Python's lock, and each open image may take hundreds of megabytes."""


def tfidf(train_texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any]:
    """Words and word pairs, sublinear TF-IDF: sparse matrices (N_train, F) and (N_test, F), rows of unit length.

    One empty column if no training text has a word.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    word = r"(?u)\b\w+\b"  # one-letter words too: in some languages they are all there is
    if not any(re.search(word, text) for text in train_texts):
        return csr_matrix((len(train_texts), 1)), csr_matrix((len(test_texts), 1))
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=word, max_features=MAX_FEATURES, dtype=np.float32
    )
    return vectorizer.fit_transform(train_texts), vectorizer.transform(test_texts)


def pixels(
    train_images: Sequence[ImageInput], test_images: Sequence[ImageInput], max_pixels: int = MAX_PIXELS
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Grey images shrunk to 16×16, each pixel standardised over the training rows: (N_train, 256) and (N_test, 256).

    Proportions are not kept. Raises DataError, naming the place, for what is not a readable image of at most `max_pixels`.
    """

    def shrink(image: ImageInput) -> npt.NDArray[np.float32]:
        from PIL import Image

        small = open_image(image, max_pixels).convert("L").resize((PIXELS, PIXELS), Image.Resampling.BOX)
        return np.asarray(np.asarray(small).ravel() / 255, dtype=np.float32)

    with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
        train, test = (
            np.stack([*pool.map(shrink, images)]) if len(images) else np.empty((0, PIXELS**2), np.float32)
            for images in (train_images, test_images)
        )
    centre, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale < 1e-6] = 1  # a pixel that never changes says nothing; do not blow up its rounding
    standard = [np.asarray((part - centre) / scale, dtype=np.float32) for part in (train, test)]
    return standard[0], standard[1]
