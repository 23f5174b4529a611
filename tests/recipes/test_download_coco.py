"""
Fetching COCO, tried against a small server on this machine that behaves as badly as the network does.

    pytest tests/recipes/test_download_coco.py

Unusual: the archives have the official names and other bytes, so the table of sizes and checksums is theirs. Where the script runs
as a process of its own, it is a copy whose table has been rewritten, and nothing else.
"""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from datasets_scripts import load_rows


SCRIPT = Path(__file__).parents[2] / "recipes" / "download_coco.py"
PICTURES, ANNOTATIONS = "zips/val2017.zip", "annotations/annotations_trainval2017.zip"
JSON = [
    f"{kind}_{split}2017.json" for kind in ("captions", "instances", "person_keypoints") for split in ("train", "val")
]
NEXT = "accelerate launch recipes/caption.py --config recipes/ossight/s0_coco.yaml"


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def pictures(split: str) -> dict[str, bytes]:
    folder = {f"{split}/": b""}  # as in the official archives
    return folder | {f"{split}/{i:012}.jpg": jpeg(colour) for i, colour in enumerate(("red", "green", "blue"))}


def annotations() -> dict[str, bytes]:
    images = [{"id": i, "file_name": f"{i:012}.jpg"} for i in range(3)]
    content = {
        "captions": {"annotations": [{"id": i, "image_id": i, "caption": f"Picture {i}."} for i in range(3)]},
        "instances": {"annotations": [], "categories": []},
        "person_keypoints": {"annotations": [], "categories": []},
    }
    return {
        f"annotations/{name}": json.dumps({"images": images} | content[name.rsplit("_", 1)[0]]).encode()
        for name in JSON
    }


class Server:
    """
    Serves `files` as Amazon S3 does: ETag, Range and If-Range. `upsets` maps a path to what happens to its next requests, one each:
    ("drop", n) closes the connection after n bytes, ("hang", n) falls silent after them, ("skip", n) begins n bytes late, and a
    number is an HTTP status.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.upsets: dict[str, list] = {}
        self.log: list[SimpleNamespace] = []
        self.ranges, self.etags, self.dates = True, True, False
        self.go_on = Event()

    def paths(self) -> list[str]:
        return [request.path for request in self.log]

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"world": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    world: Server

    def log_message(self, *_): ...

    def do_GET(self):
        world, path = self.world, self.path[1:]
        request = SimpleNamespace(path=path, range=self.headers["Range"], if_range=self.headers["If-Range"], status=0)
        world.log.append(request)
        upset = world.upsets[path].pop(0) if world.upsets.get(path) else None
        if isinstance(upset, int) or path not in world.files:
            request.status = upset or 404
            return self.send_error(request.status)
        content, digest = world.files[path], hashlib.md5(world.files[path]).hexdigest()
        names = {}
        if world.etags:
            names["ETag"] = f'"{digest}-2"' if world.etags is True else f'W/"{digest}"'
        if world.dates:
            names["Last-Modified"] = "Tue, 10 Jul 2018 16:29:23 GMT"
        start = int(re.fullmatch(r"bytes=(\d+)-", request.range)[1]) if request.range and world.ranges else 0
        if request.if_range not in names.values():
            start = 0
        how, count = upset or ("whole", len(content))
        if how == "skip":
            start, count = start + count, len(content)
        if start >= len(content):
            request.status = 416
            return self.send_error(416)
        request.status = 206 if start else 200
        self.send_response(request.status)
        for name, value in names.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        try:
            self.wfile.write(content[start : start + count])
            if how == "hang":
                world.go_on.wait(30)
        except OSError:  # the client was killed
            pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        for split in ("val2017", "train2017"):
            server.files[f"zips/{split}.zip"] = zipped(pictures(split))
        server.files[ANNOTATIONS] = zipped(annotations(), zipfile.ZIP_DEFLATED)
        yield server


def table(files: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    return {name: (len(content), hashlib.md5(content).hexdigest()) for name, content in files.items()}


@pytest.fixture
def recipe(server, monkeypatch) -> ModuleType:
    """The recipe with the server's files in its table; it does not really wait, and notes for how long it would have."""
    spec = importlib.util.spec_from_file_location("download_coco", SCRIPT)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(recipe, "ARCHIVES", table(server.files))
    recipe.waits = []
    monkeypatch.setattr(recipe.time, "sleep", recipe.waits.append)
    return recipe


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def run(recipe, server, root, monkeypatch):
    def run(*options: str, split: str = "val2017") -> None:
        arguments = ["--root", str(root), "--base_url", server.url, "--split", *split.split(), *options]
        monkeypatch.setattr(sys, "argv", ["recipes/download_coco.py", *arguments])
        recipe.main()

    return run


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def members(*worlds: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for world in worlds for name, content in world.items() if not name.endswith("/")}


