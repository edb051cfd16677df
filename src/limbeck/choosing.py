"""Several recipes trained alike, and what validation makes of them: what the recipe `auto` does.

Validation labels may be as wrong as training labels. So every candidate, with or without a teacher, is scored by its
expected worst-group accuracy through the noise matrix of one arbitration (`limbeck.arbitration.expected`), and its
epochs are selected in the same way. Groups of a few dozen validation samples cannot tell good candidates from lucky
ones: taking the best score takes the luckiest. So the candidates near the top share the decision: their probabilities
are averaged, by how far each is below the best, and one student of the same size learns the average.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.arbitration import Arbitration, ExpectedGroups, arbitrate, expected_groups
from limbeck.callbacks import Callback, RunState
from limbeck.errors import LimbeckError, RecipeError
from limbeck.loop import Fitted
from limbeck.predict import call_model, logits_of, predict_logits
from limbeck.recipe import Recipe, Term
from limbeck.selection import SelectionRule
from limbeck.teachers import Teacher, as_teacher
from limbeck.teachers import require as require_outputs

if TYPE_CHECKING:
    from limbeck.data import Data

MERGED = "merged"
LEAST = 0.05
"""Relative to the best one's, the share below which a candidate has no say."""
TINY = 1e-12


class _Named:
    """Tells callbacks which candidate a stage belongs to."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_start(self, run: RunState) -> None:
        """Put the candidate before the stage."""
        run.stage = f"{self.name}: {run.stage}"

    def on_epoch(self, run: RunState) -> None:
        """Nothing to do."""

    def on_end(self, run: RunState) -> None:
        """Nothing to do."""


def choose(
    fit: Callable[..., Fitted],
    student: Any,
    data: Data,
    teacher: Teacher | None,
    recipe: Recipe,
    arbitration: Arbitration | None,
    folder: Path | None,
    rule: SelectionRule,
    *,
    seed: int,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Fitted:
    """Train the candidates of `recipe.choose` and keep one.

    Args:
        fit: `limbeck.fit`.
        student, data, teacher, recipe, arbitration, rule, seed, callbacks, settings: as `fit` has them.
        folder: of checkpoints; each candidate has its own inside.

    Returns:
        The merged student, or one candidate's where only that has a say, or merging failed. `details["chosen"]` says
        which, why, and what all scored; `details["arbitration"]` what is known of the labels.

    Raises:
        RecipeError: where no candidate fits data and teacher, with the reasons.
    """
    started = time.perf_counter()
    assert recipe.choose is not None
    assert recipe.arbitrate is not None
    margin = recipe.choose.margin
    if arbitration is None:
        arbitration = arbitrate(data, teacher, **vars(recipe.arbitrate), seed=seed)
    groups = expected_groups(arbitration, data)

    def train(candidate: Recipe, start: Any, by: Teacher | None) -> Fitted:
        return fit(
            start,
            data,
            teacher=by if candidate.teacher_outputs else None,
            recipe=candidate,
            arbitration=arbitration,
            selection=rule,
            seed=seed,
            callbacks=[_Named(candidate.name), *callbacks],
            checkpoint=None if folder is None else folder / candidate.name.replace(" ", "-"),
            **settings,
        )

    kept: dict[int, Fitted] = {}
    table: list[dict[str, Any]] = []
    for number, candidate in enumerate(recipe.choose.candidates):
        reason = unsupported(candidate, data, teacher)
        if reason is not None:
            table.append({"recipe": candidate.name, "score": None, "average": None, "left_out": reason})
            continue
        kept[number] = train(candidate, student, teacher)
        table.append({"recipe": candidate.name, **scored(kept[number], data, groups)})
        # Whoever has no say by now will have none later.
        weights = shares([row["score"] for row in table], margin)
        kept = {place: one for place, one in kept.items() if weights[place]}
    if not kept:
        reasons = "; ".join(f"{row['recipe']}: {row['left_out']}" for row in table)
        raise RecipeError(f"recipe {recipe.name!r}: none of its candidates can be trained here: {reasons}")
    weights = shares([row["score"] for row in table], margin)
    for row, weight in zip(table, weights, strict=True):
        row["share"] = weight
    best = max(kept, key=lambda place: (weights[place], -place))
    fitted, merged = kept[best], None
    if len(kept) > 1:
        panel = Panel([one.model for one in kept.values()], [weights[place] for place in kept])
        together = train(merging(data), beginning(kept, weights, student), as_teacher(panel))
        merged = scored(together, data, groups)
        # A margin below the best: the student could not hold what they know together.
        if merged["score"] >= table[best]["score"] - margin:
            fitted = together
    fitted.details = {
        **fitted.details,
        "arbitration": arbitration.to_dict(),
        "chosen": {
            "recipe": fitted.recipe.name,
            "why": sentence(table, best, merged, fitted is not kept[best]),
            "candidates": table,
            MERGED: merged,
            "groups": list(groups.names),
            "validation_labels": believed(arbitration),
        },
    }
    fitted.warnings = [*fitted.warnings, f"{recipe.name}: {fitted.details['chosen']['why']}"]
    fitted.seconds = time.perf_counter() - started
    return fitted


def scored(fitted: Fitted, data: Data, groups: ExpectedGroups) -> dict[str, float]:
    """Expected accuracy on validation: of the worst group, and on average."""
    predicted = predict_logits(fitted, data.validation).argmax(axis=1)
    return {"score": groups.worst(predicted), "average": groups.average(predicted)}


def shares(scores: Sequence[float | None], margin: float) -> list[float]:
    """How much of a say each candidate has: exp((score - best) / margin), those that matter, of a sum of 1.

    Args:
        scores: of the candidates; None for one that could not be trained, which has none.
        margin: how far below the best a say falls to 1/e; 0 leaves the first of the best ones alone.
    """
    best = max((score for score in scores if score is not None), default=math.nan)
    if margin == 0:
        first = scores.index(best) if best == best else -1
        return [float(place == first) for place in range(len(scores))]
    found = [0.0 if score is None else math.exp((score - best) / margin) for score in scores]
    found = [say if say >= LEAST else 0.0 for say in found]
    total = sum(found)
    return [say / total for say in found] if total else found


class Panel(nn.Module):
    """Several students as one teacher: its logits are the log of the weighted mean of their probabilities."""

    weights: Tensor

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Inputs as the members take them, to `[B, C]`."""
        seen = named or inputs[0]
        said = [logits_of(call_model(member, seen)).float().softmax(1) for member in self.members]
        mean = torch.stack([weight * one for weight, one in zip(self.weights, said, strict=True)]).sum(0)
        return mean.clamp_min(TINY).log()


