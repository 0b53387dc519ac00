"""What every section of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
WholeShare = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
ImageSize = Annotated[int, Field(ge=16, le=4096)]
Schedule = Literal["slanted_triangular", "one_cycle", "cosine", "linear", "constant"]


class Settings(BaseModel):
    """Base of every section: frozen, unknown keys refused, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