WHOLE = members(pictures("val2017"), annotations())


def test_what_lies_there_afterwards_is_coco_to_our_builder_and_nothing_else(run, root, tmp_path, capsys):
    run()
    assert files(root) == WHOLE
    rows = load_rows("pictures", "validation", data_dir=str(root), rows="image", cache_dir=str(tmp_path / "cache"))
    assert rows["references"] == [[f"Picture {i}."] for i in range(3)]
    assert f"{root}/val2017/ (3 pictures)" in capsys.readouterr().out


def test_the_last_line_is_the_command_to_train_with(run, root, capsys, monkeypatch):
    run()
    assert capsys.readouterr().out.splitlines()[-1].strip() == f"{NEXT} --data_dir {root}"
    monkeypatch.chdir(root.parent)
    run("--root", "./data")  # the later --root wins
    assert capsys.readouterr().out.splitlines()[-1].strip() == NEXT


def test_run_again_it_does_nothing_says_so_and_asks_nobody(run, server, root, recipe, capsys, monkeypatch):
    run()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    server.log.clear()
    monkeypatch.setattr(recipe.urllib.request, "urlopen", None)
    run()
    assert "Everything was there already: nothing fetched." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before and server.log == []


def test_splits_of_a_year_share_its_annotations(run, server, root):
    run(split="val2017 train2017")
    assert sorted(server.paths()) == [ANNOTATIONS, "zips/train2017.zip", PICTURES]
    assert files(root) == members(pictures("val2017"), pictures("train2017"), annotations())


def test_a_split_asked_for_later_needs_only_its_pictures(run, server, root):
    run()
    server.log.clear()
    run(split="train2017")
    assert server.paths() == ["zips/train2017.zip"]


def test_archives_are_kept_where_that_is_asked_for_and_not_fetched_again(run, server, root):
    run("--keep_archives")
    assert files(root) == WHOLE | {Path(name).name: server.files[name] for name in (PICTURES, ANNOTATIONS)}
    shutil.rmtree(root / "val2017")
    server.log.clear()
    run()
    assert server.log == [] and (root / "val2017").is_dir() and not (root / "val2017.zip").exists()


def test_what_is_there_already_is_never_written_over(run, root):
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()  # an empty folder is no pictures
    (root / "annotations" / "captions_val2017.json").write_text("mine")
    run()
    assert files(root) == WHOLE | {"annotations/captions_val2017.json": b"mine"}


def test_a_connection_that_drops_is_taken_up_where_it_broke(run, server, root, recipe):
    server.upsets[PICTURES] = [("drop", 300), ("drop", 0), ("drop", 200), ("drop", 1)]
    run()
    asked = [request for request in server.log if request.path == PICTURES]
    assert [request.range for request in asked] == [None, *(f"bytes={n}-" for n in (300, 300, 500, 501))]
    assert [request.status for request in asked] == [200, 206, 206, 206, 206]
    assert recipe.waits == [1, 2, 1, 1]  # who gets on is not made to wait
    assert files(root) == WHOLE


def test_a_server_that_takes_nothing_up_is_asked_for_the_whole_anew(run, server, root):
    server.ranges = False
    server.upsets[PICTURES] = [("drop", 300), ("drop", 200)]
    run()
    assert [request.status for request in server.log if request.path == PICTURES] == [200, 200, 200]
    assert files(root) == WHOLE


