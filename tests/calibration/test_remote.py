"""Sources behind URLs: every kind of them from memory:// as from a folder, file://, and what goes wrong on the way."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from onnx_cbq.calibration import CalibrationSet
from onnx_cbq.calibration.opening import kind_of
from onnx_cbq.calibration.places import LocalPlace, is_url, located
from onnx_cbq.calibration.remote import RemotePlace, place_of
from onnx_cbq.calibration.sources import Source
from onnx_cbq.errors import CalibrationError, ConfigError
from onnx_cbq.system import extras
from tests.calibration.packing import PETS, image, opened, pack, values
from tests.calibration.test_archives import NUMBERS

fsspec = pytest.importorskip("fsspec", reason="needs the extra 'remote'")


@pytest.fixture
def bucket() -> Iterator[Any]:
    """An empty file system in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every kind of source."""
    for name, content in PETS.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    for ending in (".zip", ".tar", ".tar.gz"):
        pack(tmp_path / f"pets{ending}", PETS)
    for i in range(2):
        pack(tmp_path / f"s-{i}.tar", NUMBERS)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.csv").write_text("path,label\n../pets/dog/1.png,1\n../pets/cat/a.png,0\n")
    x = np.arange(24).reshape(6, 4)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(6) % 2)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6) % 2)
    return tmp_path


KINDS = ("pets", "pets.zip", "pets.tar", "pets.tar.gz", "s-*.tar", "s-{0..1}.tar", "lists/l.csv", "x.npy", "a.npz")


def upload(folder: Path, system: Any) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/bucket/{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_every_source_is_the_same_behind_a_url(folder: Path, bucket: Any, protocol: str, name: str) -> None:
    settings: dict[str, Any] = {"labels": "y.npy"} if name == "x.npy" else {}
    upload(folder, bucket)
    url = f"memory://bucket/{name}" if protocol == "memory" else f"file://{folder}/{name}"
    local, remote = opened(folder / name, **settings), opened(url, **settings)
    assert remote.class_names == local.class_names
    np.testing.assert_array_equal(remote.labels, local.labels)
    everything = range(len(local.labels))
    np.testing.assert_array_equal(remote.read("x", everything), local.read("x", everything))
    assert len(everything) >= 2


def test_parquet_behind_a_url(tmp_path: Path, bucket: Any) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [image(3), image(4)], "label": [1, 0]}), tmp_path / "a.parquet")
    upload(tmp_path, bucket)
    found = opened("memory://bucket/a.parquet")
    assert (values(found), found.labels.tolist()) == ([3, 4], [1, 0])


def test_card_and_argument_take_urls(folder: Path, bucket: Any) -> None:
    upload(folder, bucket)
    (folder / "card.toml").write_text('source = "memory://bucket/pets.zip"')
    assert values(CalibrationSet.from_card(folder / "card.toml").source) == [1, 2, 3]
    assert values(CalibrationSet.from_card(folder / "card.toml", "memory://bucket/s-0.tar").source) == [1, 2]
    assert values(CalibrationSet.from_card(folder / "card.toml", str(folder / "pets.tar")).source) == [1, 2, 3]


def test_lists_name_urls(folder: Path, bucket: Any) -> None:
    upload(folder, bucket)
    (folder / "l.csv").write_text("path,label\nmemory://bucket/pets/dog/1.png,1\npets/cat/a.png,0\n")
    assert values(opened(folder / "l.csv")) == [3, 1]


def test_samples_that_are_read_at_once_do_not_share_a_position(bucket: Any) -> None:
    """memory:// gives everyone the same stream."""
    bucket.pipe_file("/bucket/a/0.png", image(7, 300))
    assert (opened("memory://bucket").read("x", [0] * 64) == 7).all()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://bucket/none.zip", "memory:///bucket/none.zip: no such file or folder of samples; set source"),
        ("memory://bucket/n-*.zip", r"memory:///bucket/n-\*\.zip: no such file or folder of samples"),
        ("nonsense://a/b.zip", "nonsense://a/b.zip: cannot be read: .*[Pp]rotocol"),
        ("memory://bucket/pets/dog/1.png", "1.png: one file is no data set"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, bucket: Any, url: str, expected: str) -> None:
    upload(folder, bucket)
    with pytest.raises(CalibrationError, match=expected) as caught:
        opened(url)
    assert "\n" not in str(caught.value)


