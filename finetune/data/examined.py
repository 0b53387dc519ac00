"""What is found out about the inputs before rows are split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.data.pictures import Picture


@dataclass(frozen=True)
class Examined:
    """Per row the identity of its input, None if it cannot be read; rows with one identity hold the same input.

    `reasons` says of every unreadable row why, with its place. `pictures` is what images look like, by
    identity; `said` is what near duplicates of conversations are found by, where it is not the identity itself.
    """

    identities: tuple[str | None, ...]
    reasons: Mapping[int, str] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
