"""
Download COCO, and unpack it into the official layout, which datasets_scripts/coco.py reads.

    python recipes/download_coco.py --root ./data --split val2017              1.1 GB to fetch; wants 2.8 GB of disk
    python recipes/download_coco.py --root ./data --split val2017 train2017    20.4 GB to fetch; wants 42 GB

    ROOT/val2017/000000000139.jpg …    ROOT/annotations/captions_val2017.json, instances_val2017.json, …

Unusual: it may be killed at any moment, and the same command goes on from there. What is fetched grows in ROOT/*.zip.part, and is
unpacked in ROOT/*.unpacking only once its size and checksum are right; whatever has its final name is whole. What is there already
is never written over, and never fetched again.
"""

import argparse
import hashlib
import http.client
import os
import shlex
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm


# Bytes and MD5. COCO publishes neither; these are what many projects have measured and pin (PaddleDetection, LAVIS, MLPerf, …).
ARCHIVES = {
    "zips/train2017.zip": (19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    "zips/val2017.zip": (815585330, "442b8da7639aecaf257c1dceb8ba8c80"),
    "annotations/annotations_trainval2017.zip": (252907541, "f4bbac642086de4f52a3fdda2de5fa2c"),
    "zips/train2014.zip": (13510573713, "0da8c0bd3d6becc4dcb32757491aca88"),
    "zips/val2014.zip": (6645013297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
    "annotations/annotations_trainval2014.zip": (252872794, "0a379cfc70b0e71301e0f377548639bd"),
}
SPLITS = [Path(name).stem for name in ARCHIVES if name.startswith("zips/")]
UNPACKED = {"zips": 1.02, "annotations": 3.5}  # times the archive's size, until its own directory can be read
CHUNK = 1 << 20
RETRIES = 6  # in a row that bring nothing new; the waits double from a second, to a minute in all
TIMEOUT = 60  # seconds of silence

text = partial(tqdm.format_sizeof, suffix="B")
progress = partial(tqdm, unit="B", unit_scale=True)
# not an fsync for each of 118 000 pictures, which takes many times as long; absent on Windows
sync = getattr(os, "sync", lambda: None)


class Problem(Exception):
    """What the user is told, in one line."""


class Dropped(Exception):
    """A request that may go better next time."""


def there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_space(root: Path, need: int, what: str) -> None:
    if (free := shutil.disk_usage(root).free) < need:
        more = f"free {text(need - free)} more, or choose another --root"
        raise Problem(f"{root} has {text(free)} of free disk, and {what} needs {text(need)}: {more}")


def transfer(url: str, part: Path, size: int) -> None:
    """
    One request: adds to `part` what it lacks, or begins it anew where the server's file has changed or it does not resume.

    The server's name for this version of the file (a strong ETag, else its date: RFC 9110) is kept beside `part`. Raises Dropped.
    """
    have, etag = length(part), part.with_suffix(".etag")
    version = etag.read_text() if have and etag.exists() else ""
    headers = {"Range": f"bytes={have}-", "If-Range": version} if version else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file there ends before ours
            part.unlink(missing_ok=True)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise Dropped(f"HTTP {error.code} {error.reason}") from error
        raise Problem(f"{url}: HTTP {error.code} {error.reason}; name a mirror that has it with --base_url") from error
    except ValueError as error:
        raise Problem(f"{url}: {error}; --base_url should be like http://images.cocodataset.org") from error
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(str(error)) from error

    with response:
        resumed, sent = response.status == 206, response.headers["Content-Range"]
        if resumed and sent != f"bytes {have}-{size - 1}/{size}":
            part.unlink()
            raise Dropped(f"asked for bytes {have}-{size - 1}/{size}, sent {sent}")
        offered = int(response.headers["Content-Length"] or size)
        if not resumed and offered != size:
            hint = "a proxy's page, or not COCO? Try another --base_url"
            raise Problem(f"{url} has {offered} bytes, and the official archive {size}: {hint}")
        have = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file, progress(desc=part.name, total=size, initial=have) as bar:
            if not resumed:  # here: never the new version's name beside the old one's bytes
                version = response.headers["ETag"] or "W/"
                etag.write_text((response.headers["Last-Modified"] or "") if version.startswith("W/") else version)
            while have < size:
                try:
                    chunk = response.read1(min(CHUNK, size - have))  # what has come: a kill loses no more than that
                except (OSError, http.client.HTTPException) as error:
                    raise Dropped(f"{error} after {text(have)}") from error
                if not chunk:
                    raise Dropped(f"connection closed after {text(have)} of {text(size)}")
                have += file.write(chunk)
                bar.update(len(chunk))


def download(url: str, part: Path, size: int) -> None:
    """Fills `part`. Raises Problem after RETRIES in a row that bring it no further than it has ever been."""
    furthest, failures = length(part), 0
    while length(part) < size:
        try:
            transfer(url, part, size)
        except Dropped as problem:
            failures = 1 if length(part) > furthest else failures + 1
            furthest = max(furthest, length(part))
            if failures > RETRIES:
                advice = f"gave up for now. What came is kept in {part}: run the same command later"
                raise Problem(f"{url}: {problem}; {advice}") from problem
            wait = 2 ** (failures - 1)
            print(f"{url}: {problem}; again in {wait} s ({failures} of {RETRIES})", file=sys.stderr)
            time.sleep(wait)
    part.with_suffix(".etag").unlink(missing_ok=True)


def verify(path: Path, size: int, md5: str) -> None:
    """Raises Problem where `path` is not the official archive; deletes it then if it is a download of our own."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, progress(desc=f"{path.name} checksum", total=size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if (length(path), digest.hexdigest()) != (size, md5):
        found, official = f"{length(path)} bytes with MD5 {digest.hexdigest()}", f"{size} with {md5}"
        advice = "delete it, and run the same command"
        if path.suffix == ".part":
            path.unlink()
            advice = "deleted it; run the same command, or try another --base_url"
        raise Problem(f"{path} is {found}, and the official archive {official}: {advice}")


def unpack(archive: Path, needed: list[str]) -> None:
    """Into a temporary folder beside `archive`, whose whole folder, or whole files, are then renamed. Raises Problem."""
    root, temporary, folder = archive.parent, archive.with_suffix(".unpacking"), PurePosixPath(needed[0]).parts[0]
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            parts, link = PurePosixPath(member.filename).parts, stat.S_ISLNK(member.external_attr >> 16)
            if parts[:1] != (folder,) or ".." in parts or "\\" in member.filename or link:
                why = f"{member.filename!r} is a link, or lies outside {folder}/"
                raise Problem(f"{archive}: {why}. Nothing was unpacked; delete it, and try another --base_url")
        members = [member for member in file.infolist() if not member.is_dir()]
        # a small file fills a whole block
        check_space(root, sum(-(-member.file_size // 4096) * 4096 for member in members), f"unpacking {archive.name}")
        size = sum(member.file_size for member in members)
        with progress(desc=f"{archive.name} unpacking", total=size) as bar:
            for member in members:
                path = temporary / member.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, CHUNK)  # at its end, checks the CRC
                bar.update(member.file_size)
    if absent := [path for path in needed if not there(temporary / path)]:
        raise Problem(f"{archive} has no {', '.join(absent)}: delete it, and try another --base_url")
    sync()
    whole = needed if needed == [folder] else [member.filename for member in members]
    for path in sorted(whole, key=needed.__contains__):  # what is needed last, so that a kill in between shows
        if not there(root / path):
            (root / path).parent.mkdir(exist_ok=True)
            (temporary / path).replace(root / path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    overlap = "2014 and 2017 overlap: give each year a --root of its own"
    parser.add_argument("--split", nargs="+", required=True, choices=SPLITS, help=overlap)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder that shall hold COCO")
    parser.add_argument("--base_url", default="http://images.cocodataset.org", help="or a mirror's, above zips/")
    parser.add_argument("--keep_archives", action="store_true", help="do not delete an archive once it is unpacked")
    args = parser.parse_args()

    # 1. What the splits need, less what is there.
    args.root.mkdir(parents=True, exist_ok=True)
    needed = defaultdict(list)  # archive -> paths in it
    for split in args.split:
        both = [f"annotations/{kind}_{split}.json" for kind in ("captions", "instances")]
        needed[f"annotations/annotations_trainval{split[-4:]}.zip"] += both
        needed[f"zips/{split}.zip"] = [split]
    archives = {name: args.root / Path(name).name for name in needed}
    missing = [name for name in needed if not all(there(args.root / path) for path in needed[name])]

    # 2. Room for it.
    fetch = [name for name in missing if not archives[name].exists()]
    left = sum(ARCHIVES[name][0] - length(archives[name].with_suffix(".zip.part")) for name in fetch)
    unpacked = sum(int(ARCHIVES[name][0] * UNPACKED[name.split("/")[0]]) for name in missing)
    check_space(args.root, left + unpacked, f"COCO ({text(left)} to fetch, about {text(unpacked)} unpacked)")

    # 3. Fetch, verify, unpack, tidy up.
    for name, archive in archives.items():
        part, unpacking = archive.with_suffix(".zip.part"), archive.with_suffix(".unpacking")
        if name in missing:
            if not archive.exists():
                download(f"{args.base_url.rstrip('/')}/{name}", part, ARCHIVES[name][0])
                verify(part, *ARCHIVES[name])
                part.replace(archive)
            else:
                verify(archive, *ARCHIVES[name])
            try:
                unpack(archive, needed[name])
            except Exception as error:
                shutil.rmtree(unpacking, ignore_errors=True)
                if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError):
                    raise Problem(f"{archive} is damaged: {error}. Delete it, and run the same command") from error
                raise
        if unpacking.exists():  # from here or from a run that was killed here: it goes last
            sync()  # the archive may go only when what came of it will outlive a power cut
            if not args.keep_archives:
                archive.unlink(missing_ok=True)
            shutil.rmtree(unpacking)

    # 4. What there is now, and what to do with it.
    for path in (args.root / path for paths in needed.values() for path in paths):
        print(f"{path}/ ({len(os.listdir(path))} pictures)" if path.is_dir() else path)
    print("\nUnpacked; next:" if missing else "\nEverything was there already: nothing fetched. Next:")
    where = "" if args.root == Path("data") else f" --data_dir {shlex.quote(str(args.root))}"
    print(f"    accelerate launch recipes/caption.py --config recipes/ossight/s0_coco.yaml{where}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print(f"\nStopped; what was fetched is kept. To go on: python {shlex.join(sys.argv)}", file=sys.stderr)
        sys.exit(130)
    except Problem as problem:
        sys.exit(str(problem))
    except OSError as error:
        sys.exit(f"{error}; what was fetched is kept, and the same command goes on from there")