@pytest.mark.parametrize("ranges", [True, False])
def test_tries_are_bounded_where_they_bring_nothing_and_the_waits_double(run, server, root, recipe, ranges):
    server.ranges = ranges
    server.upsets[PICTURES] = [("drop", 300), *[("drop", 0 if ranges else 250), ("drop", 0 if ranges else 300)] * 10]
    with pytest.raises(recipe.Problem, match=r"gave up.*kept in .*val2017\.zip\.part: run the same command") as problem:
        run()
    assert recipe.waits == [1, 2, 4, 8, 16, 32]
    assert "\n" not in str(problem.value)
    assert not (root / "val2017").exists() and (root / "val2017.zip.part").stat().st_size == 300


def test_a_file_that_changes_on_the_server_is_begun_anew(run, server, root, recipe):
    right = server.files[PICTURES]
    server.files[PICTURES] = bytes(len(right))
    server.upsets[PICTURES] = [("drop", 300), *[("drop", 0)] * 6]
    with pytest.raises(recipe.Problem):
        run()
    server.files[PICTURES] = right
    server.log.clear()
    server.upsets[PICTURES] = [("drop", 200)]
    run()
    assert [(request.range, request.status) for request in server.log] == [("bytes=300-", 200), ("bytes=200-", 206)]
    assert files(root) == WHOLE


@pytest.mark.parametrize("etags", ["weak", False])
def test_where_no_etag_vouches_for_every_byte_the_date_does(run, server, root, etags):
    server.etags, server.dates = etags, True
    server.upsets[PICTURES] = [("drop", 300)]
    run()
    assert server.log[-1].if_range == "Tue, 10 Jul 2018 16:29:23 GMT" and server.log[-1].status == 206
    assert files(root) == WHOLE


def test_a_server_that_names_no_version_is_asked_for_the_whole_anew(run, server, root):
    server.etags = False
    server.upsets[PICTURES] = [("drop", 300)]
    run()
    assert server.log[-1].range is None
    assert files(root) == WHOLE


def test_a_part_from_nowhere_is_not_built_upon(run, server, root):
    root.mkdir()
    (root / "val2017.zip.part").write_bytes(b"x" * 300)
    run()
    assert server.log[-1].range is None
    assert files(root) == WHOLE


def test_a_whole_part_is_not_asked_for_again(run, server, root):
    root.mkdir()
    (root / "val2017.zip.part").write_bytes(server.files[PICTURES])
    run()
    assert server.paths() == [ANNOTATIONS]
    assert files(root) == WHOLE


def test_a_part_that_the_server_cannot_follow_is_begun_anew(run, server, root):
    root.mkdir()
    right = server.files[PICTURES]
    (root / "val2017.zip.part").write_bytes(right[:300])
    (root / "val2017.zip.etag").write_text(f'"{hashlib.md5(right).hexdigest()}-2"')
    server.upsets[PICTURES] = [416]
    run()
    assert [request.range for request in server.log if request.path == PICTURES] == ["bytes=300-", None]
    assert files(root) == WHOLE


def test_a_server_that_takes_up_elsewhere_is_asked_for_the_whole_anew(run, server, root):
    server.upsets[PICTURES] = [("drop", 300), ("skip", 5)]
    run()
    assert [request.range for request in server.log if request.path == PICTURES] == [None, "bytes=300-", None]
    assert files(root) == WHOLE


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(run, server, root, recipe, status):
    server.upsets[PICTURES] = [status, status]
    run()
    assert recipe.waits == [1, 2] and files(root) == WHOLE


def test_a_server_that_stays_in_trouble_is_given_up(run, server, recipe):
    server.upsets[ANNOTATIONS] = [503] * 20
    with pytest.raises(recipe.Problem, match="HTTP 503"):
        run()
    assert len(server.log) == recipe.RETRIES + 1


def test_nobody_listening_is_given_up_too(run, recipe):
    with pytest.raises(recipe.Problem, match="refused.*gave up"):
        run("--base_url", "http://127.0.0.1:9")


