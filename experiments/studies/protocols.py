"""Protocols: what one arm's budget makes of the other arms' steps.

All of them are arithmetic on the mean cost of a step, which real batches give (`step_cost`). Rows
have one shape for all arms of a comparison; what an arm's rows hold of speech and text differs.

* Compute-controlled: the same steps and patches a step. The LST then sees more tokens, and spends
  more FLOPs: its local modules work on every token.
* Data-controlled: the same speech and text. The LST then takes fewer steps of as many patches.
* FLOP-controlled: the same training FLOPs, by the exact count of `lst_jax.model.flops`.
* Compute-optimal: 20 text tokens a parameter, and half as much speech.
* isoFLOP: every size at every budget of FLOPs, for fits.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lst_jax.batch import Batch
from lst_jax.config import ModelConfig
from lst_jax.model.flops import training_flops
from lst_jax.settings import list_names, quote, require
from lst_jax.vocabulary import Vocabulary

BudgetUnit = Literal["steps", "patches", "tokens", "flops", "speech_hours"]

# Means of a step differ by this share from what they are compared with, where rows are not full to
# the last patch, and where batches are few.
PATCH_TOLERANCE = 0.02
MIXTURE_TOLERANCE = 0.05

TEXT_TOKENS_PER_PARAMETER = 20
# Of interleaved documents, whole, for one of text: the paper's 1:2.
SPEECH_PER_TEXT = 0.5

_MOST_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Means of one optimizer step.

    Attributes:
      patches: positions of the global transformer; for the baseline its tokens.
      speech_units: speech units, merged ones where the unit vocabulary merges.
      text_tokens: all other tokens: text, and what marks documents and spans.
      speech_seconds: of speech.
      flops: of training, by `lst_jax.model.flops.training_flops`.
    """

    patches: float
    speech_units: float
    text_tokens: float
    speech_seconds: float
    flops: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            good = isinstance(value, int | float) and math.isfinite(value) and value >= 0
            require(good, f"StepCost.{name}", value, "a finite number, at least 0")

    @property
    def tokens(self) -> float:
        """Returns speech units and text tokens."""
        return self.speech_units + self.text_tokens


class Savings(NamedTuple):
    """Shares of the reference's whole run that an arm does without; negative where it spends more.

    Attributes:
      patches: what the paper's tables call compute.
      flops: exact training FLOPs.
    """

    patches: float
    flops: float


class TokenBudget(NamedTuple):
    """Tokens of a compute-optimal run.

    Attributes:
      text: tokens of text documents.
      speech: tokens of interleaved documents, whole, with what interleaving gives as text.
    """

    text: float
    speech: float


class Branch(NamedTuple):
    """A budget's part of a constant-rate trunk, and its decay.

    Attributes:
      start: step of the trunk that it continues from; 0: from the beginning.
      num_steps: where it ends.
      decay_steps: steps of decay, the last ones.
    """

    start: int
    num_steps: int
    decay_steps: int


def step_cost(
    model: ModelConfig, vocabulary: Vocabulary, batches: Iterable[Batch], unit_rate: float = 25.0
) -> StepCost:
    """Returns the mean cost of batches, one a step.

    Args:
      model: configuration, whose FLOPs are counted.
      vocabulary: tells units from other tokens.
      batches: at least one. A curriculum changes what rows hold, so they come from its whole run.
      unit_rate: plain units a second.

    Raises:
      ValueError: there are no batches.
    """
    require(math.isfinite(unit_rate) and unit_rate > 0, "unit_rate", unit_rate, "a number above 0")
    count, sums = 0, np.zeros(5)
    for batch in batches:
        real = np.asarray(batch.document_ids) > 0
        tokens = np.asarray(batch.tokens)
        speech = tokens[real & vocabulary.is_unit(tokens)]
        spoken = vocabulary.unit_lengths[speech - vocabulary.first_unit_id].sum()
        text = np.count_nonzero(real) - len(speech)
        # Patches of a row are numbered without gaps, and padding has the number P.
        patches = np.max(np.where(real, batch.patch_ids, -1), axis=-1) + 1
        flops = training_flops(model, jax.tree.map(jnp.asarray, batch))
        sums += [np.sum(patches), len(speech), text, spoken, float(flops)]
        count += 1
    require(count > 0, "number of batches", count, "at least 1")
    patches, units, text, spoken, flops = map(float, sums / count)
    return StepCost(patches, units, text, spoken / unit_rate, flops)


