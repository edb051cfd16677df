"""Known data sets from their official sources: checked, resumable, written whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlparse

from limbeck.errors import DataError, unknown_name

_BLOCK = 1 << 18
_MOST_TRIES = 1_000
_BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
#: Called with (bytes so far, bytes in all or None).
Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch.

    Attributes:
        path: where it goes, relative to the data folder.
        urls: official addresses, tried in order.
        checksum: "md5:…" or "sha256:…" as the publisher states it; None where none is known for certain. Then the
            SHA-256 of the first download is written beside the file and later copies are compared with it.
    """

    path: str
    urls: tuple[str, ...]
    checksum: str | None = None


def _idx(folder: str, bases: Sequence[str], sums: Mapping[str, str]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(f"{folder}/{name}", tuple(base + name for base in bases), f"md5:{value}")
        for name, value in sums.items()
    )


_CIFAR10 = RemoteFile(
    "cifar-10-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    "md5:c32a1d4ab5d03f1284b67883e8d87530",
)

#: What `download` can fetch, by data set.
SOURCES: Mapping[str, tuple[RemoteFile, ...]] = MappingProxyType(
    {
        "mnist": _idx(
            "mnist",
            ["https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"],
            {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
        "fashion-mnist": _idx(
            "fashion-mnist",
            [
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ],
            {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
        "cifar10": (_CIFAR10,),
        # The commit in the address stands for the content.
        "cifar10n": (
            RemoteFile(
                "cifar10n/CIFAR-10_human.npy",
                (
                    "https://raw.githubusercontent.com/UCSC-REAL/cifar-10-100n/"
                    "efd855a266504469bb065f6140cced96f2d7d7d1/data/CIFAR-10_human.npy",
                ),
            ),
            _CIFAR10,
        ),
        # Its authors publish it by hand only; this copy is the one that Flower's federated data sets use.
        "pacs": (
            RemoteFile(
                "pacs/pacs.parquet",
                ("https://huggingface.co/datasets/flwrlabs/pacs/resolve/main/data/train-00000-of-00001.parquet",),
            ),
        ),
        "usps": (
            RemoteFile(
                "usps/usps.bz2",
                ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.bz2",),
                "md5:ec16c51db3855ca6c91edd34d0e9b197",
            ),
            RemoteFile(
                "usps/usps.t.bz2",
                ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.t.bz2",),
                "md5:8ea070ee2aca1ac39742fdd1ef5ed118",
            ),
        ),
        "bar": (RemoteFile("bar.zip", ("https://github.com/alinlab/BAR/archive/refs/heads/master.zip",)),),
        "gas-drift": (
            RemoteFile(
                "gas_sensor_array_drift.zip",
                ("https://archive.ics.uci.edu/static/public/224/gas+sensor+array+drift+dataset.zip",),
            ),
        ),
        "acs-employment": tuple(
            RemoteFile(
                f"acs/{year}_csv_pma.zip",
                (f"https://www2.census.gov/programs-surveys/acs/data/pums/{year}/1-Year/csv_pma.zip",),
            )
            for year in (2015, 2016, 2017)
        ),
    }
)
#: Data sets made of another one's files.
MADE_OF: Mapping[str, str] = MappingProxyType({"coloured-mnist": "mnist"})


def cache_folder() -> Path:
    """Where downloads go unless LIMBECK_DATA says otherwise: `limbeck` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"


def data_folder() -> Path:
    """LIMBECK_DATA, or the user's cache."""
    folder = os.environ.get("LIMBECK_DATA")
    return Path(folder).expanduser() if folder else cache_folder()


def download(name: str, folder: str | Path | None = None, *, quiet: bool | None = None) -> list[Path]:
    """Fetch a data set from its official source; what is there already and right is left alone.

    Args:
        name: of the data set.
        folder: where to; LIMBECK_DATA or the user's cache where not given.
        quiet: no progress bar; by default there is one only where the standard error stream is a terminal.

    Returns:
        The files.

    Raises:
        DataError: a set without an official source to fetch from, no connection, a wrong checksum, a full disk.
    """
    source = MADE_OF.get(name, name)
    if source not in SOURCES:
        raise DataError(f"{unknown_name('data set to download', name, [*SOURCES, *MADE_OF])}. Others come with Limbeck")
    target = data_folder() if folder is None else Path(folder)
    return [fetch(file, target, quiet=quiet) for file in SOURCES[source]]


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    quiet: bool | None = None,
    attempts: int = 3,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Fetch one file: into `<path>.part`, continued where an earlier try stopped, checked, then renamed.

    Args:
        file: what and from where.
        folder: the data folder.
        quiet: no progress bar; by default one where the standard error stream is a terminal.
        attempts: tries at each address; a try that got further does not count.
        pause: seconds before the next try.
        timeout: seconds without an answer.

    Raises:
        DataError: no address works, or the checksum is wrong (the file is removed then).
    """
    path = folder / file.path
    expected = file.checksum or _recorded(path)
    if path.is_file():
        found = expected and _checksum(path, expected.partition(":")[0])
        if expected is None or found == expected:
            return path
        raise DataError(
            f"{path}: is {found}, expected {expected}: it was changed or damaged; remove it and fetch it again"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path.parent}: cannot be made ({error}): set LIMBECK_DATA to a folder that can be written"
        ) from error
    part = path.with_name(path.name + ".part")
    failures = []
    for url in file.urls:
        if urlparse(url).scheme not in ("http", "https"):
            raise DataError(f"{url}: expected an http or https address")
        failure = _fetch_from(url, part, path.name, quiet, attempts, pause, timeout)
        if failure is None:
            return _accept(part, path, url, expected)
        failures.append(f"{url}: {failure}")
    kept = f"; {part.stat().st_size:,} bytes are kept in {part} and continued next time" if part.is_file() else ""
    raise DataError(
        f"{path.name} cannot be fetched: {'; '.join(failures)}{kept}. Or put the file there by hand: {path}"
    )


def _fetch_from(
    url: str, part: Path, name: str, quiet: bool | None, attempts: int, pause: float, timeout: float
) -> str | None:
    """Fetch from one address; the reason where it fails."""
    left, reason = attempts, "no try was made"
    with _Bar(name, quiet) as report:
        for _ in range(_MOST_TRIES):
            before = part.stat().st_size if part.is_file() else 0
            try:
                if _receive(url, part, report, timeout):
                    return None
                reason = "the connection closed before the end"
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    return reason
            except _BROKEN as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except OSError as error:
                return f"{part} cannot be written ({error})"
            after = part.stat().st_size if part.is_file() else 0
            left -= after <= before
            if left <= 0:
                break
            time.sleep(pause)
    return reason


def _receive(url: str, part: Path, report: Report, timeout: float) -> bool:
    """Receive what is missing of a file. True where it is now complete."""
    note = part.with_name(part.name + ".json")
    start, validator = _resumable(part, note, url)
    headers = {"User-Agent": "limbeck", "Accept-Encoding": "identity"}
    if start:
        # If-Range: a file that has changed meanwhile is sent whole, not continued with other bytes.
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # Nothing is left to send: either all is here, or the part is not of this file.
        if error.headers.get("Content-Range", "") == f"bytes */{start}":
            return True
        part.unlink()
        return False
    with response:
        begins, total = _span(response)
        if response.status != 206 or begins != start:
            start = 0
        if response.status == 206 and begins != start:
            part.unlink(missing_ok=True)
            return False
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        note.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        done = start
        with part.open("r+b" if start else "wb") as out:
            out.seek(start)
            while block := response.read(_BLOCK):
                out.write(block)
                done += len(block)
                report(done, total)
            out.flush()
            os.fsync(out.fileno())
    return total is None or done == total


def _resumable(part: Path, note: Path, url: str) -> tuple[int, str]:
    """How much of this very file is here, and what tells whether the server still has the same one."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        start = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    validator = known.get("validator") if isinstance(known, dict) and known.get("url") == url else None
    # A weak validator cannot vouch for bytes (RFC 9110, section 13.1.5).
    if not isinstance(validator, str) or not validator or validator.startswith("W/"):
        return 0, ""
    return start, validator


def _span(response: Any) -> tuple[int, int | None]:
    """Where an answer begins in the file, and the size of the whole file if stated."""
    stated = response.headers.get("Content-Range", "")
    if response.status == 206 and stated.startswith("bytes ") and "-" in stated:
        first, _, rest = stated[6:].partition("-")
        total = rest.partition("/")[2]
        return (int(first) if first.isdigit() else -1), (int(total) if total.isdigit() else None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _accept(part: Path, path: Path, url: str, expected: str | None) -> Path:
    found = _checksum(part, "sha256" if expected is None else expected.partition(":")[0])
    note = part.with_name(part.name + ".json")
    if expected is not None and found != expected:
        part.unlink()
        note.unlink(missing_ok=True)
        record = _record(path)
        accept = (
            f"; to accept a new edition remove {record}, which is of the first download" if record.is_file() else ""
        )
        raise DataError(
            f"{path.name} from {url} has checksum {found}, expected {expected}: the file was altered, damaged on "
            f"the way or published anew. It is removed: fetch it again{accept}"
        )
    if expected is None:
        # Written before the rename, so that a file under its name always has its record.
        _record(path).write_text(f"{found.partition(':')[2]}  {path.name}\n", encoding="utf-8")
    os.replace(part, path)
    note.unlink(missing_ok=True)
    return path


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded(path: Path) -> str | None:
    """The checksum of the first download, where the publisher states none."""
    record = _record(path)
    if not record.is_file():
        return None
    value = record.read_text(encoding="utf-8").split()
    if not value or len(value[0]) != 64:
        raise DataError(f"{record}: is not a checksum record: remove it together with {path.name} and fetch again")
    return f"sha256:{value[0]}"


def _checksum(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


class _Bar:
    """A progress bar where somebody is looking, nothing elsewhere."""

    def __init__(self, name: str, quiet: bool | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        self._shown = console.is_terminal if quiet is None else not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(name, total=None)

    def __enter__(self) -> Report:
        if self._shown:
            self._progress.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def _update(self, done: int, total: int | None) -> None:
        if self._shown:
            self._progress.update(self._task, completed=done, total=total)