def test_an_address_that_is_none_is_a_problem_at_once(run, recipe):
    with pytest.raises(recipe.Problem, match="--base_url should be like"):
        run("--base_url", "example.org")


def test_what_the_server_lacks_is_not_asked_for_twice(run, server, recipe):
    del server.files[ANNOTATIONS]
    with pytest.raises(recipe.Problem, match=rf"{server.url}/{ANNOTATIONS}: HTTP 404 Not Found; .*--base_url"):
        run()
    assert len(server.log) == 1


def test_a_file_of_another_size_is_refused_before_it_is_fetched(run, server, root, recipe):
    size = len(server.files[PICTURES])
    root.mkdir()
    (root / "val2017.zip.part").write_bytes(b"x" * 300)
    server.files[PICTURES] = b"<html>please log in</html>"
    with pytest.raises(recipe.Problem, match=f"has 26 bytes, and the official archive {size}"):
        run()
    assert (root / "val2017.zip.part").stat().st_size == 300


def test_wrong_bytes_are_never_unpacked(run, server, root, recipe):
    right = server.files[PICTURES]
    server.files[PICTURES] = zipped(pictures("val2017") | {"val2017/000000000000.jpg": jpeg("red")[::-1]})
    assert len(server.files[PICTURES]) == len(right)
    with pytest.raises(recipe.Problem, match=hashlib.md5(right).hexdigest()):
        run()
    assert files(root) == annotations()
    server.files[PICTURES] = right
    run()
    assert files(root) == WHOLE


def test_an_archive_found_there_is_verified_and_if_wrong_left_to_its_owner(run, server, root, recipe):
    root.mkdir()
    (root / "val2017.zip").write_bytes(server.files[PICTURES][:-1])
    with pytest.raises(recipe.Problem, match="val2017.zip is .* bytes.*: delete it"):
        run()
    assert (root / "val2017.zip").exists() and not (root / "val2017").exists()
    (root / "val2017.zip").write_bytes(server.files[PICTURES])
    run()
    assert files(root) == WHOLE and PICTURES not in server.paths()


def disk(monkeypatch, recipe, *free: int) -> None:
    answers = list(free)
    monkeypatch.setattr(
        recipe.shutil, "disk_usage", lambda _: SimpleNamespace(free=answers.pop(0) if len(answers) > 1 else answers[0])
    )


def test_a_disk_too_small_is_a_problem_before_anything_is_fetched(run, server, recipe, monkeypatch):
    recipe.ARCHIVES = {PICTURES: (800_000_000, ""), ANNOTATIONS: (200_000_000, "")}
    disk(monkeypatch, recipe, 2_000_000_000)
    # 1 GB to fetch; pictures do not compress, annotations do: 0.816 + 0.7 GB
    with pytest.raises(
        recipe.Problem, match=r"2\.00GB of free.*1\.00GB to fetch, about 1\.52GB.*2\.52GB: free 516MB more"
    ):
        run()
    assert server.log == []


def test_what_is_fetched_already_needs_no_room_again(run, server, root, recipe, monkeypatch):
    recipe.ARCHIVES = {PICTURES: (800_000_000, ""), ANNOTATIONS: (200_000_000, "")}
    disk(monkeypatch, recipe, 0)
    root.mkdir()
    with (root / "val2017.zip.part").open("wb") as part:
        part.truncate(500_000_000)  # takes no room on this disk
    (root / "annotations_trainval2017.zip").write_bytes(b"")
    with pytest.raises(recipe.Problem, match="300MB to fetch, about 1.52GB"):
        run()


def test_a_disk_too_small_for_the_archives_own_sizes_is_a_problem_before_anything_is_unpacked(
    run, server, root, recipe, monkeypatch
):
    disk(monkeypatch, recipe, 10**9, 10**9, 3 * 4096 - 1)  # three pictures, a block each
    with pytest.raises(recipe.Problem, match="unpacking val2017.zip needs 12.3kB"):
        run()
    assert not (root / "val2017.unpacking").exists() and (root / "val2017.zip").exists()
    disk(monkeypatch, recipe, 10**9, 3 * 4096)
    run()
    assert files(root) == WHOLE


