"""The plan of phases: what trains, how fast, how long. A pure function of the recipe and the number of layer groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.errors import RecipeError
from finetune.recipe import L2SPSettings, PhaseSettings, TrainSettings, TransferSettings
from finetune.transfer import unfreeze
from finetune.transfer.learning_rates import discriminative_lrs


@dataclass(frozen=True)
class Phase:
    """One stretch of training with a fixed set of trainable layer groups.

    trainable: indices of the groups that train, ascending, 0 at the input side; learning_rates: peak rate of every group,
    input side first, 0 for frozen ones; patience: epochs without improvement that end the phase, None for never.
    choose: how many further groups the phase picks by measurement when it starts (transfer/surgical.py), until when
    `learning_rates` has a rate for every group; `chosen` makes it a phase that knows. image_size: height and width of its
    training images, None for the run's own.
    """

    name: str
    trainable: tuple[int, ...]
    epochs: int
    learning_rates: tuple[float, ...]
    schedule: str
    warmup: float
    patience: int | None
    choose: int = 0
    image_size: int | None = None

    @property
    def count(self) -> int:
        """How many layer groups train, those still to be chosen included."""
        return len(self.trainable) + self.choose

    @property
    def may_train(self) -> tuple[int, ...]:
        """Indices of the layer groups that the phase trains or might choose."""
        return tuple(range(len(self.learning_rates))) if self.choose else self.trainable

    def chosen(self, picked: Sequence[int]) -> Phase:
        """The same phase once it has chosen its further groups."""
        trainable = tuple(sorted({*self.trainable, *picked}))
        return replace(self, trainable=trainable, learning_rates=_only(trainable, self.learning_rates), choose=0)


@dataclass(frozen=True)
class Plan:
    """Phases in order; the best weights of each start the next."""

    phases: tuple[Phase, ...]

    @property
    def may_train(self) -> tuple[int, ...]:
        """Indices of the layer groups that any phase trains or might choose, ascending."""
        return tuple(sorted({depth for phase in self.phases for depth in phase.may_train}))


def build_plan(transfer: TransferSettings, train: TrainSettings, groups: int) -> Plan:
    """The phases of a recipe for a network of `groups` layer groups; RecipeError when they do not fit it or L2-SP."""
    phases = [_phase(i, spec, transfer, train, groups) for i, spec in enumerate(_specs(transfer, groups))]
    if transfer.unfreeze == "auto":
        phases.append(_choosing_phase(transfer, train, groups))
    plan = Plan(tuple(phases))
    if transfer.l2sp.coupling == "decoupled":
        for phase in plan.phases:
            _check_pull(phase, transfer.l2sp)
    return plan


def _specs(transfer: TransferSettings, groups: int) -> tuple[PhaseSettings, ...]:
    """The phases that know what they train."""
    return transfer.phases or tuple(
        PhaseSettings(trainable=count, epochs=transfer.head_epochs if count == 1 else transfer.epochs)
        for count in _counts(transfer, groups)
    )


def _counts(transfer: TransferSettings, groups: int) -> list[int]:
    depth = None if transfer.depth == "all" else transfer.depth
    if depth is not None and depth > groups:
        raise RecipeError(
            f"transfer.depth: {depth}, but this backbone has only {groups} layer groups; lower it or say all"
        )
    match transfer.unfreeze or "gradual":
        case "gradual":
            return unfreeze.gradual(groups, step=transfer.step, depth=depth)
        case "lp_ft":
            return unfreeze.lp_ft(groups, depth=depth)
        case "head_only" | "auto":
            return unfreeze.head_only(groups)
        case _:
            return unfreeze.full(groups, depth=depth)


def _check_pull(phase: Phase, l2sp: L2SPSettings) -> None:
    """Refuse a decoupled pull that would jump past its target: a step moves a weight by the share η·α of its distance."""
    top = max(phase.learning_rates)
    for key, strength in (("alpha", l2sp.alpha), ("beta", l2sp.beta)):
        if top * strength >= 1:
            raise RecipeError(
                f"transfer.l2sp.{key}: learning rate {top:g} · {key} {strength:g} is {top * strength:g} in phase '{phase.name}'; "
                f"it must stay below 1, or each step would jump past its target"
            )


def _phase(index: int, spec: PhaseSettings, transfer: TransferSettings, train: TrainSettings, groups: int) -> Phase:
    count = groups if spec.trainable == "all" else spec.trainable
    if count > groups:
        raise RecipeError(
            f"transfer.phases[{index}].trainable: {count}, but this backbone has only {groups} layer groups; lower it or say all"
        )
    top = spec.learning_rate or (transfer.head_learning_rate if count == 1 else None) or transfer.learning_rate
    trainable = tuple(range(groups - count, groups))
    return Phase(
        name=spec.name or ("head" if count == 1 else "all" if count == groups else f"top {count}"),
        trainable=trainable,
        epochs=spec.epochs,
        learning_rates=_only(trainable, discriminative_lrs(top, spec.decay or transfer.decay, groups)),
        schedule=spec.schedule or train.schedule,
        warmup=train.warmup,
        patience=spec.patience or transfer.patience,
        image_size=spec.image_size,
    )


def _choosing_phase(transfer: TransferSettings, train: TrainSettings, groups: int) -> Phase:
    """The second phase of `auto`: the head, and below it what will turn out to have the largest relative gradients."""
    if transfer.auto_groups > groups - 1:
        raise RecipeError(
            f"transfer.auto_groups: {transfer.auto_groups}, but this backbone has only {groups - 1} layer groups below the head; lower it"
        )
    return Phase(
        name="auto",
        trainable=(groups - 1,),
        epochs=transfer.epochs,
        learning_rates=tuple(discriminative_lrs(transfer.learning_rate, transfer.decay, groups)),
        schedule=train.schedule,
        warmup=train.warmup,
        patience=transfer.patience,
        choose=transfer.auto_groups,
    )


def _only(trainable: Sequence[int], rates: Sequence[float]) -> tuple[float, ...]:
    return tuple(rate if depth in trainable else 0.0 for depth, rate in enumerate(rates))