def test_whatever_a_library_raises_is_one_line(folder: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(folder, bucket)
    source = opened("memory://bucket/pets")

    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("the network\nis down")

    monkeypatch.setattr(type(bucket), "cat_file", broken)
    with pytest.raises(CalibrationError, match=r"pets/cat/a\.png: cannot be read as an image \(the network is down\)"):
        source.read("x", [0])
    with pytest.raises(CalibrationError, match=r"bucket/pets\.zip: cannot be read: the network is down"):
        opened("memory://bucket/pets.zip")


def test_local_urls_are_plain_paths(folder: Path) -> None:
    """So that no pipe is waited for."""
    assert place_of(f"file://{folder}/pets") == LocalPlace(folder / "pets")


@pytest.mark.parametrize(
    ("text", "url"),
    [("s3://b/k", True), ("simplecache::https://h/k", True), ("C:/data", False), ("a/b://c", False), ("x.npz", False)],
)
def test_urls_are_told_from_paths(text: str, url: bool) -> None:
    assert is_url(text) == url
    assert isinstance(located(text), str) == url


def test_missing_library_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(ConfigError, match=r"s3://b/k: needs fsspec, .* pip install 'onnx-cbq\[remote\]'"):
        place_of("s3://b/k")


class Whole(SimpleHTTPRequestHandler):
    """A server that gives no parts of files."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Parts(Whole):
    """A server that gives what it is asked for, and notes how much first: its threads run beside the reader."""

    given: ClassVar[list[int]] = []

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        wanted = self.headers.get("Range")
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        part = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if with_content:
            self.given.append(len(part))
            self.wfile.write(part)


@pytest.fixture(params=[Whole, Parts])
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="fsspec needs aiohttp for https://")
    handler = functools.partial(request.param, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "s-{0..1}.tar", "lists/l.csv", "a.npz", "a.npz?download=1"])
def test_sources_on_the_web_are_the_same(folder: Path, server: str, name: str) -> None:
    local, remote = opened(folder / name.partition("?")[0]), opened(f"{server}/{name}")
    everything = range(len(local.labels))
    np.testing.assert_array_equal(remote.labels, local.labels)
    np.testing.assert_array_equal(remote.read("x", everything), local.read("x", everything))


@pytest.mark.parametrize("server", [Parts], indirect=True)
def test_only_the_parts_of_an_archive_that_are_read_are_fetched(folder: Path, server: str) -> None:
    noise = np.random.default_rng(0).bytes(1 << 20)
    pack(folder / "large.zip", {f"{i % 2}/{i:02}.png": image(i) + noise for i in range(20)})
    Parts.given.clear()
    assert values_of(opened(f"{server}/large.zip"), [3, 11]) == [6, 3]
    assert 2 << 20 < sum(Parts.given) < 6 << 20


def values_of(source: Source, indices: list[int]) -> list[int]:
    return [int(sample.ravel()[0]) for sample in source.read("x", indices)]


def test_remote_names_do_not_lead_out_of_their_system() -> None:
    place = place_of("memory://bucket/lists").joined("/etc/passwd")
    assert isinstance(place, RemotePlace)
    assert isinstance(place.joined("../../../etc/passwd"), RemotePlace)


def test_shards_of_the_web_keep_what_allows_to_read_them() -> None:
    """Without the token another file is read, or none."""
    place = place_of("https://host/d/{0..1}.tar?token=a%2Fb")
    assert place.name == "{0..1}.tar"
    assert isinstance(found := place.sibling("1.tar"), RemotePlace)
    assert found.path == "https://host/d/1.tar?token=a%2Fb"


def test_a_far_place_is_asked_once_what_it_is() -> None:
    """Each kind of source asked again, which is a request for each of thousands of shards."""
    asked: list[str] = []

    class Counting:
        protocol = "memory"
        unstrip_protocol = staticmethod("memory:/{}".format)

        def isdir(self, path: str) -> bool:
            asked.append(path)
            return False

    assert kind_of(RemotePlace(Counting(), "/bucket/a.parquet")).endings == (".parquet",)
    assert asked == ["/bucket/a.parquet"]