def test_a_disk_that_fills_while_unpacking_keeps_the_archive_and_nothing_else(run, root, recipe, monkeypatch):
    def full(source, target, *_):
        target.write(source.read(10))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recipe.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        run()
    assert [path.name for path in root.iterdir()] == ["annotations_trainval2017.zip"]


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name",
    ["../escape.jpg", "val2017/../../escape.jpg", "/escape.jpg", "elsewhere/escape.jpg", r"val2017/..\..\escape.jpg"]
    + [link("val2017/escape.jpg")],
    ids=lambda name: getattr(name, "filename", name) + (" is a link" if isinstance(name, zipfile.ZipInfo) else ""),
)
def test_a_member_that_would_land_elsewhere_is_refused_by_name(run, server, root, recipe, name):
    server.files[PICTURES] = zipped(pictures("val2017") | {name: b"../../escape"})
    recipe.ARCHIVES = table(server.files)
    written = repr(getattr(name, "filename", name))
    with pytest.raises(recipe.Problem, match=re.escape(written)):
        run()
    assert not list(root.parent.rglob("escape.jpg")) and not (root / "val2017").exists()
    assert not (root / "val2017.unpacking").exists()


def test_an_archive_without_what_it_is_fetched_for_is_a_problem(run, server, root, recipe):
    server.files[ANNOTATIONS] = zipped({"annotations/captions_val2017.json": b"{}"})
    recipe.ARCHIVES = table(server.files)
    with pytest.raises(recipe.Problem, match="has no annotations/instances_val2017.json"):
        run()
    assert not (root / "annotations").exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_whose_bytes_belie_its_crc_is_named_and_no_folder_appears(run, server, root, recipe, compression):
    content = bytearray(zipped({"val2017/1.jpg": b"a" * 50, "val2017/2.jpg": b"b" * 50}, compression))
    content[content.index(b"2.jpg") + 5] = 0xFF  # its first byte; one that deflate does not know
    server.files[PICTURES] = bytes(content)
    recipe.ARCHIVES = table(server.files)
    with pytest.raises(recipe.Problem, match=r"val2017\.zip is damaged: (.*val2017/2\.jpg|Error -3)"):
        run()
    assert not (root / "val2017").exists() and not (root / "val2017.unpacking").exists()


@pytest.mark.parametrize("renamed", range(len(JSON) + 1))
def test_a_kill_between_two_renames_leaves_whole_files_and_the_next_run_the_rest(
    run, server, root, renamed, monkeypatch
):
    replace, count = Path.replace, iter(range(100))

    def killed(self, target):
        if Path(target).suffix == ".json" and next(count) == renamed:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    if renamed < len(JSON):
        with pytest.raises(KeyboardInterrupt):
            run()
        there = {path.name: path.read_bytes() for path in (root / "annotations").glob("*")}
        assert len(there) == renamed and there.items() <= {k[12:]: v for k, v in annotations().items()}.items()
    monkeypatch.setattr(Path, "replace", replace)
    run()
    assert files(root) == WHOLE and server.paths() == [ANNOTATIONS, PICTURES]


def test_a_kill_before_the_archive_is_deleted_is_tidied_by_the_next_run(run, server, root, recipe, capsys, monkeypatch):
    unlink = Path.unlink

    def killed(self, **options):
        if self.suffix == ".zip":
            raise KeyboardInterrupt
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (root / "annotations_trainval2017.zip").exists()
    monkeypatch.setattr(Path, "unlink", unlink)
    run()
    assert files(root) == WHOLE and server.paths() == [ANNOTATIONS, PICTURES]


def test_bytes_reach_the_disk_before_the_final_name_and_the_name_before_the_archive_goes(
    run, root, recipe, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        recipe, "sync", lambda: seen.append([(root / name).exists() for name in ("val2017", "val2017.zip")])
    )
    run()
    assert seen[-2:] == [[False, True], [True, True]]


