"""The audit of a configuration: its data, and each of its teachers, trained first where they are not finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.audits.advice import RECIPES
from limbeck.audits.whole import Audit, audit
from limbeck.errors import ConfigError, unknown_name
from limbeck.fitting import fit
from limbeck.pilots.arms import Arm, plan, teacher_key

if TYPE_CHECKING:
    from limbeck.config import PilotConfig
    from limbeck.data import Data


def audit_config(
    config: PilotConfig,
    *,
    models: str | Path | None = None,
    teacher: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> dict[str | None, Audit]:
    """Audit the data of a configuration under each of its teachers.

    Args:
        config: a checked configuration; advice is given on its own recipes too.
        models: a Python file of the user's own models.
        teacher: only this one.
        say: told what takes time.
        options: of `audit`.

    Returns:
        An audit by the teacher's key; {None: …}, of the labels alone, where there is no teacher.

    Raises:
        ConfigError: an unknown teacher.
    """
    if teacher is not None and teacher not in config.teachers:
        raise ConfigError(unknown_name("teacher", teacher, config.teachers))
    data, arms = plan(config, models)
    by_key = {arm.key: arm for arm in arms}
    # A recipe with two teachers is two arms and one piece of advice.
    own = {arm.recipe.name: arm.recipe for arm in arms if arm.role != "teacher" and arm.recipe is not None}
    options.setdefault("recipes", [*own.values(), *(name for name in RECIPES if name not in own)])
    options = {**_on_trial(data, arms), **options}
    wanted = [key for key in config.teachers if teacher in (None, key)]
    if not wanted:
        return {None: audit(data, **options)}
    found: dict[str | None, Audit] = {}
    for key in wanted:
        arm = by_key[teacher_key(key)]
        if arm.source is None:
            say(f"training the teacher {key}")
        found[key] = audit(data, _finished(arm, data, config), **options)
    return found


def _on_trial(data: Data, arms: Sequence[Arm]) -> dict[str, Any]:
    """The configuration's own student, where many of it can be trained at once; else a linear one is tried."""
    from limbeck.presets import as_recipe
    from limbeck.probes.stages import Cell, can_be_together

    arm = next((arm for arm in arms if arm.role != "teacher" and arm.model is not None), None)
    # Trained as the trial does: a configuration's own training may be long, or too short to tell recipes apart.
    if arm is None or arm.model is None or not can_be_together(Cell(arm.model, data, as_recipe("erm"))):
        return {}
    return {"student": arm.model}


def _finished(arm: Arm, data: Any, config: PilotConfig) -> Any:
    if arm.source is not None:
        return arm.source
    assert arm.model is not None
    assert arm.recipe is not None
    assert arm.training is not None
    return fit(
        arm.model,
        data,
        recipe=arm.recipe,
        training=arm.training,
        seed=config.seeds[0],
        selection=config.selection,
    )
