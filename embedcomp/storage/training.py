"""What a part of a model may ask of the trainer, which trains all of them in one loop.

State lives in parameters and buffers, so that a run goes on from its checkpoint; whatever is drawn
at random is drawn from `Progress.drawn`, never from a running generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

Stage = Literal["search", "final"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Progress:
    """How far a run is; the same on every worker but for `rows` that are 0 and `curvature`.

    step: steps that were taken.
    steps: that it takes if nothing ends it earlier.
    steps_per_epoch: of them in one epoch.
    rows: of the log in the present step, in all workers; 0 between steps, and where what this
        worker does counts for nothing.
    curvature: mean p (1 - p) of a worker's rows of the step over their mean squared (p - target),
        which are the second derivative of the log loss by the logit and the square of the first
        one. So it is what squared gradients have to be multiplied by to be Gauss-Newton curvature;
        known after the step.
    """

    stage: Stage
    step: int
    steps: int
    steps_per_epoch: int
    seed: int
    rows: int = 0
    curvature: float = 1.0

    @property
    def share(self) -> float:
        """The part of the run that is done, 0 to 1."""
        return self.step / max(self.steps, 1)

    def drawn(self, salt: int = 0) -> torch.Generator:
        """Random numbers of this step.

        Args:
            salt: tells the draws of one step apart.
        """
        entropy = self.seed, STAGES.index(self.stage), self.step, salt
        (mixed,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed >> 1))


@dataclass(frozen=True)
class Group:
    """Parameters that are moved by one rule.

    kind: "rows" by the optimizer of tables, which reads and writes only the rows [rows, width] that
        a sparse gradient has; "dense" by Adam; "sgd" by plain gradient steps.
    rate: times the learning rate of the kind; for "sgd", of the dense one.
    l2: half of it times the sum of squares is added to the loss of a row of the log, summed over
        the log; None: for rows as the settings say, for others 0.
    """

    parameters: tuple[Tensor, ...]
    kind: Literal["rows", "dense", "sgd"]
    rate: float = 1.0
    l2: float | None = None


@dataclass(frozen=True)
class Moved:
    """Numbers that were set to something else, so that their optimizer begins anew with them.

    rows: int64 [n], first indices of the parameter; None: all of it.
    numbers: instead of rows, bool of the parameter's shape; what is known of whole rows stays.
    """

    parameter: Tensor
    rows: Tensor | None = None
    numbers: Tensor | None = None


class Trains(nn.Module):
    """A module that has a say in how it is trained. Whatever it does not override does nothing.

    summed: names of buffers that a worker adds to in its steps; they hold the sums over all workers
        when `after_epoch` is called.
    begins_far: whether its numbers are far from where training will bring them.
    """

    summed: tuple[str, ...] = ()
    begins_far = False

    def groups(self) -> list[Group]:
        """Parameters of this module, not of those within it, that are not moved as usual.

        What no module names is moved by Adam.
        """
        return []

    def penalty(self) -> Tensor | None:
        """What is added to the mean log loss of a step, in its unit."""
        return None

    def before_step(self, at: Progress) -> None:
        """Called before each forward pass of the training."""

    def after_step(self, at: Progress) -> list[Moved]:
        """Called once the optimizers have moved; gradients are still there, summed over workers."""
        return []

    def after_epoch(self, at: Progress) -> list[Moved]:
        """Called after the last step of each epoch, before the evaluation."""
        return []

    @property
    def narrows(self) -> bool:
        """Whether it can be `narrowed`.

        Each step then has a second pass, in which one such part of the model is narrower and the
        model learns to score as it does in full.
        """
        return False

    @contextmanager
    def narrowed(self, at: Progress) -> Iterator[None]:
        """Within the block it is as one of its narrower forms, drawn for this step."""
        raise NotImplementedError
        yield

    @property
    def settled(self) -> bool:
        """Whether it has its final shape, so that an evaluation may be the best."""
        return True


def parts_that_train(model: nn.Module) -> list[Trains]:
    """Each once, in the model's order."""
    return [module for module in model.modules() if isinstance(module, Trains)]
