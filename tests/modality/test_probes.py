"""What a bundle is spot-checked with: the same inputs every time, from short to long and from coarse to fine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from finetune.modality.image import probes
from finetune.modality.text import probe_texts


def test_probe_texts_grow_and_are_always_the_same() -> None:
    texts = probe_texts(["[PAD]", "##s", "ship", "tide"], 64)
    assert texts == probe_texts(["[PAD]", "##s", "ship", "tide"], 64)
    assert len(texts[0].split()) == 1
    assert len(texts[-1].split()) == 64
    assert set(" ".join(texts).split()) == {"ship", "tide"}


def test_probe_pictures_differ_and_are_always_the_same() -> None:
    bundle: Any = SimpleNamespace(preprocess=SimpleNamespace(size=(40, 64)))
    pictures = probes(bundle)
    assert [(p.ndim, p.shape[2], p.dtype) for p in pictures] == [(3, 3, np.dtype("uint8"))] * len(pictures)
    assert len({p.shape for p in pictures}) > 1, "pictures of other sizes than the network's must come in right too"
    assert len({p.tobytes() for p in pictures}) == len(pictures)
    for one, again in zip(pictures, probes(bundle), strict=True):
        np.testing.assert_array_equal(one, again)