class Process:
    """The script as its users run it, with another table."""

    def __init__(self, server: Server, root: Path):
        text = SCRIPT.read_text()
        official = re.findall(r'"(\w+/\w+\.zip)": \((\d+), "([0-9a-f]{32})"\)', text)
        assert len(official) == 6
        for name, size, md5 in official:
            if name in server.files:
                size_here, md5_here = table(server.files)[name]
                text = text.replace(size, str(size_here)).replace(md5, md5_here)
        script = root.parent / "download_coco.py"
        script.write_text(text)
        self.command = [
            sys.executable,
            str(script),
            "--root",
            str(root),
            "--base_url",
            server.url,
            "--split",
            "val2017",
        ]

    def start(self) -> subprocess.Popen:
        # a shell's background jobs ignore Ctrl-C, and so would their children
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard)

    def finish(self, *within: str) -> subprocess.CompletedProcess:
        return subprocess.run([*within, *self.command], capture_output=True, text=True, timeout=60)


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_while_it_fetches_the_same_command_fetches_the_rest(server, root, how):
    server.files[PICTURES] = zipped(pictures("val2017") | {"val2017/noise.jpg": os.urandom(1 << 18)})
    process, half = Process(server, root), 1 << 17
    server.upsets[PICTURES] = [("hang", half)]
    part = root / "val2017.zip.part"
    with process.start() as running:
        wait_for(lambda: len(server.log) == 2 and part.exists())
        wait_for(lambda: part.stat().st_size > half // 2)
        running.send_signal(how)
        stdout, stderr = running.communicate(timeout=30)
    got = part.stat().st_size
    assert half // 2 < got <= half and not (root / "val2017").exists() and not (root / "val2017.zip").exists()
    if how == signal.SIGINT:
        assert running.returncode == 130 and "Traceback" not in stderr
        assert stderr.splitlines()[-1].endswith(f"To go on: python {' '.join(process.command[1:])}")
    done = process.finish()
    assert done.returncode == 0 and f"{NEXT} --data_dir {root}" in done.stdout
    assert server.log[-1].range == f"bytes={got}-"
    assert len((root / "val2017" / "noise.jpg").read_bytes()) == 1 << 18
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "val2017"]


def test_killed_while_it_unpacks_there_is_no_folder_and_the_next_run_makes_the_whole(server, root):
    server.files[PICTURES] = zipped({f"val2017/{i:012}.jpg": b"x" for i in range(2000)})
    process, unpacking = Process(server, root), root / "val2017.unpacking" / "val2017"
    for _ in range(10):  # a busy machine may not get to the kill in time
        with process.start() as running:
            wait_for(lambda: unpacking.exists() or (root / "val2017").exists())
            running.kill()
            running.communicate(timeout=30)
        if unpacking.exists():
            break
        shutil.rmtree(root)
    assert 0 <= len(os.listdir(unpacking)) < 2000
    assert not (root / "val2017").exists() and (root / "val2017.zip").exists()
    (unpacking / "stray.jpg").write_bytes(b"")
    server.log.clear()
    assert process.finish().returncode == 0
    assert len(os.listdir(root / "val2017")) == 2000 and server.log == []
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "val2017"]


def test_what_goes_wrong_is_told_in_one_line_and_the_exit_status(server, root):
    process = Process(server, root)
    del server.files[ANNOTATIONS]
    done = process.finish()
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"{server.url}/{ANNOTATIONS}: HTTP 404 Not Found" in done.stderr
    root.rmdir()
    root.write_text("a file where the folder should be")
    done = process.finish()
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"File exists: '{root}'" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only there does ulimit -d hold for all that a process allocates")
def test_memory_stays_flat_however_large_the_archive(server, root):
    server.files[PICTURES] = zipped({"val2017/1.jpg": bytes(50 << 20)})
    server.upsets[PICTURES] = [("drop", 25 << 20)]
    done = Process(server, root).finish("sh", "-c", 'ulimit -d 48000; exec "$@"', "sh")
    assert done.returncode == 0, done.stderr
    assert server.log[-1].range == f"bytes={25 << 20}-"
