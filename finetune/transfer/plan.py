"""The plan of phases: what trains, how fast, how long. A pure function of the recipe and the number of layer groups."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.errors import RecipeError
from finetune.recipe import L2SPSettings, PhaseSettings, TrainSettings, TransferSettings
from finetune.transfer import unfreeze
from finetune.transfer.learning_rates import discriminative_lrs


@dataclass(frozen=True)
class Phase:
    """One stretch of training with a fixed set of trainable layer groups.

    trainable: groups that train, counted from the head; learning_rates: peak rate of every group, input side first,
    0 for frozen ones; patience: epochs without improvement that end the phase, None for never.
    """

    name: str
    trainable: int
    epochs: int
    learning_rates: tuple[float, ...]
    schedule: str
    warmup: float
    patience: int | None


@dataclass(frozen=True)
class Plan:
    """Phases in order; the best weights of each start the next."""

    phases: tuple[Phase, ...]

    @property
    def deepest(self) -> int:
        """Most groups that any phase trains."""
        return max(phase.trainable for phase in self.phases)


def build_plan(transfer: TransferSettings, train: TrainSettings, groups: int) -> Plan:
    """The phases of a recipe for a network of `groups` layer groups; RecipeError when they do not fit it or L2-SP."""
    if transfer.phases is not None:
        specs = transfer.phases
    else:
        specs = tuple(
            PhaseSettings(trainable=count, epochs=transfer.head_epochs if count == 1 else transfer.epochs)
            for count in _counts(transfer, groups)
        )
    plan = Plan(tuple(_phase(i, spec, transfer, train, groups) for i, spec in enumerate(specs)))
    if transfer.l2sp.coupling == "decoupled":
        for phase in plan.phases:
            _check_pull(phase, transfer.l2sp)
    return plan


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
        case "head_only":
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
    trainable = groups if spec.trainable == "all" else spec.trainable
    if trainable > groups:
        raise RecipeError(
            f"transfer.phases[{index}].trainable: {trainable}, but this backbone has only {groups} layer groups; lower it or say all"
        )
    top = spec.learning_rate or (transfer.head_learning_rate if trainable == 1 else None) or transfer.learning_rate
    rates = discriminative_lrs(top, spec.decay or transfer.decay, groups)
    name = spec.name or ("head" if trainable == 1 else "all" if trainable == groups else f"top {trainable}")
    return Phase(
        name=name,
        trainable=trainable,
        epochs=spec.epochs,
        learning_rates=tuple(rate if depth >= groups - trainable else 0.0 for depth, rate in enumerate(rates)),
        schedule=spec.schedule or train.schedule,
        warmup=train.warmup,
        patience=spec.patience or transfer.patience,
    )
