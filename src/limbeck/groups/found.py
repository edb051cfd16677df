"""A discovery: groups that were found, as columns over sample ids, that plug in wherever declared ones do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from limbeck.data.columns import Groups, IntArray, some
from limbeck.data.splits import SPLITS, TRAIN
from limbeck.errors import DataError, unknown_name
from limbeck.groups.quality import DiscoveryQuality
from limbeck.groups.rules import GroupRule
from limbeck.groups.seen import Seen

if TYPE_CHECKING:
    from limbeck.data import Data

_READS = {
    "labels": "the label",
    "probabilities": "the model's prediction",
    "biased": "the biased model's prediction",
    "embeddings": "the model's embedding of the features",
    "columns": "attributes and features",
}


@dataclass(frozen=True, eq=False)
class Discovery:
    """Groups that were found, and how good they are.

    Attributes:
        method: how they were found.
        rule: the function from what is known of a sample to its group.
        ids: int64 [N]. split: int8 [N]. index: int64 [N], the group of each sample.
        see: from data to what the rule reads of them.
        seed: of the discovery.
        options: of the method.
        learned_from: what was learned from, in words.
        quality: judged out of sample.
        notes: what worked, but not as one might think.
    """

    method: str
    rule: GroupRule
    ids: IntArray
    split: NDArray[np.int8]
    index: IntArray
    see: Callable[[Data], Seen]
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    learned_from: str = "training samples and their labels"
    quality: DiscoveryQuality | None = None
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """One a group."""
        return self.rule.names

    @property
    def consumes(self) -> str:
        """What was looked at to find the groups, and what is looked at to tell the group of a sample."""
        reads = [told for name, told in _READS.items() if name in self.rule.reads]
        read = " and ".join(reads) if reads else "nothing: there is one group"
        return f"found from {self.learned_from}; the group of a sample is told from {read}; no group label"

    @property
    def reads_label(self) -> bool:
        """Whether a sample's group depends on its label, so that it is not known for unlabelled samples."""
        return "labels" in self.rule.reads

    @property
    def worse(self) -> tuple[str, ...]:
        """Those that are worse out of sample, the worst first: what an error set is made of where nothing is said."""
        return () if self.quality is None else tuple(part.name for part in self.quality.worse)

    @property
    def groups(self) -> Groups:
        """The groups of all samples, in their order."""
        return self._groups(self.index)

    def apply(self, data: Data) -> Data:
        """The same samples with the found groups in place of declared ones; joined by id.

        Raises:
            DataError: where a sample was not there when the groups were found: use `assign`.
        """
        return data.with_groups(self.groups_of(data))

    def groups_of(self, data: Data) -> Groups:
        """The found groups of samples that were there, joined by id."""
        order = np.argsort(self.ids, kind="stable")
        place = np.searchsorted(self.ids[order], data.ids).clip(max=len(order) - 1)
        rows = order[place]
        absent = np.flatnonzero(self.ids[rows] != data.ids)
        if len(absent):
            raise DataError(
                f"{len(absent):,} samples of {data.name!r} (ids {some(data.ids[absent])}) were not there when the "
                "groups were found: tell their groups by the rule, with discovery.assign(data)"
            )
        return self._groups(self.index[rows])

    def assign(self, data: Data) -> Groups:
        """The groups of any samples of the same kind, by the rule.

        What the rule reads is looked at anew, by models that trained on the training part: their errors on training
        samples are rarer than elsewhere, so for those use `apply`, which holds what out-of-sample models said.
        """
        return self._groups(self.rule.assign(self.see(data)))

    def error_set(self, data: Data, groups: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """The training samples in some of the groups, bool [training samples]: the error set of DeTT and JTT.

        Args:
            data: the samples the groups were found in.
            groups: names; by default those that are worse out of sample.

        Raises:
            DataError: for an unknown name, or where no group is worse out of sample and none is named.
        """
        if groups is None:
            groups = self.worse
            if not groups:
                raise DataError("no group found is worse out of sample, so there is no error set: name groups=[…]")
        for name in groups:
            if name not in self.names:
                raise DataError(unknown_name("group", name, self.names))
        numbers = [self.names.index(name) for name in groups]
        return np.isin(self.groups_of(data.train).index, numbers)

    def table(self) -> pa.Table:
        """One row a sample: id, split, group, and the rule in words."""
        groups, texts = np.array(self.names, dtype=object), np.array(self.rule.texts, dtype=object)
        return pa.table(
            {
                "id": pa.array(self.ids),
                "split": pa.array(np.array(SPLITS, dtype=object)[self.split]),
                "group": pa.array(groups[self.index]).dictionary_encode(),
                "rule": pa.array(texts[self.index]).dictionary_encode(),
            }
        )

    def save(self, path: str | Path) -> Path:
        """Write the table as Parquet, whole or not at all; method, consumption and quality are in its metadata."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        described = json.dumps(self.to_dict(), ensure_ascii=False, default=str)
        table = self.table().replace_schema_metadata({"limbeck": described})
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            pyarrow.parquet.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        return path

    def to_dict(self) -> dict[str, Any]:
        """What was found, as plain data; the samples are in `table`."""
        counts = {name: self.groups.counts(self.split == code).tolist() for code, name in enumerate(SPLITS)}
        return {
            "method": self.method,
            "seed": self.seed,
            "options": dict(self.options),
            "consumes": self.consumes,
            "groups": list(self.names),
            "worse": list(self.worse),
            "rules": list(self.rule.texts),
            "counts": counts,
            "quality": None if self.quality is None else self.quality.to_dict(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        training = self.groups.counts(self.split == TRAIN)
        lines = [f"{len(self.names)} groups by {self.method} (seed {self.seed})", f"  {self.consumes}"]
        if self.quality is None:
            lines += [f"  {n:>7,} training samples  {name}" for name, n in zip(self.names, training, strict=True)]
        else:
            lines.append(str(self.quality))
        if self.worse:
            # As a configuration takes it: JSON is YAML.
            named = json.dumps(list(self.worse), ensure_ascii=False)
            lines.append(f"  the error set of DeTT or JTT: identify: {{groups: {named}}}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _groups(self, index: IntArray) -> Groups:
        return Groups.from_index(index, self.names, column=f"found by {self.method}")
