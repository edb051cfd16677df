"""The audit log: every edit, removal and move shows; a killed writer leaves a log that goes on."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from limbeck.audit_log import BEGINNING, AuditLog, logged
from limbeck.cli import main
from limbeck.errors import ConfigError


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog(tmp_path / "audit.jsonl")
    (tmp_path / "result.json").write_text("{}")
    for number in range(5):
        made.append("cell finished", cell=f"kd-{number}", seed=number)
    made.append("pilot finished", files={"result.json": tmp_path / "result.json"}, verdict="better, 2.5 %, 計")
    return made


def rewritten(log: AuditLog, change: Any) -> None:
    lines = log.path.read_text(encoding="utf-8").splitlines()
    log.path.write_text("".join(f"{line}\n" for line in change(lines)), encoding="utf-8")


def test_entries_say_who_ran_what_with_which_versions_and_follow_each_other(log: AuditLog) -> None:
    entries = log.entries()
    assert [entry["number"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[0]["previous"] == BEGINNING
    assert all(later["previous"] == earlier["hash"] for earlier, later in itertools.pairwise(entries))
    assert entries[2]["cell"] == "kd-2"
    assert set(entries[0]["who"]) == {"user", "machine"}
    assert {"limbeck", "python", "torch", "numpy"} <= set(entries[0]["versions"])
    assert logged(entries, "cell finished", cell="kd-3", seed=3)
    assert not logged(entries, "cell finished", cell="kd-3", seed=4)
    found = log.verify()
    assert found.holds
    assert (found.entries, found.head, found.notes) == (6, entries[-1]["hash"], [])


def test_every_single_changed_character_shows(log: AuditLog) -> None:
    whole = log.path.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 150)
    for place in places:
        changed = bytearray(whole)
        changed[place] = ord("7") if changed[place] != ord("7") else ord("8")
        log.path.write_bytes(bytes(changed))
        assert not log.verify(files=False).holds, f"byte {place}: {whole[place - 20 : place + 5]!r}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:2] + lines[3:], "does not follow"),
        (lambda lines: lines[1:], "does not follow"),
        (lambda lines: lines[:-1], "1 of 6 entries are missing at the end"),
        (lambda lines: lines[:1], "5 of 6 entries are missing at the end"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "does not follow"),
        (lambda lines: [*lines, lines[-1]], "does not follow"),
        (lambda lines: [*lines[:3], "", *lines[3:]], "is no entry"),
        (lambda lines: [], "6 of 6 entries are missing"),
    ],
)
def test_removed_moved_and_repeated_entries_show(log: AuditLog, change: Any, says: str) -> None:
    rewritten(log, change)
    found = log.verify()
    assert not found.holds
    assert any(says in problem for problem in found.problems), found.problems


def test_an_edit_with_its_own_new_hash_breaks_the_chain_behind_it(log: AuditLog) -> None:
    def forge(lines: list[str]) -> list[str]:
        from limbeck.audit_log import _digest

        entry = json.loads(lines[1]) | {"cell": "other"}
        entry["hash"] = _digest(entry)
        return [lines[0], json.dumps(entry), *lines[2:]]

    rewritten(log, forge)
    assert any("entry 3 does not follow" in problem for problem in log.verify().problems)


def test_a_log_rewritten_as_a_whole_shows_against_a_hash_kept_elsewhere(log: AuditLog) -> None:
    kept = log.verify().head
    assert log.verify(expected=kept).holds
    for path in (log.path, log.head_path):
        path.unlink()
    log.append("cell finished", cell="invented", seed=0)
    assert log.verify().holds
    assert any("no entry has the hash" in problem for problem in log.verify(expected=kept).problems)


def test_a_missing_or_edited_head_shows(log: AuditLog) -> None:
    log.head_path.write_text("{}")
    assert any("is no head" in problem for problem in log.verify().problems)
    log.head_path.unlink()
    assert any("is missing" in problem for problem in log.verify().problems)


def test_a_result_that_was_changed_afterwards_shows_unless_it_was_logged_again(log: AuditLog) -> None:
    result = log.path.parent / "result.json"
    result.write_text('{"worst": 1.0}')
    assert log.verify().problems == ["result.json was changed after it was logged"]
    assert log.verify(files=False).holds
    log.append("pilot finished", files={"result.json": result})
    assert log.verify().holds
    result.unlink()
    assert log.verify().problems == ["result.json is missing"]


def test_an_unfinished_line_is_known_for_what_it_is_and_the_log_goes_on(log: AuditLog) -> None:
    before = log.path.read_bytes()
    with log.path.open("ab") as stream:
        stream.write(b'{"number": 7, "previous": "')
    found = log.verify()
    assert found.holds
    assert found.notes == ["the last line was never finished (27 bytes): its writer was stopped; it is no entry"]
    entry = log.append("pilot started")
    assert entry["number"] == 7
    assert entry["unfinished_line_before"]["bytes"] == 27
    assert log.path.read_bytes().startswith(before)
    assert log.verify().holds
    with log.path.open("ab") as stream:
        stream.write(b'{"filling": "' + 5000 * b"x")  # more than the entry that takes its place
    log.append("pilot started")
    assert (log.verify().holds, log.verify().notes) == (True, [])
    # The last entry without its end is another matter: the head knows that it was whole.
    log.path.write_bytes(log.path.read_bytes()[:-9])
    assert not log.verify().holds


def test_a_writer_stopped_between_entry_and_head_leaves_a_log_that_holds(log: AuditLog) -> None:
    head = log.head_path.read_bytes()
    log.append("pilot started")
    log.head_path.write_bytes(head)
    assert log.verify().holds
    log.append("pilot started")
    assert log.verify().holds


def write(path: Path, name: str, count: int) -> None:
    log = AuditLog(path)
    for number in range(count):
        log.append("entry", writer=name, count=number, filling="x" * 3000)


def writer(path: Path, name: str, count: int) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=write, args=(path, name, count))
    process.start()
    return process


def test_two_processes_append_to_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for process in [writer(path, name, 15) for name in "ab"]:
        process.join(60)
        assert process.exitcode == 0
    entries = AuditLog(path).entries()
    assert AuditLog(path).verify().holds
    for name in "ab":
        assert [entry["count"] for entry in entries if entry["writer"] == name] == list(range(15))


def test_killed_writers_leave_a_chain_that_holds_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    draw, before = random.Random(1), 0
    for _ in range(5):
        process = writer(path, "killed", 10_000)
        limit = time.monotonic() + 30
        while (not path.exists() or path.read_bytes().count(b"\n") <= before) and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.join()
        found = log.verify()
        assert found.holds, found.problems
        assert found.entries > before
        before = found.entries
    log.append("after")
    assert log.verify().holds


def test_two_writers_stopped_before_the_head_leave_a_chain_that_holds(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("first")
    for _ in range(3):
        entry = log.append("stopped before the head")
        log.head_path.write_text(json.dumps({"number": entry["number"] - 1, "hash": entry["previous"]}))
        assert log.verify().holds
        assert log.verify().problems == []


def test_entries_removed_at_the_end_are_not_hidden_by_the_next_one(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for name in "abc":
        log.append(name)
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:2]))
    assert not log.verify().holds
    log.append("d")
    found = log.verify()
    assert not found.holds
    assert "entries were removed" in found.problems[0]


def test_the_command_line_says_whether_the_chain_holds(log: AuditLog) -> None:
    folder = str(log.path.parent)
    good = CliRunner().invoke(main, ["ledger", "verify", folder, "--expect", log.verify().head])
    assert good.exit_code == 0
    assert "6 entries, the chain holds" in good.output
    rewritten(log, lambda lines: lines[::-1])
    bad = CliRunner().invoke(main, ["ledger", "verify", folder])
    assert bad.exit_code == 1
    assert "DOES NOT HOLD" in bad.output
    plain = json.loads(CliRunner().invoke(main, ["ledger", "verify", folder, "--json"]).output)
    assert plain["holds"] is False
    missing = CliRunner().invoke(main, ["ledger", "verify", folder + "/nowhere"])
    assert missing.exit_code == 2
    assert "there is no audit log here" in missing.output


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with pytest.raises(ConfigError, match="there is no audit log here"):
        AuditLog(path).verify()
    path.write_text("not json\n")
    with pytest.raises(ConfigError, match="line 1: not an entry"):
        AuditLog(path).entries()


def test_a_pilot_logs_its_start_its_cells_and_its_end_and_a_repeat_only_its_start(tmp_path: Path) -> None:
    from limbeck.config import config_from_dict
    from limbeck.pilots import run_pilot

    config = config_from_dict(
        {
            "name": "small",
            "data": {"name": "digits"},
            "teachers": {"big": {"model": {"name": "mlp", "hidden": [16]}}},
            "student": {"name": "mlp", "hidden": [4]},
            "recipes": [{"recipe": "kd", "teacher": "big"}],
            "training": {"epochs": 1},
            "seeds": [3],
        }
    )
    folder = tmp_path / "run"
    run_pilot(config, output=folder)
    log = AuditLog(folder / "audit.jsonl")
    entries = log.entries()
    assert [entry["event"] for entry in entries] == ["pilot started", *["cell finished"] * 3, "pilot finished"]
    start = entries[0]
    assert start["configuration"]["training"]["epochs"] == 1
    assert start["seeds"] == [3]
    assert len(start["data"]["fingerprint"]) == 32
    assert start["arms"]["kd"]["teachers"] == ["teacher-big"]
    assert set(entries[1]["files"]) >= {"cells/teacher-big-seed3.json", "ledger/samples/teacher-big-seed3.parquet"}
    run_pilot(config, output=folder)
    assert [entry["event"] for entry in log.entries()][5:] == ["pilot started", "pilot finished"]
    assert log.verify().holds
    ledger = folder / "ledger" / "samples" / "kd-seed3.parquet"
    ledger.write_bytes(ledger.read_bytes() + b" ")
    assert log.verify().problems == ["ledger/samples/kd-seed3.parquet was changed after it was logged"]
