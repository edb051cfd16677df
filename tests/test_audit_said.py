"""The sentences of an audit apart from their language: English as printed, the same numbers in every other one."""

from __future__ import annotations

import copy
import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limbeck as lb
import limbeck.audits
from limbeck.audits.gates import GATES
from limbeck.audits.said import Said, english, plain, spoken
from limbeck.data import inject
from limbeck.report import languages
from limbeck.report.language import load_language
from test_audit_trial import biased_teacher, shortcut_data

ROOM = Path(limbeck.audits.__file__).parent
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def found() -> list[Any]:
    """Audits with much to say: a biased teacher, one that learned wrong labels by heart, protected and rare classes."""
    data, digits = shortcut_data(1200), lb.load("digits")
    noisy = inject.label_noise(digits, rate=0.3)
    inside = noisy.split == 0
    heart = {str(name): np.where(inside, 0.9 * (noisy.y == k) + 0.01, 0.1) for k, name in enumerate(noisy.classes)}
    rare = data.subset(np.flatnonzero((data.y == 0) | (np.arange(len(data)) % 20 == 0)))
    learned: dict[str, Any] = {"protected": ["3"], "recipes": ["pll", "gce", "multi_round", "dett"], "trial": False}
    return [
        lb.audit(data, biased_teacher(data), recipes=["erm", "group_balanced", "kd", "dkd", "rld"]),
        lb.audit(noisy, {"id": noisy.ids, **heart}, **learned),
        lb.audit(rare, biased_teacher(rare), trial=False),
        lb.audit(noisy.with_groups(["label"]), recipes=["group_dro", "dfr"], trial=False),
    ]


# The words ------------------------------------------------------------------------------------------------------------


def test_every_sentence_is_used_and_every_one_used_is_there() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in ROOM.glob("*.py"))
    keys, gates = set(english()), {f"gate.{gate.name}" for gate in GATES}
    assert gates <= keys
    literal = set(re.findall(r'"((?:basis|cap|gate|honesty|labels|name|note|source|trial)\.[a-z_ ]+)"', code))
    assert literal <= keys
    families = tuple(re.findall(r'Said\(f"([a-z]+\.)\{', code))
    assert {key for key in keys - gates - literal if not key.startswith(families)} == {"join", "more"}


def given(words: str) -> dict[str, Any]:
    """A value for each placeholder, of the kind that its format is for."""
    kinds = {"": "x", ",": 1234, "share": 0.5, "percent": 0.5, "points": 0.1}
    found: dict[str, Any] = {}
    for _, name, spec, _ in string.Formatter().parse(words):
        if name is not None:
            found[name] = ["a", "b"] if (spec or "").isdigit() else kinds.get(spec or "", 0.5)
    return found


@pytest.mark.parametrize("code", languages())
def test_every_sentence_can_be_filled_in_every_language(code: str) -> None:
    words = load_language(code).audit()
    assert words.keys() == english().keys()
    for key, text in words.items():
        if key == "more":
            continue
        # The values are of the kinds that English names; a language may format them otherwise.
        said = spoken({"key": key, "values": given(english()[key])}, words)
        assert "{" not in said
        assert code != "ja" or JAPANESE.search(said) or key == "join", text


# One sentence ---------------------------------------------------------------------------------------------------------


def test_a_sentence_is_english_and_remembers_what_it_is_made_of() -> None:
    why = Said("labels.limit", {"limit": 0.25, "another": "left out"})
    said = Said("labels.held_back", {"cell": "cats", "flagged": 1234, "samples": 5000, "held": 3, "why": why})
    assert said == ("cats: 1,234 of 5,000 labels were flagged, 3 are held back (at most 25.0 % of a cell may change).")
    assert plain(said) == {
        "key": "labels.held_back",
        "values": {
            "cell": "cats", "flagged": 1234, "samples": 5000, "held": 3,
            "why": {"key": "labels.limit", "values": {"limit": 0.25}},
        },
    }  # fmt: skip
    for same in (copy.deepcopy(said), copy.copy(said)):
        assert same == said
        assert plain(same) == plain(said)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, ".00"), (0.326, ".33"), (0.994, ".99"), (0.995, "1.00"), (1.0, "1.00")]
)
def test_shares_are_written_without_the_zero(value: float, shown: str) -> None:
    assert f"({shown} against" in Said("cap.hurts", {"group": "g", "teacher": value, "labels": 0.5})