def merging(data: Data) -> Recipe:
    """How one student learns what several know: all they say and nothing else, rare groups as often as others."""
    sampling = "class_balanced" if data.groups is None else "group_balanced"
    return Recipe([Term.named("kl_divergence", temperature=1.0)], sampling=sampling, name=MERGED)


def beginning(kept: Mapping[int, Fitted], weights: Sequence[float], student: Any) -> Any:
    """Where the merged student begins: with the weightiest member's weights, among those of the student's own shape."""
    own = [place for place, one in kept.items() if one.recipe.head is None and one.recipe.refit is None]
    if not own:
        return student
    return kept[max(own, key=lambda place: (weights[place], -place))].model


def unsupported(candidate: Recipe, data: Data, teacher: Teacher | None) -> str | None:
    """Why a candidate cannot be trained on these data with this teacher, or None."""
    groups = data.groups
    try:
        candidate.check(
            classes=data.num_classes, groups=None if groups is None else groups.names, teacher=teacher is not None
        )
        data.check(groups_required=candidate.needs_groups)
        if candidate.teacher_outputs and teacher is not None:
            require_outputs(teacher, candidate.teacher_outputs, by=f"recipe {candidate.name!r}")
            teacher.check(data.train, sorted(candidate.teacher_outputs))
    except LimbeckError as error:
        return str(error)
    return None


def sentence(table: Sequence[Mapping[str, Any]], best: int, merged: Mapping[str, float] | None, is_merged: bool) -> str:
    """What became of the candidates and why."""
    row = table[best]
    tried = sum(entry["score"] is not None for entry in table)
    top = f"{row['recipe']!r} ({row['score']:.3f})"
    measure = "expected worst-group accuracy on validation"
    if merged is None:
        return f"{top} is kept of {tried} candidates: no other comes near its {measure}"
    say = sorted((entry for entry in table if entry["share"] > 0), key=lambda entry: -entry["share"])
    members = ", ".join(f"{entry['recipe']} {entry['share']:.0%}" for entry in say)
    if is_merged:
        return (
            f"{len(say)} of {tried} candidates became one student ({members}): {measure} {merged['score']:.3f}, "
            f"the best alone {top}"
        )
    return f"{top} is kept of {tried} candidates: one student of {members} comes to {measure} {merged['score']:.3f}"


def believed(arbitration: Arbitration) -> str:
    """What the scores assume about validation labels."""
    judged = arbitration.validation
    share = 1.0 if judged is None else judged.noise_share
    rates = ", ".join(f"{name} {rate:.0%}" for name, rate in arbitration.noise_rates.items())
    text = (
        f"taken to be wrong {share:g} times as often as training labels ({arbitration.noise_rate:.1%}"
        f"{'; ' if rates else ''}{rates}), in the same way"
    )
    return text if arbitration.identifiable else f"{text}; {arbitration.reason}"
