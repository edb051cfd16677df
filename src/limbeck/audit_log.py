"""Who ran what: a log in which an entry cannot be edited, removed or moved without showing.

One JSON object a line, appended under a file lock and flushed to the disk. Each entry holds the SHA-256 of the one
before it and of itself, so that the whole is a chain; beside the log, `NAME.head` holds the last entry's number and
hash, so that entries missing at the end show as well. What an entry says of files is their SHA-256, so that a changed
result shows too.

What the chain cannot show is a log that was rewritten as a whole, head included. Keep the head's hash elsewhere (it is
what `verify` prints) and hand it to `verify` as `expected`.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck import __version__
from limbeck.checkpoint import write_atomically
from limbeck.errors import ConfigError

BEGINNING = "0" * 64
"""What the first entry names as the hash before it."""
PACKAGES = ("torch", "numpy", "scikit-learn", "pyarrow")


@dataclass(frozen=True)
class Verification:
    """What a look at a log found.

    Args:
        entries: how many whole entries there are.
        head: the hash of the last one.
        problems: what is wrong, in words; empty for a chain that holds.
        notes: what is not as it should be and no sign of tampering, such as a last line that was never finished.
    """

    entries: int
    head: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class AuditLog:
    """A log that is only ever appended to.

    Args:
        path: of the log, `audit.jsonl` in a run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def head_path(self) -> Path:
        """Where number and hash of the last entry are kept."""
        return self.path.with_name(self.path.name + ".head")

    def append(self, event: str, *, files: Mapping[str, Path] | None = None, **content: Any) -> dict[str, Any]:
        """Add an entry: the time (UTC), user and machine, versions, `event`, `content` and the digests of `files`.

        An unfinished last line, left by a process that was killed while writing, is closed and named in the new entry.

        Args:
            event: what happened.
            files: files to hold to what they are now, by their path relative to the log's folder.
            content: plain data.

        Returns:
            The entry as it was written.
        """
        said: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": {"user": _user(), "machine": platform.node()},
            "event": event,
            **content,
            "versions": versions(),
        }
        if files:
            said["files"] = {name: sha256(path) for name, path in files.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_name(self.path.name + ".lock")):
            lines, torn = _lines(self.path)
            entry: dict[str, Any] = {
                "number": len(lines) + 1,
                "previous": _hash_of(lines[-1]) if lines else BEGINNING,
                **said,
            }
            if torn:
                entry["unfinished_line_before"] = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            entry |= self._catch_up(lines)
            entry = json.loads(json.dumps(entry, default=str))
            entry["hash"] = _digest(entry)
            with self.path.open("r+b" if self.path.exists() else "w+b") as stream:
                stream.seek(sum(len(line) + 1 for line in lines))
                stream.truncate()
                stream.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            self._write_head(entry["number"], entry["hash"])
        return entry

    def _write_head(self, number: int, value: str) -> None:
        write_atomically(self.head_path, (json.dumps({"number": number, "hash": value}) + "\n").encode())

    def _catch_up(self, lines: Sequence[bytes]) -> dict[str, Any]:
        """Bring the head to the last entry, whose writer may have been stopped before it did; so it never lags by two.

        A head that is not of this log stays on record in the entry that replaces it: entries are missing.
        """
        hashes = [_hash_of(line) for line in lines[-2:]]
        try:
            head = json.loads(self.head_path.read_text(encoding="utf-8"))
            behind = len(lines) - int(head["number"])
            known = behind in (0, 1) and (len(hashes) > behind and hashes[-1 - behind] == head["hash"])
        except FileNotFoundError:
            head, behind, known = None, len(lines), len(lines) <= 1
        except (ValueError, KeyError, TypeError):
            head, behind, known = "unreadable", 0, False
        if not known:
            return {"head_before": head}
        if behind:
            self._write_head(len(lines), hashes[-1])
        return {}

    def entries(self) -> list[dict[str, Any]]:
        """All whole entries, in order.

        Raises:
            ConfigError: where a line is no entry.
        """
        found = []
        for number, line in enumerate(_lines(self.path)[0], 1):
            entry = _parsed(line)
            if entry is None:
                raise ConfigError(f"{self.path}, line {number}: not an entry of an audit log")
            found.append(entry)
        return found

    def verify(self, *, expected: str | None = None, files: bool = True) -> Verification:
        """Look whether the chain holds, and whether the files are still what they were when they were logged.

        Args:
            expected: the hash of an entry that must be in the log, kept elsewhere at the time.
            files: whether to read the files that the entries name; of a file named twice the later entry counts.

        Raises:
            ConfigError: where there is no log.
        """
        if not self.path.is_file():
            raise ConfigError(f"{self.path}: there is no audit log here")
        lines, torn = _lines(self.path)
        problems: list[str] = []
        notes: list[str] = []
        previous, hashes = BEGINNING, set[str]()
        named: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            entry = _parsed(line)
            if entry is None:
                problems.append(f"line {number} is no entry: it was edited")
                previous = ""
                continue
            if _digest(entry) != entry.get("hash"):
                problems.append(f"entry {number} was edited: its content does not have its hash")
            if "head_before" in entry:
                problems.append(f"entry {number} was written where the head named another end: entries were removed")
            if entry.get("number") != number or (previous and entry.get("previous") != previous):
                problems.append(
                    f"entry {number} does not follow the one before it: entries were removed, added or moved"
                )
            previous = str(entry.get("hash"))
            hashes.add(previous)
            named |= entry.get("files") or {}
        problems += self._against_head(len(lines), hashes, torn)
        if torn and not problems:
            notes.append(
                f"the last line was never finished ({len(torn)} bytes): its writer was stopped; it is no entry"
            )
        if expected is not None and expected not in hashes:
            problems.append(f"no entry has the hash {expected}: the log is not the one that this hash was taken from")
        if files:
            problems += self._changed(named)
        return Verification(len(lines), previous, problems, notes)

    def _against_head(self, count: int, hashes: set[str], torn: bytes) -> list[str]:
        try:
            head = json.loads(self.head_path.read_text(encoding="utf-8"))
            number, value = int(head["number"]), str(head["hash"])
        except FileNotFoundError:
            # A first entry whose writer was stopped before the head was written.
            return [] if count <= 1 else [f"{self.head_path.name} is missing: entries may be missing at the end"]
        except (ValueError, KeyError, TypeError):
            return [f"{self.head_path.name} was edited: it is no head of a log"]
        if number > count:
            return [f"{number - count} of {number} entries are missing at the end"]
        # The head is written after the entry: it may be one behind where the writer was stopped between the two.
        if value not in hashes or number < count - 1:
            return [f"{self.head_path.name} names entry {number}, which the log does not hold as it was"]
        return []

    def _changed(self, named: Mapping[str, str]) -> list[str]:
        found = []
        for name, digest in named.items():
            path = self.path.parent / name
            if not path.is_file():
                found.append(f"{name} is missing")
            elif sha256(path) != digest:
                found.append(f"{name} was changed after it was logged")
        return found


def versions() -> dict[str, str]:
    """The versions of what results depend on."""
    return {
        "limbeck": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def _digest(entry: Mapping[str, Any]) -> str:
    content = {key: value for key, value in entry.items() if key != "hash"}
    plain = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def _lines(path: Path) -> tuple[list[bytes], bytes]:
    """The finished lines, and what follows the last line end."""
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], b""
    return lines, rest


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _hash_of(line: bytes) -> str:
    # A damaged entry is not repaired by what comes after it: its own text stands in for the hash it has not.
    entry = _parsed(line)
    return str(entry["hash"]) if entry is not None and "hash" in entry else hashlib.sha256(line).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file while inside; it is released with the process, also by kill -9."""
    with path.open("a+b") as stream:
        _lock(stream.fileno())
        try:
            yield
        finally:
            _unlock(stream.fileno())


if os.name == "nt":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]

    def _unlock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX)

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


def logged(entries: Sequence[Mapping[str, Any]], event: str, **content: Any) -> bool:
    """Whether an entry of this event with this content is in it."""
    return any(
        entry.get("event") == event and all(entry.get(name) == value for name, value in content.items())
        for entry in entries
    )