def test_long_lists_are_cut_and_what_is_not_known_is_a_dash() -> None:
    assert (
        Said("note.thin", {"few": 10, "groups": ["a", "b"]})
        == "fewer than 10 samples audited of a, b: no verdict on these"
    )
    many = Said("note.thin", {"few": 10, "groups": list("abcde")})
    assert "of a, b, c and 2 more:" in many
    assert "a、b、c ほか 2 件" in spoken(plain(many), load_language("ja").audit())
    unknown = plain(Said("cap.hurts_average", {"teacher": float("nan"), "labels": 0.5}))
    assert unknown["values"]["teacher"] is None
    assert "–" in spoken(unknown, load_language("ja").audit())


# A whole audit --------------------------------------------------------------------------------------------------------


def test_the_plain_data_say_the_same_again(found: list[Any]) -> None:
    keys = set()
    for audit in found:
        kept = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
        assert [spoken(said, english()) for said in kept["said"]] == kept["verdicts"] == audit.verdicts
        reasons = [reason for entry in kept["advice"] for reason in entry["reasons"]]
        assert [spoken(reason["said"], english()) for reason in reasons] == [reason["reason"] for reason in reasons]
        told = [*kept["said"], *(reason["said"] for reason in reasons)]
        keys |= {said["key"] for said in told if isinstance(said, dict)}
        # What a recipe itself says against the data is the only free text.
        assert all(reason["gate"] in ("refused by the recipe", "two classes under a masked term")
                   for reason in reasons if isinstance(reason["said"], str))  # fmt: skip
        assert all(isinstance(said, dict) for said in kept["said"])
    assert len(keys) > 20


def test_another_language_has_the_same_names_and_no_english(found: list[Any]) -> None:
    words = load_language("ja").audit()
    for audit in found:
        kept = audit.to_dict()
        for said, text in zip(kept["said"], kept["verdicts"], strict=True):
            other = spoken(said, words)
            assert JAPANESE.search(other)
            assert not re.search(r"\b(the|of|and|is|are|labels|teacher)\b", other), other
            for value in said["values"].values():
                if isinstance(value, str):
                    assert value in text
                    assert value in other


def test_the_numbers_are_those_that_were_measured(found: list[Any]) -> None:
    _, audit, *_ = found
    said = [sentence for sentence in audit.verdicts if isinstance(sentence, Said)]
    told = {sentence.key: sentence.values for sentence in reversed(said)}
    assert told["cap.copy"]["worst"] == audit.cap.copy.worst
    assert told["labels.noise"]["rate"] == audit.labels.noise.rate
    sides = audit.teacher.overall
    assert [told["teacher.sides"][name] for name in ("label", "teacher", "neither")] == [
        sides.teacher_wrong, sides.label_suspicious, sides.undecided
    ]  # fmt: skip
    cells = {cell.name: cell for cell in audit.labels.guarded.cells}
    held = [sentence.values for sentence in said if sentence.key == "labels.held_back"]
    assert held[0]["cell"] == "3"
    assert held[0]["why"].key == "labels.protected"
    for values in held:
        cell = cells[values["cell"]]
        assert (values["flagged"], values["held"]) == (cell.proposed, cell.held_back)
    over = next(values for key, values in told.items() if key.endswith("_confident"))
    assert over["temperature"] == audit.teacher.temperature
    assert told["teacher.audited"]["source"].key == "source.memorised"
