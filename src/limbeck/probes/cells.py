"""Many probes: recipes × seeds × settings × noise draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.errors import ConfigError, LimbeckError, unknown_name
from limbeck.fitting import fit
from limbeck.loop import Fitted, Stage
from limbeck.presets import as_recipe
from limbeck.probes.arrange import MAX_BYTES
from limbeck.probes.stages import Cell, Sources, Steps, can_be_together, steps
from limbeck.probes.together import train_stages
from limbeck.probes.workers import worker_count
from limbeck.recipe import Recipe
from limbeck.selection import SelectionRule
from limbeck.training import Training

if TYPE_CHECKING:
    from limbeck.data import Data


def fit_probes(
    student: nn.Module | Callable[[], nn.Module],
    data: Data | Sequence[Data],
    *,
    teacher: Any = None,
    recipes: Sequence[str | Mapping[str, Any] | Recipe] = ("erm", "kd"),
    seeds: int | Sequence[int] = 3,
    training: Training | Sequence[Training] | None = None,
    selection: str | SelectionRule | None = None,
    max_bytes: int = MAX_BYTES,
    workers: int | None = None,
    **settings: Any,
) -> list[Fitted]:
    """Train many small students on the same vector features at once: each is what `limbeck.fit` gives.

    Linear students and small MLPs share batches and matrix products; whatever cannot (dropout, batch normalisation,
    augmentation, clipping, a user's optimiser, DFR) is trained by `limbeck.fit` after them, with the same results.
    Sums are taken in another order than by `fit`, so weights agree to about 1e-6 and not in every byte; the same call
    gives the same bytes.

    Args:
        student: a module, which every seed starts from as it is, or a function that builds one, called under the seed.
        data: with vector features; several, such as noise draws over the same features, are all gone through.
        teacher: any source of `limbeck.teachers.as_teacher`, for the recipes that need one.
        recipes: presets, plain data or recipes.
        seeds: how many, or which.
        training: one setting, or several to compare; `settings` change single entries of each.
        selection: which epoch is kept, on validation.
        max_bytes: what the networks in training may take beside features and teacher outputs; more than that fit in
            are trained in turns.
        workers: processes that train at once, each on one thread; None takes as many as torch has threads, where there
            is enough to do and processes can be forked safely (Linux, no CUDA, no other thread of Python).

    Returns:
        The students: data, then settings, then recipes, then seeds, the last fastest.

    Raises:
        LimbeckError: where recipe, data, teacher and student do not fit each other, before any training.
    """
    names = [entry.name for entry in fields(Training)]
    for name in settings:
        if name not in names:
            raise ConfigError("fit_probes: " + unknown_name("setting", name, names))
    several = training if isinstance(training, Sequence) else [training or Training()]
    trainings = [replace(one, **settings) for one in several]
    sets = list(data) if isinstance(data, Sequence) else [data]
    chosen = [as_recipe(recipe) for recipe in recipes]
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not (sets and trainings and chosen and numbers):
        raise LimbeckError("fit_probes: expected at least one of data, training, recipes and seeds each")
    cells = [
        Cell(student, one, recipe, teacher, how, seed)
        for one, how, recipe, seed in product(sets, trainings, chosen, numbers)
    ]
    return train_cells(cells, selection=selection, max_bytes=max_bytes, workers=workers)


def train_cells(
    cells: Sequence[Cell],
    *,
    selection: str | SelectionRule | None = None,
    max_bytes: int = MAX_BYTES,
    workers: int | None = None,
) -> list[Fitted]:
    """Train cells, each as `limbeck.fit` would, the stages that can be together; arguments as of `fit_probes`.

    Raises:
        LimbeckError: where the parts of a cell do not fit each other; before any training where it can be together.
    """
    found: dict[int, Fitted] = {}
    count = worker_count(workers)
    with torch.random.fork_rng(devices=[]):
        sources = Sources()
        # A rule over the logits themselves needs them all at once.
        whole = isinstance(selection, SelectionRule) and selection.score_logits is not None
        together = [place for place, cell in enumerate(cells) if not whole and can_be_together(cell)]
        running = {place: steps(cells[place], selection, sources) for place in together}
        asked = {place: next(run) for place, run in running.items()}
        for part in _parts(cells, together, max_bytes):
            found |= _train({place: asked.pop(place) for place in part}, running, max_bytes, count)
    for place, cell in enumerate(cells):
        if place not in found:
            found[place] = fit(
                cell.student,
                cell.data,
                teacher=cell.teacher,
                recipe=cell.recipe,
                training=cell.training,
                seed=cell.seed,
                selection=selection,
            )
    return [found[place] for place in range(len(cells))]


def _train(asked: dict[int, Stage], running: Mapping[int, Steps], max_bytes: int, workers: int) -> dict[int, Fitted]:
    """All of them a stage further, until all are done."""
    found: dict[int, Fitted] = {}
    while asked:
        places = list(asked)
        trained = train_stages([asked.pop(place) for place in places], max_bytes=max_bytes, workers=workers)
        for place, fitted in zip(places, trained, strict=True):
            try:
                asked[place] = running[place].send(fitted)
            except StopIteration as finished:
                found[place] = finished.value
    return found


def _parts(cells: Sequence[Cell], places: Sequence[int], max_bytes: int) -> list[list[int]]:
    """Cut where the outputs of the teachers that cells train for themselves would take too much at a time."""
    parts: list[list[int]] = [[]]
    taken = 0
    for place in places:
        cell = cells[place]
        own = cell.recipe.rounds > 2 or (cell.recipe.rounds == 2 and cell.teacher is None)
        size = 4 * len(cell.data.train) * cell.data.num_classes if own else 0
        if parts[-1] and taken + size > max_bytes:
            parts.append([])
            taken = 0
        parts[-1].append(place)
        taken += size
    return parts