def steps_of_budget(amount: float, unit: BudgetUnit, cost: StepCost) -> int:
    """Returns the number of steps, to the nearest, that spend a budget.

    Args:
      amount: of the budget, above 0.
      unit: what it counts.
      cost: of a step.

    Raises:
      ValueError: the unit is unknown, a step spends none of it, or the budget is no whole step.
    """
    require(
        unit in get_args(BudgetUnit), "unit", unit, f"one of {list_names(get_args(BudgetUnit))}"
    )
    per_step = {
        "steps": 1.0,
        "patches": cost.patches,
        "tokens": cost.tokens,
        "flops": cost.flops,
        "speech_hours": cost.speech_seconds / 3600,
    }[unit]
    require(per_step > 0, f"{unit} a step", per_step, "above 0, for a budget in that unit")
    return _whole_steps(amount, per_step, f"a budget of {quote(amount)} {unit}")


def compute_controlled(
    costs: Mapping[str, StepCost], steps: int, tolerance: float = PATCH_TOLERANCE
) -> dict[str, int]:
    """Returns the same steps for all arms, whose steps have the same patches.

    Args:
      costs: of a step, by arm.
      steps: of every arm.
      tolerance: share by which patches a step may differ.

    Raises:
      ValueError: patches a step differ by more.
    """
    _check(costs, next(iter(costs), None), steps)
    _check_same(costs, "patches", tolerance, "compute-controlled")
    return dict.fromkeys(costs, steps)


def data_controlled(
    costs: Mapping[str, StepCost],
    reference: str,
    steps: int,
    tolerance: float = MIXTURE_TOLERANCE,
) -> dict[str, int]:
    """Returns steps in which every arm sees the speech and text of the reference's.

    Speech is compared in seconds, which merged units and plain ones have in common.

    Args:
      costs: of a step, by arm.
      reference: name of an arm.
      steps: of the reference.
      tolerance: share by which the arms' ratios of speech to text may differ.

    Raises:
      ValueError: the ratios differ by more, so that no number of steps gives the same of both.
    """
    _check(costs, reference, steps)
    whole = costs[reference]
    result = {}
    for name, cost in costs.items():
        pairs = {
            "speech seconds": (whole.speech_seconds, cost.speech_seconds),
            "text tokens": (whole.text_tokens, cost.text_tokens),
        }
        ratios = {}
        for what, (wanted, given) in pairs.items():
            if wanted or given:
                expected = f"both or neither with {what}, {reference} has {wanted:.6g} a step"
                require(bool(wanted and given), f"{what} a step of {name}", given, expected)
                ratios[what] = wanted / given
        require(bool(ratios), f"tokens a step of {name}", 0, "speech or text")
        low, high = min(ratios.values()), max(ratios.values())
        if high > low * (1 + tolerance):
            raise ValueError(
                f"data-controlled: {name} would take {ratios['speech seconds']:.3f} of "
                f"{reference}'s steps for its speech and {ratios['text tokens']:.3f} for its text, "
                f"expected one number within {tolerance:.0%}"
            )
        share = sum(ratios.values()) / len(ratios)
        result[name] = _whole_steps(steps * share, 1.0, f"the data of {steps} steps of {reference}")
    return result


def flop_controlled(costs: Mapping[str, StepCost], reference: str, steps: int) -> dict[str, int]:
    """Returns steps in which every arm spends the training FLOPs of the reference's.

    Args:
      costs: of a step, by arm.
      reference: name of an arm.
      steps: of the reference.

    Raises:
      ValueError: an arm has no FLOPs, or the budget is no whole step of it.
    """
    _check(costs, reference, steps)
    budget = steps * costs[reference].flops
    return {name: steps_of_budget(budget, "flops", cost) for name, cost in costs.items()}


