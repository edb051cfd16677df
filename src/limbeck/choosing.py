"""Several recipes trained alike, and the one kept that validation prefers: what the recipe `auto` does.

Validation labels may be as wrong as training labels. So every candidate, with or without a teacher, is scored by its
expected worst-group accuracy through the noise matrix of one arbitration (`limbeck.arbitration.expected`), and its
epochs are selected in the same way. Candidates come simplest first; within a margin of the best score the simpler one
is kept, so that "no teacher" and "no correction" are outcomes like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.arbitration import Arbitration, arbitrate, expected_groups
from limbeck.callbacks import Callback, RunState
from limbeck.errors import LimbeckError, RecipeError
from limbeck.loop import Fitted
from limbeck.predict import predict_logits
from limbeck.recipe import Recipe
from limbeck.selection import SelectionRule
from limbeck.teachers import Teacher
from limbeck.teachers import require as require_outputs

if TYPE_CHECKING:
    from limbeck.data import Data


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
        The chosen student, with the candidate as its recipe. `details["chosen"]` says which, why, and what the others
        scored; `details["arbitration"]` what is known of the labels.

    Raises:
        RecipeError: where no candidate fits data and teacher, with the reasons.
    """
    started = time.perf_counter()
    assert recipe.choose is not None
    assert recipe.arbitrate is not None
    if arbitration is None:
        arbitration = arbitrate(data, teacher, **vars(recipe.arbitrate), seed=seed)
    groups = expected_groups(arbitration, data)
    best: tuple[float, int] | None = None
    kept: dict[int, Fitted] = {}
    table: list[dict[str, Any]] = []
    for number, candidate in enumerate(recipe.choose.candidates):
        reason = unsupported(candidate, data, teacher)
        if reason is not None:
            table.append({"recipe": candidate.name, "score": None, "average": None, "left_out": reason})
            continue
        fitted = fit(
            student,
            data,
            teacher=teacher if candidate.teacher_outputs else None,
            recipe=candidate,
            arbitration=arbitration,
            selection=rule,
            seed=seed,
            callbacks=[_Named(candidate.name), *callbacks],
            checkpoint=None if folder is None else folder / candidate.name.replace(" ", "-"),
            **settings,
        )
        predicted = predict_logits(fitted, data.validation).argmax(axis=1)
        score = groups.worst(predicted)
        table.append({"recipe": candidate.name, "score": score, "average": groups.average(predicted)})
        kept[number] = fitted
        if best is None or score > best[0]:
            best = (score, number)
        # Whoever lies further below the best than the margin will not be chosen any more.
        kept = {place: one for place, one in kept.items() if table[place]["score"] >= best[0] - recipe.choose.margin}
    if best is None:
        reasons = "; ".join(f"{row['recipe']}: {row['left_out']}" for row in table)
        raise RecipeError(f"recipe {recipe.name!r}: none of its candidates can be trained here: {reasons}")
    number = pick([row["score"] for row in table], recipe.choose.margin)
    fitted = kept[number]
    fitted.details = {
        **fitted.details,
        "arbitration": arbitration.to_dict(),
        "chosen": {
            "recipe": table[number]["recipe"],
            "why": sentence(table, number, best[1], recipe.choose.margin),
            "candidates": table,
            "groups": list(groups.names),
            "validation_labels": believed(arbitration),
        },
    }
    fitted.warnings = [*fitted.warnings, f"{recipe.name}: {fitted.details['chosen']['why']}"]
    fitted.seconds = time.perf_counter() - started
    return fitted


def pick(scores: Sequence[float | None], margin: float) -> int:
    """The first candidate within `margin` of the best score; None stands for one that could not be trained."""
    best = max(score for score in scores if score is not None)
    return next(place for place, score in enumerate(scores) if score is not None and score >= best - margin)


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


def sentence(table: Sequence[Mapping[str, Any]], chosen: int, best: int, margin: float) -> str:
    """What was kept and why."""
    row = table[chosen]
    tried = sum(entry["score"] is not None for entry in table)
    text = (
        f"{row['recipe']!r} is kept of {tried} candidates: expected worst-group accuracy on validation "
        f"{row['score']:.3f}"
    )
    if chosen == best:
        return text + ", the best of them"
    return text + f", within {margin:g} of the best ({table[best]['recipe']!r}, {table[best]['score']:.3f}) and simpler"


def believed(arbitration: Arbitration) -> str:
    """What the scores assume about validation labels."""
    judged = arbitration.validation
    share = 1.0 if judged is None else judged.noise_share
    text = (
        f"taken to be wrong {share:g} times as often as training labels ({arbitration.noise_rate:.1%}), in the same way"
    )
    return text if arbitration.identifiable else f"{text}; {arbitration.reason}"
