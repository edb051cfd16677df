"""Downloads: against a local server that interrupts, ignores ranges, changes its mind and lies."""

from __future__ import annotations

import bz2
import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.data import SETS, load
from limbeck.data import download as module
from limbeck.data.catalogue import _ACS_FEATURES
from limbeck.data.download import MADE_OF, SOURCES, RemoteFile, data_folder, download, fetch
from limbeck.errors import DataError

CONTENT = np.random.default_rng(0).integers(0, 256, 1_500_000, dtype=np.uint8).tobytes()
MD5 = f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What the server says and what it was asked."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.ranges = True
        self.cut_after: list[int] = []
        self.status: list[int] = []
        self.length = True
        self.wrong_range = False
        self.asked: list[str | None] = []
        self.url = ""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.asked.append(asked)
            if server.status:
                self.send_error(server.status.pop(0))
                return
            start = 0
            fresh = self.headers.get("If-Range") == server.etag
            if asked and server.ranges and fresh:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(server.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(server.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                begin = start + 7 * server.wrong_range
                self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
            else:
                self.send_response(200)
            if server.etag:
                self.send_header("ETag", server.etag)
            if server.length:
                self.send_header("Content-Length", str(len(server.content) - start))
            self.end_headers()
            body = server.content[start:]
            if server.cut_after:
                body = body[: server.cut_after.pop(0)]
            self.wfile.write(body)
            self.wfile.flush()
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/set.bin"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


def get(server: Server, folder: Path, checksum: str | None = MD5, **options: Any) -> Path:
    file = RemoteFile("sub/set.bin", (server.url,), checksum)
    return fetch(file, folder, **{"pause": 0.0, "timeout": 5.0, "attempts": 2, **options})


def only_the_file(folder: Path, *others: str) -> bool:
    return sorted(path.name for path in (folder / "sub").iterdir()) == sorted(["set.bin", *others])


def test_a_file_arrives_whole_and_is_not_fetched_again(server, tmp_path, capfd):
    path = get(server, tmp_path)
    assert path == tmp_path / "sub" / "set.bin"
    assert path.read_bytes() == CONTENT
    assert only_the_file(tmp_path)
    get(server, tmp_path)
    assert server.asked == [None]
    assert capfd.readouterr() == ("", ""), "quiet where nobody looks"


def test_a_broken_connection_is_continued_where_it_stopped(server, tmp_path):
    server.cut_after = [600_000, 300_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=600000-", "bytes=900000-"]


def test_an_interrupted_download_is_continued_by_the_next_call(server, tmp_path):
    server.cut_after = [400_000, 0, 0]
    with pytest.raises(DataError, match=r"400,000 bytes are kept.*continued next time.*by hand"):
        get(server, tmp_path)
    assert (tmp_path / "sub" / "set.bin.part").stat().st_size == 400_000
    assert not (tmp_path / "sub" / "set.bin").exists()
    server.asked.clear()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=400000-"]
    assert only_the_file(tmp_path)


def test_a_server_that_ignores_ranges_starts_again(server, tmp_path):
    server.cut_after = [400_000]
    server.ranges = False
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=400000-"]


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, tmp_path):
    server.cut_after = [400_000, 0, 0]
    with pytest.raises(DataError):
        get(server, tmp_path, checksum=None)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert get(server, tmp_path, checksum=None).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_validator_nothing_is_continued(server, tmp_path, etag):
    server.etag = etag
    server.cut_after = [400_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_an_answer_for_another_range_is_not_used(server, tmp_path):
    server.cut_after = [400_000]
    server.wrong_range = True
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=400000-", None]


def test_a_part_that_is_already_whole_is_taken(server, tmp_path):
    server.cut_after = [400_000, 0, 0]
    with pytest.raises(DataError):
        get(server, tmp_path)
    (tmp_path / "sub" / "set.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    (tmp_path / "sub" / "set.bin").unlink()
    server.cut_after = [400_000, 0, 0]
    with pytest.raises(DataError):
        get(server, tmp_path)
    (tmp_path / "sub" / "set.bin.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=r"set\.bin from http.* has checksum md5:.*expected md5:.*fetch it again"):
        get(server, tmp_path)
    assert list((tmp_path / "sub").iterdir()) == []


def test_without_a_published_checksum_the_first_one_is_recorded(server, tmp_path):
    path = get(server, tmp_path, checksum=None)
    record = path.with_name("set.bin.sha256")
    assert record.read_text() == f"{SHA256}  set.bin\n"
    assert only_the_file(tmp_path, "set.bin.sha256")
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match=r"set\.bin: is sha256:.*expected sha256:.*changed or damaged"):
        get(server, tmp_path, checksum=None)
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(DataError, match=r"to accept a new edition remove .*set\.bin\.sha256"):
        get(server, tmp_path, checksum=None)
    record.write_text("nonsense")
    with pytest.raises(DataError, match="not a checksum record"):
        get(server, tmp_path, checksum=None)


def test_a_file_changed_on_the_disk_is_not_taken(server, tmp_path):
    get(server, tmp_path).write_bytes(b"changed")
    with pytest.raises(DataError, match="remove it and fetch it again"):
        get(server, tmp_path)


def test_passing_faults_are_tried_again_and_lasting_ones_are_not(server, tmp_path):
    server.status = [503]
    assert get(server, tmp_path).read_bytes() == CONTENT
    (tmp_path / "sub" / "set.bin").unlink()
    server.status, server.asked = [404], []
    with pytest.raises(DataError, match="the server answers 404 Not Found"):
        get(server, tmp_path)
    assert len(server.asked) == 1


def test_the_next_address_is_tried(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/set.bin"
        file = RemoteFile("sub/set.bin", (dead, server.url), MD5)
        assert fetch(file, tmp_path, attempts=1, pause=0).read_bytes() == CONTENT
        file = RemoteFile("sub/other.bin", (dead,), MD5)
        with pytest.raises(DataError, match=rf"other\.bin cannot be fetched: {dead}: .*put the file there by hand"):
            fetch(file, tmp_path, attempts=2, pause=0)


def test_an_answer_without_length_ends_where_it_ends(server, tmp_path):
    server.length = False
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_only_web_addresses_are_opened(tmp_path):
    with pytest.raises(DataError, match="expected an http or https address"):
        fetch(RemoteFile("passwd", ("file:///etc/passwd",)), tmp_path)


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be made.*LIMBECK_DATA"):
        get(server, tmp_path)


def test_a_progress_bar_where_it_is_asked_for(server, tmp_path, capfd):
    get(server, tmp_path, quiet=False)
    assert "set.bin" in capfd.readouterr().err


def test_a_set_by_name(server, tmp_path, monkeypatch):
    files = (RemoteFile("usps/a.bin", (server.url,), MD5), RemoteFile("usps/b.bin", (server.url,)))
    monkeypatch.setattr(module, "SOURCES", {"usps": files})
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    assert download("usps") == [tmp_path / "usps" / "a.bin", tmp_path / "usps" / "b.bin"]
    with pytest.raises(DataError, match=r"unknown data set to download 'adult'.*Others come with Limbeck"):
        download("adult")


def test_the_data_folder_is_the_variable_or_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("LIMBECK_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "limbeck"


def test_sources_are_well_formed():
    assert set(SOURCES) | set(MADE_OF) <= set(SETS)
    for name, files in SOURCES.items():
        assert f"limbeck download {name}" in SETS[name].get
        for file in files:
            assert not Path(file.path).is_absolute()
            assert all(url.startswith(("http://", "https://")) for url in file.urls)
            if file.checksum:
                kind, value = file.checksum.split(":")
                assert len(value) == {"md5": 32, "sha256": 64}[kind]
                int(value, 16)


# -- the official formats, small ones made here ------------------------------------------------------------------


def test_official_archives_are_read(tmp_path):
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        records = {}
        for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
            records[name] = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
            records[name][:, 0] = np.arange(20) % 10
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = records[name].size
            archive.addfile(entry, io.BytesIO(records[name].tobytes()))
    data = load("cifar10", folder=tmp_path)
    assert data.name == "cifar10"
    assert data.sizes["train"] + data.sizes["validation"] == 100
    assert np.array_equal(data.x[20], records["data_batch_2.bin"][0, 1:].reshape(3, 32, 32))
    assert data.test.y.tolist() == (np.arange(20) % 10).tolist()

    (tmp_path / "usps").mkdir()
    lines = [f"{k % 10 + 1} 1:-1 2:1 256:0" for k in range(40)]
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / "usps" / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    usps = load("usps", folder=tmp_path)
    assert usps.y[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert usps.x[0, 0, 0, :3].tolist() == [0, 255, 128]
    assert usps.x[0, 0, 15, 15] == 128

    with zipfile.ZipFile(tmp_path / "gas_sensor_array_drift.zip", "w") as archive:
        for k in (10, 1, 2):
            rows = [f"{i % 6 + 1} " + " ".join(f"{j}:{i + j / 10 + k}" for j in range(1, 129)) for i in range(30)]
            archive.writestr(f"Dataset/batch{k}.dat", "\n".join(rows))
    gas = load("gas-drift", folder=tmp_path)
    assert gas.attributes["batch"].values == ("1", "2", "10")
    assert set(gas.test.attributes["batch"].strings()) == {"10"}
    assert gas.classes == ("Acetaldehyde", "Acetone", "Ammonia", "Ethanol", "Ethylene", "Toluene")
    assert gas.classes[gas.y[0]] == "Ethanol"


def test_photographs_of_bar_from_its_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "bar.zip", "w") as archive:
        archive.writestr("BAR-master/README.md", "text")
        for part, count in [("train", 8), ("test", 3)]:
            for action in ("climbing", "pole vaulting"):
                for k in range(count):
                    buffer = io.BytesIO()
                    Image.new("RGB", (30 + k, 20), (10 * k, 0, 0)).save(buffer, "JPEG")
                    archive.writestr(f"BAR-master/{part}/{action}_{k}.jpg", buffer.getvalue())
    data = load("bar", folder=tmp_path, size=16)
    assert data.sample_shape == (3, 16, 16)
    assert data.classes == ("climbing", "pole vaulting")
    assert data.sizes == {"train": 12, "validation": 4, "test": 6}
    assert data.test.attributes["aligned"].strings().tolist() == ["no"] * 6
    with pytest.raises(DataError, match=r"bar\.zip is here: give size=64"):
        load("bar", folder=tmp_path)


def test_census_files_give_employment_without_predictions(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "acs").mkdir()
    for year in (2015, 2016, 2017):
        rows = ["SERIALNO," + ",".join(_ACS_FEATURES) + ",ESR"]
        for i in range(60):
            values = {name: rng.integers(1, 3) for name in _ACS_FEATURES} | {"AGEP": rng.integers(0, 90)}
            shown = {k: "" if k in ("SCHL", "ESP") and i % 7 == 0 else v for k, v in values.items()}
            rows.append(f"{year}HU{i}," + ",".join(str(shown[k]) for k in _ACS_FEATURES) + f",{['', 1, 6][i % 3]}")
        with zipfile.ZipFile(tmp_path / "acs" / f"{year}_csv_pma.zip", "w") as archive:
            archive.writestr("ACS_PUMS_README.pdf", "text")
            archive.writestr("psam_p25.csv" if year == 2017 else f"ss{year - 2000}pma.csv", "\n".join(rows))
    data = load("acs-employment", folder=tmp_path, train_years=[2015, 2016], test_years=[2017])
    assert len(data) == 180
    assert data.columns == {}
    assert data.y.mean() == pytest.approx(1 / 3)
    assert set(data.test.attributes["year"].strings()) == {"2017"}
