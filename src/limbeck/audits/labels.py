"""The label audit: how many labels are wrong, which, and what may be done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.audits.guard import Guarded, guard
from limbeck.audits.noise import Floats, Integers, NoiseEstimate, checked, estimate_noise
from limbeck.audits.ranking import Suspicion, suspicious
from limbeck.audits.said import Said
from limbeck.data.columns import Groups

SHOWN = 100
"""Suspicious samples that plain data lists."""

MATERIAL = 0.1
"""A noise rate whose lower limit is above this changes what is advised: less is not told from overlapping classes."""


@dataclass(frozen=True, eq=False)
class LabelAudit:
    """What is wrong with the labels.

    Attributes:
        noise: rates and matrices.
        suspicion: posterior, score and flags of each sample audited.
        guarded: which flagged labels may be corrected, and which are held back for review.
        ids: `[N]` of the samples audited; labels: their given classes.
        groups: `[N]`, -1 where unknown or not declared.
        partial: bool `[N]`, samples that had better be given a candidate set: uncertain, or held back.
        judge: what the probabilities come from, in words.
    """

    noise: NoiseEstimate
    suspicion: Suspicion
    guarded: Guarded
    ids: Integers
    labels: Integers
    groups: Integers
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    judge: str

    @property
    def partial(self) -> NDArray[np.bool_]:
        """Samples for which a candidate set is safer than a decision, bool `[N]`."""
        return np.asarray(self.suspicion.uncertain | self.guarded.held_back)

    @property
    def ranking(self) -> Integers:
        """Rows of the audited samples, the most suspicious label first."""
        return np.argsort(-self.suspicion.score, kind="stable").astype(np.int64)

    def corrected(self) -> Integers:
        """The labels `[N]` with every allowed correction made; what is held back stays as it is."""
        return np.where(self.guarded.allowed, self.suspicion.suggested, self.labels)

    def targets(self) -> Floats:
        """Targets `[N, C]`: corrected labels as one-hot rows, partial labels as equal shares of their candidates."""
        rows = np.zeros(self.suspicion.candidates.shape)
        rows[np.arange(len(rows)), self.corrected()] = 1
        sets = self.suspicion.candidates / self.suspicion.candidates.sum(1, keepdims=True)
        return np.where(self.partial[:, None], sets, rows)

    def suspects(self, limit: int | None = SHOWN, *, held_back: bool | None = None) -> list[dict[str, Any]]:
        """The flagged samples as plain rows, the most suspicious first.

        Args:
            limit: at most so many; None for all.
            held_back: only those held back for review (True), or only those that may be corrected (False).
        """
        wanted = self.guarded.allowed | self.guarded.held_back
        if held_back is not None:
            wanted = self.guarded.held_back if held_back else self.guarded.allowed
        order = self.ranking
        return [self._row(int(row)) for row in order[wanted[order]][:limit]]

    def _row(self, row: int) -> dict[str, Any]:
        group = int(self.groups[row])
        candidates = np.flatnonzero(self.suspicion.candidates[row])
        return {
            "id": int(self.ids[row]),
            "label": self.class_names[int(self.labels[row])],
            "suggested": self.class_names[int(self.suspicion.suggested[row])],
            "score": float(self.suspicion.score[row]),
            "group": self.group_names[group] if group >= 0 else None,
            "status": "held back" if self.guarded.held_back[row] else "may be corrected",
            "candidates": [self.class_names[int(k)] for k in candidates],
        }

    def sentences(self) -> list[str]:
        """What was found, from the measured numbers."""
        noise, samples = self.noise, len(self.labels)
        flagged, held = int(self.suspicion.flagged.sum()), int(self.guarded.held_back.sum())
        rates = {"rate": noise.rate, "low": noise.rate_low, "high": noise.rate_high}
        counts = {"flagged": flagged, "samples": samples, "free": flagged - held, "held": held}
        found: list[str] = [
            Said("labels.noise", {**rates, "confident": noise.confident_rate}),
            Said("labels.flagged", {**counts, "uncertain": int(self.suspicion.uncertain.sum())}),
        ]
        for cell in sorted(self.guarded.cells, key=lambda cell: -cell.held_back)[:3]:
            if cell.held_back:
                why = Said("labels.protected") if cell.protected else Said("labels.limit", {"limit": cell.limit})
                told = {"cell": cell.name, "flagged": cell.proposed, "samples": cell.samples, "held": cell.held_back}
                found.append(Said("labels.held_back", {**told, "why": why}))
        apart = [g for g in noise.per_group if g.rate_low > noise.rate_high or g.rate_high < noise.rate_low]
        for entry in sorted(apart, key=lambda g: -g.rate)[:3]:
            rates = {"rate": entry.rate, "low": entry.rate_low, "high": entry.rate_high}
            found.append(Said("labels.group", {"group": entry.name, **rates}))
        return found + [Said("note.said", {"note": note}) for note in noise.notes]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: rates, matrices, cells and the most suspicious samples."""
        return {
            "judge": self.judge,
            "samples": len(self.labels),
            "noise": self.noise.to_dict(),
            "flagged": int(self.suspicion.flagged.sum()),
            "uncertain": int(self.suspicion.uncertain.sum()),
            "partial": int(self.partial.sum()),
            "guard": self.guarded.to_dict(),
            "suspects": self.suspects(),
            "held_back": self.suspects(held_back=True),
            "sentences": self.sentences(),
        }


def audit_labels(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: Groups | None = None,
    *,
    noise_probabilities: ArrayLike | None = None,
    noise_groups: Groups | None = None,
    agreement: float = 0.0,
    class_names: Sequence[str] | None = None,
    ids: ArrayLike | None = None,
    limit: float | None = None,
    protected: Mapping[str, float] | Sequence[str] = (),
    judge: str = "the probabilities given",
    seed: int = 0,
) -> LabelAudit:
    """Audit labels by probabilities that have not seen them.

    Args:
        probabilities: `[N, C]`, out of sample (cross-fitted, or held out).
        labels: given classes `[N]`.
        groups: for the guard.
        noise_probabilities: `[N, C]` of another judge, from which the noise matrix is estimated: one that knows the
            classes' shares finds it better, one that does not judges minorities better. None: the same.
        noise_groups: whose noise is estimated apart; groups that are not made of the label. None: `groups`.
        agreement: see `estimate_noise`.
        class_names: C names.
        ids: `[N]`; row numbers where not given.
        limit, protected: see `limbeck.audits.guard.guard`.
        judge: what the probabilities come from, for the record.
        seed: of the intervals.

    Raises:
        DataError: shapes that do not fit.
        ConfigError: an unknown protected name, or a share out of range.
    """
    p, given = checked(probabilities, labels)
    names = tuple(class_names or (f"class {k}" for k in range(p.shape[1])))
    index = np.full(len(given), -1, np.int64) if groups is None else groups.index
    apart = noise_groups if noise_groups is not None else groups
    noise = estimate_noise(
        p if noise_probabilities is None else noise_probabilities,
        given,
        None if apart is None else apart.index,
        group_names=None if apart is None else apart.names,
        agreement=agreement,
        seed=seed,
    )
    found = suspicious(p, given, noise.matrix)
    guarded = guard(
        found.flagged,
        found.score,
        given,
        index,
        suggested=found.suggested,
        class_names=names,
        group_names=() if groups is None else groups.names,
        limit=limit,
        protected=protected,
    )
    return LabelAudit(
        noise,
        found,
        guarded,
        np.arange(len(given)) if ids is None else np.asarray(ids, np.int64),
        given,
        index,
        names,
        () if groups is None else groups.names,
        judge,
    )
