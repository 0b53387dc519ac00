"""How a backbone's pictures were prepared, read from its own configuration and written beside the tuned weights.

timm keeps it in config.json, transformers in preprocessor_config.json, where each image processor class has defaults of
its own. JSON only: no torch, timm or transformers. What the preprocessing here cannot express is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.disk import write_json
from finetune.errors import BundleError, SourceError
from finetune.model.processors import INTERPOLATIONS, MODEL_TYPES, PROCESSORS, Processor, Resized
from finetune.model_files import is_timm_config, read_json_object
from finetune.preprocess import ImagePreprocess
from finetune.preprocess.image import Interpolation

_TIMM_CROP = 0.875  # share of each edge that timm keeps where a configuration does not say
# Classes that resize so in every version of transformers that can read the weights.
_CLASS_OF_MODE = {"shorter_edge": "CLIPImageProcessor", "squash": "DeiTImageProcessor"}


def image_preprocess(
    folder: Path, image_size: int | None, max_pixels: int, kept: float | None = None
) -> ImagePreprocess:
    """The preprocessing that the backbone in `folder` was trained with.

    image_size: height and width in pixels that the network shall see instead of the backbone's own; kept: share of each
    edge that the centre crop shall keep, the backbone's own if None. SourceError when the folder does not say, or says what
    cannot be followed.
    """
    config = read_json_object(folder / "config.json")
    read = _of_timm if is_timm_config(config) else _of_transformers
    try:
        settings = replace(read(folder, config, image_size), max_pixels=max_pixels)
        return settings if kept is None else _cropped(folder, settings, kept)
    except (BundleError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        # Values of a kind that no preprocessing takes, such as a mean of two numbers.
        raise _refusal(folder, f"holds a value that cannot be used ({error})") from error


def save_image_processor(folder: Path, settings: ImagePreprocess) -> None:
    """Write `settings` beside a saved model, so that AutoImageProcessor (and timm) prepare pictures alike.

    A timm folder has them in config.json; any other gets a preprocessor_config.json.
    """
    file = folder / "config.json"
    config = read_json_object(file)
    if is_timm_config(config):
        cfg = config["pretrained_cfg"]
        cfg["input_size"] = [3, *settings.size]
        cfg["crop_pct"] = _share(settings, cfg.get("crop_pct") or _TIMM_CROP)
        write_json(file, config)
        return
    height, width = settings.crop
    resize = {"shortest_edge": settings.resize}
    if isinstance(settings.resize, tuple):
        resize = dict(zip(("height", "width"), settings.resize, strict=True))
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": _CLASS_OF_MODE[settings.resize_mode],
            "do_convert_rgb": True,
            "do_resize": settings.resize is not None,
            "size": resize if settings.resize is not None else {"height": height, "width": width},
            "resample": INTERPOLATIONS.index(settings.interpolation),
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": settings.rescale,
            "do_normalize": True,
            "image_mean": list(settings.mean),
            "image_std": list(settings.std),
        },
    )


def _cropped(folder: Path, settings: ImagePreprocess, kept: float) -> ImagePreprocess:
    """The same network input from a centre crop that keeps this share of each edge."""
    height, width = (math.floor(edge / kept + 1e-9) for edge in settings.crop)
    if settings.resize_mode != "shorter_edge":
        return replace(settings, resize=(height, width))
    if height != width:
        raise _refusal(folder, "resizes by the shorter edge to what is no square, so leave data.image_crop out")
    return replace(settings, resize=height)


def _share(settings: ImagePreprocess, written: float) -> float:
    """timm's crop_pct for these settings: what is written already if it leads to them, else the nearest that does."""
    resize = settings.resize if isinstance(settings.resize, tuple) else (settings.resize, settings.resize)
    if resize[0] is None or math.floor(settings.crop[0] / written) == resize[0]:
        return written
    share = settings.crop[0] / resize[0]
    # Rounded, the quotient may be a hair too large, and then the edge that timm rounds down is a pixel short.
    return share if math.floor(settings.crop[0] / share) == resize[0] else math.nextafter(share, 0)


def _refusal(folder: Path, what: str) -> SourceError:
    return SourceError(f"backbone '{folder}': its image preprocessing {what}; choose another backbone")


# timm


def _of_timm(folder: Path, config: Mapping[str, Any], image_size: int | None) -> ImagePreprocess:
    """As timm.data.create_transform reads `pretrained_cfg` for evaluation."""
    cfg = config["pretrained_cfg"]
    if not isinstance(cfg, Mapping):
        raise _refusal(folder, "is no object (pretrained_cfg in config.json)")
    channels, *size = cfg.get("input_size") or (3, 224, 224)
    if channels != 3:
        raise _refusal(folder, f"is for pictures of {channels} channels (input_size), but finetune makes RGB")
    arguments = config.get("model_args")
    made_for = arguments.get("img_size") if isinstance(arguments, Mapping) else None
    if made_for is not None:
        size = [made_for, made_for] if isinstance(made_for, int) else list(made_for)
    if image_size is not None:
        size = [image_size, image_size]
    share = cfg.get("crop_pct") or _TIMM_CROP
    crop = (int(size[0]), int(size[1]))
    scaled = (math.floor(crop[0] / share), math.floor(crop[1] / share))
    mean = tuple(cfg.get("mean") or (0.485, 0.456, 0.406))
    fields: dict[str, Any] = {
        "crop": crop,
        "interpolation": _interpolation(folder, cfg.get("interpolation") or "bicubic"),
        "mean": mean,
        "std": tuple(cfg.get("std") or (0.229, 0.224, 0.225)),
    }
    mode = cfg.get("crop_mode") or "center"
    if mode not in _TIMM_MODES:
        raise _refusal(folder, f"has the crop_mode '{mode}', which finetune does not know")
    return ImagePreprocess(**fields, **_TIMM_MODES[mode](scaled, mean))


