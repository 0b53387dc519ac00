"""The image processors of transformers as plain entries: defaults, how they resize, how they normalise.

A saved configuration holds most fields; the defaults stand for those that it leaves out. All classes resize, crop, rescale
and normalise in this order. Where transformers and torchvision round the middle of an odd crop differently, ours rounds as
torchvision does, at most one pixel apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.preprocess.image import Interpolation, ResizeMode

# By Pillow's numbers, which transformers keeps.
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

Fields = Mapping[str, Any]
Channels = tuple[float, float, float]
_HALF = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_STANDARD = (_HALF, _HALF)


@dataclass(frozen=True)
class Resized:
    """How a picture is resized, and the crop that comes with it, if one does."""

    resize: int | tuple[int, int] | None
    mode: ResizeMode
    crop: tuple[int, int] | None = None


def _plain_shorter_edge(edge: int, fields: Fields) -> Resized:
    return Resized(edge, "shorter_edge")


def _plain_both_edges(size: tuple[int, int], fields: Fields) -> Resized:
    return Resized(size, "squash")


def _plain_normalise(fields: Fields) -> tuple[Channels, Channels]:
    """Mean and deviation of (v − mean) / std."""
    if not fields.get("do_normalize"):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return _three(fields["image_mean"]), _three(fields["image_std"])


def _three(value: Any) -> Channels:
    red, green, blue = value if isinstance(value, list | tuple) else (value,) * 3
    return float(red), float(green), float(blue)


@dataclass(frozen=True)
class Processor:
    """One image processor class. `square`: a size that is one number means both edges, not the shorter one."""

    fields: Fields
    square: bool = True
    shorter_edge: Callable[[int, Fields], Resized] = _plain_shorter_edge
    both_edges: Callable[[tuple[int, int], Fields], Resized] = _plain_both_edges
    normalise: Callable[[Fields], tuple[Channels, Channels]] = field(default=_plain_normalise)


def _convnext_shorter_edge(edge: int, fields: Fields) -> Resized:
    """Below 384 a share is cropped away; from there on the picture is squashed (Liu et al. 2022)."""
    if edge < 384:
        return Resized(int(edge / fields["crop_pct"]), "shorter_edge", (edge, edge))
    return Resized((edge, edge), "squash", (edge, edge))


def _convnext_both_edges(size: tuple[int, int], fields: Fields) -> Resized:
    raise ValueError("its size is no shortest_edge, which ConvNextImageProcessor needs")


def _levit_shorter_edge(edge: int, fields: Fields) -> Resized:
    return Resized(int((256 / 224) * edge), "shorter_edge")


def _poolformer_shorter_edge(edge: int, fields: Fields) -> Resized:
    return Resized(int(edge / fields["crop_pct"]), "shorter_edge")


def _poolformer_both_edges(size: tuple[int, int], fields: Fields) -> Resized:
    if size[0] != size[1]:
        raise ValueError("its size is not square, which has no meaning with crop_pct")
    return _poolformer_shorter_edge(size[0], fields)


def _efficientnet_normalise(fields: Fields) -> tuple[Channels, Channels]:
    """As one step: ((v − offset − mean) / std) / std, the last division because of `include_top`."""
    mean, std = _plain_normalise(fields)
    if fields.get("rescale_offset"):
        mean = _three([v + 1.0 for v in mean])
    if fields.get("include_top"):
        again = _three(fields["image_std"])
        std = _three([v * w for v, w in zip(std, again, strict=True)])
    return mean, std


def _defaults(
    size: dict[str, int], statistics: tuple[Channels, Channels], resample: str, crop: int | None = None, **more: Any
) -> Fields:
    mean, std = statistics
    cropped = {"do_center_crop": crop is not None, "crop_size": crop}
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    filtered = {"size": size, "resample": INTERPOLATIONS.index(resample), "image_mean": mean, "image_std": std}
    return {**steps, **filtered, **cropped, **more}


def _both(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _short(edge: int) -> dict[str, int]:
    return {"shortest_edge": edge}


# By the class's name without ImageProcessor, ImageProcessorFast or FeatureExtractor.
PROCESSORS: dict[str, Processor] = {
    "ViT": Processor(_defaults(_both(224), _STANDARD, "bilinear")),
    "DeiT": Processor(_defaults(_both(256), _STANDARD, "bicubic", 224)),
    "Beit": Processor(_defaults(_both(224), _STANDARD, "bicubic", do_center_crop=False, crop_size=224)),
    "Bit": Processor(_defaults(_short(224), _CLIP, "bicubic", 224), square=False),
    "CLIP": Processor(_defaults(_short(224), _CLIP, "bicubic", 224), square=False),
    "Siglip": Processor(_defaults(_both(224), _STANDARD, "bicubic"), square=False),
    "Pvt": Processor(_defaults(_both(224), _IMAGENET, "bicubic")),
    "Segformer": Processor(_defaults(_both(512), _IMAGENET, "bilinear")),
    "MobileNetV1": Processor(_defaults(_short(256), _STANDARD, "bilinear", 224), square=False),
    "MobileNetV2": Processor(_defaults(_short(256), _STANDARD, "bilinear", 224), square=False),
    "MobileViT": Processor(
        _defaults(_short(224), _STANDARD, "bicubic", 256, do_normalize=False, do_flip_channel_order=True), square=False
    ),
    "ConvNext": Processor(
        _defaults(_short(384), _STANDARD, "bicubic", crop_pct=224 / 256),
        square=False,
        shorter_edge=_convnext_shorter_edge,
        both_edges=_convnext_both_edges,
    ),
    "Levit": Processor(
        _defaults(_short(224), _IMAGENET, "bicubic", 224), square=False, shorter_edge=_levit_shorter_edge
    ),
    "PoolFormer": Processor(
        _defaults(_short(224), _IMAGENET, "bicubic", 224, crop_pct=0.9),
        square=False,
        shorter_edge=_poolformer_shorter_edge,
        both_edges=_poolformer_both_edges,
    ),
    "EfficientNet": Processor(
        _defaults(_both(346), _STANDARD, "bicubic", include_top=True, rescale_offset=False, crop_size=289),
        normalise=_efficientnet_normalise,
    ),
    # Resizes before it rounds to whole grey levels; here it is the other way round, half a grey level apart at most.
    "DINOv3ViT": Processor(_defaults(_both(224), _IMAGENET, "bilinear")),
}

# For configurations that name no class: the class that transformers takes for the architecture.
MODEL_TYPES: dict[str, str] = {
    "beit": "Beit", "bit": "Bit", "clip": "CLIP", "convnext": "ConvNext", "convnextv2": "ConvNext", "cvt": "ConvNext",
    "data2vec-vision": "Beit", "deit": "DeiT", "dinat": "ViT", "dinov2": "Bit", "dinov3_vit": "DINOv3ViT",
    "efficientnet": "EfficientNet", "focalnet": "Bit", "hiera": "Bit", "ijepa": "ViT", "levit": "Levit",
    "mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2", "mobilevit": "MobileViT", "mobilevitv2": "MobileViT",
    "poolformer": "PoolFormer", "pvt": "Pvt", "pvt_v2": "Pvt", "regnet": "ConvNext", "resnet": "ConvNext",
    "segformer": "Segformer", "siglip": "Siglip", "swiftformer": "ViT", "swin": "ViT", "swinv2": "ViT", "vit": "ViT",
    "vit_msn": "ViT",
}  # fmt: skip