def savings(
    costs: Mapping[str, StepCost], reference: str, steps: Mapping[str, int]
) -> dict[str, Savings]:
    """Returns what each arm's run saves of the reference's, in patches and in FLOPs.

    Args:
      costs: of a step, by arm.
      reference: name of an arm.
      steps: of a protocol, by arm.
    """

    def saved(name: str, what: str) -> float:
        spent, whole = (getattr(costs[x], what) * steps[x] for x in (name, reference))
        require(whole > 0, f"{what} of {reference}", whole, "above 0")
        return 1 - spent / whole

    return {name: Savings(saved(name, "patches"), saved(name, "flops")) for name in costs}


def compute_optimal(num_parameters: int) -> TokenBudget:
    """Returns the paper's compute-optimal data: 20 text tokens a parameter, speech half of that.

    Args:
      num_parameters: of the model, at least 1.

    Raises:
      ValueError: there are none.
    """
    require(num_parameters >= 1, "num_parameters", num_parameters, "at least 1")
    text = float(TEXT_TOKENS_PER_PARAMETER * num_parameters)
    return TokenBudget(text, SPEECH_PER_TEXT * text)


def compute_optimal_steps(
    num_parameters: int, cost: StepCost, tolerance: float = MIXTURE_TOLERANCE
) -> int:
    """Returns the steps that see the compute-optimal data.

    Args:
      num_parameters: of the model that the data are optimal for.
      cost: of a step of the model that is trained, with plain units.
      tolerance: by which units may be more than all of the speech.

    Raises:
      ValueError: the rows' mixture is not 1:2: more than a third of the tokens are units, or less
        than half of that, which no interleaving leaves.
    """
    budget = compute_optimal(num_parameters)
    most = budget.speech / sum(budget)
    share = cost.speech_units / cost.tokens if cost.tokens else 0.0
    good = most / 2 <= share <= most * (1 + tolerance)
    expected = f"{most / 2:.3f} … {most:.3f}: speech half of the text"
    require(good, "units' share of the tokens", round(share, 3), expected)
    return steps_of_budget(sum(budget), "tokens", cost)


def trunk_branches(steps: Sequence[int], decay_share: float) -> list[Branch]:
    """Returns how budgets of one model share a trunk of constant learning rate (WSD).

    A run of the longest budget's constant part is shared; each budget branches off where its own
    decay begins.

    Args:
      steps: of each budget, ascending.
      decay_share: of each budget's steps, inside (0, 1).

    Raises:
      ValueError: steps do not ascend, or a budget has no step of decay and one before it.
    """
    ascending = bool(steps) and all(a < b for a, b in itertools.pairwise(steps))
    require(ascending, "steps", list(steps), "budgets in ascending order")
    require(0 < decay_share < 1, "decay_share", decay_share, "a value inside (0, 1)")
    decays = [max(1, round(decay_share * total)) for total in steps]
    require(steps[0] > decays[0], "steps", steps[0], "at least 2: one before the decay")
    return [Branch(n - decay, n, decay) for n, decay in zip(steps, decays, strict=True)]


def _whole_steps(amount: float, per_step: float, what: str) -> int:
    good = isinstance(amount, int | float) and math.isfinite(amount)
    steps = amount / per_step if good else math.nan
    expected = f"1 … {_MOST_STEPS} to the nearest"
    require(0.5 <= steps < _MOST_STEPS, f"steps of {what}", steps, expected)
    return math.floor(steps + 0.5)


def _check(costs: Mapping[str, StepCost], reference: str | None, steps: int) -> None:
    require(bool(costs), "costs", dict(costs), "one or more arms")
    require(reference in costs, "reference", reference, f"one of {list_names(costs)}")
    good = isinstance(steps, int) and 1 <= steps <= _MOST_STEPS
    require(good, "steps", steps, f"an integer, 1 … {_MOST_STEPS}")


def _check_same(costs: Mapping[str, StepCost], what: str, tolerance: float, protocol: str) -> None:
    values = {name: getattr(cost, what) for name, cost in costs.items()}
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[most] > values[least] * (1 + tolerance):
        raise ValueError(
            f"{protocol}: {most} has {values[most]:.6g} {what} a step and {least} "
            f"{values[least]:.6g}, expected the same within {tolerance:.0%}"
        )