def _centre(scaled: tuple[int, int], mean: tuple[float, ...]) -> dict[str, Any]:
    if scaled[0] == scaled[1]:
        return {"resize": scaled[0], "resize_mode": "shorter_edge"}
    return {"resize": scaled, "resize_mode": "cover"}


_TIMM_MODES: dict[str, Callable[[tuple[int, int], tuple[float, ...]], dict[str, Any]]] = {
    "center": _centre,
    "squash": lambda scaled, mean: {"resize": scaled, "resize_mode": "squash"},
    "border": lambda scaled, mean: {
        "resize": scaled,
        "resize_mode": "contain",
        "fill": tuple(round(255 * v) for v in mean),
    },
}


# transformers


def _of_transformers(folder: Path, config: Mapping[str, Any], image_size: int | None) -> ImagePreprocess:
    saved = _saved_processor(folder)
    name, processor = _processor(folder, saved, config)
    fields = {**processor.fields, **saved}
    for field in ("do_flip_channel_order", "do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin"):
        if fields.get(field):
            raise _refusal(folder, f"({name}) asks for {field}, which finetune does not do")
    resized = _resize_of(folder, fields, processor) if fields.get("do_resize") else Resized(None, "shorter_edge")
    crop = resized.crop
    if fields.get("do_center_crop"):
        crop = _size(folder, "crop_size", fields.get("crop_size"), square=True)
    elif crop is None and isinstance(resized.resize, tuple):
        crop = resized.resize
    if crop is None:
        raise _refusal(folder, f"({name}) leaves pictures of different sizes, as do_center_crop is false")
    mean, std = processor.normalise(fields)
    settings = ImagePreprocess(
        crop=crop,
        resize=resized.resize,
        resize_mode=resized.mode,
        interpolation=_interpolation(folder, fields.get("resample", 2)),
        rescale=float(fields.get("rescale_factor", 1 / 255)) if fields.get("do_rescale") else 1.0,
        mean=mean,
        std=std,
    )
    return settings if image_size is None else _resized(settings, image_size)


def _resized(settings: ImagePreprocess, edge: int) -> ImagePreprocess:
    """The same share of the picture at another size."""

    def to(before: int, axis: int) -> int:
        # Rounded down as these libraries do, but not because of a product a hair below a whole number.
        return math.floor(before * edge / settings.crop[axis] + 1e-3)

    resize = settings.resize
    if isinstance(resize, tuple):
        resize = (to(resize[0], 0), to(resize[1], 1))
    elif resize is not None:
        resize = to(resize, 0 if settings.crop[0] <= settings.crop[1] else 1)
    return replace(settings, crop=(edge, edge), resize=resize)


def _saved_processor(folder: Path) -> dict[str, Any]:
    """The fields of the image processor; what is null has its default."""
    file = folder / "preprocessor_config.json"
    saved: object = None
    if file.is_file():
        saved = read_json_object(file)
    elif (folder / "processor_config.json").is_file():
        saved = read_json_object(folder / "processor_config.json").get("image_processor")
    if not isinstance(saved, dict):
        raise SourceError(
            f"backbone '{folder}' does not say how its pictures were prepared (preprocessor_config.json); take a whole copy of the model"
        )
    return {key: value for key, value in saved.items() if value is not None}


def _processor(folder: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, Processor]:
    """The class that the fields were written by, or the usual one of the architecture."""
    written = str(saved.get("image_processor_type") or saved.get("feature_extractor_type") or "")
    family = written
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        family = family.removesuffix(ending)
    if not written:
        family = MODEL_TYPES.get(str(config.get("model_type")), "")
    if family not in PROCESSORS:
        raise _refusal(folder, f"is by '{written or config.get('model_type')}', which finetune cannot follow")
    return written or f"{family}ImageProcessor", PROCESSORS[family]


def _resize_of(folder: Path, fields: Mapping[str, Any], processor: Processor) -> Resized:
    size = fields.get("size")
    if isinstance(size, Mapping):
        given = {key: value for key, value in size.items() if value is not None}
        if set(given) == {"shortest_edge"}:
            return processor.shorter_edge(int(given["shortest_edge"]), fields)
        if set(given) == {"height", "width"}:
            return processor.both_edges((int(given["height"]), int(given["width"])), fields)
        raise _refusal(folder, f"resizes to {json.dumps(size)} (size), which finetune does not do")
    if isinstance(size, int) and not processor.square:
        return processor.shorter_edge(size, fields)
    return processor.both_edges(_size(folder, "size", size, square=True), fields)


def _size(folder: Path, field: str, size: object, *, square: bool) -> tuple[int, int]:
    """Height and width of {"height", "width"}, of a pair, or of one number."""
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, list) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, int) and square:
        return size, size
    raise _refusal(folder, f"has a {field} of {json.dumps(size)}, which finetune does not know")


def _interpolation(folder: Path, value: object) -> Interpolation:
    """Pillow's name of a filter, from the name or the number that timm and transformers keep."""
    for number, name in enumerate(INTERPOLATIONS):
        if value == name or (type(value) is int and value == number):
            return name
    raise _refusal(folder, f"interpolates by '{value}', which finetune does not know")
