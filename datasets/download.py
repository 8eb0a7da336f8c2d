"""Large files from the net: resumed where they broke off, and whole or not at all. Standard library and tqdm alone."""

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from datasets.files import require_file

__all__ = ["fetch"]

_CHUNK = 1 << 20
_TRIES = 5
_TIMEOUT = 60.0  # seconds without a byte


def fetch(url: str, path: Path, pause: float = 5.0) -> Path:
    """Download `url` to `path`, and return it; a file that is there already is left as it is.

    What has arrived is kept in PATH.part, where the next attempt, of this call or of another day, goes on. `pause`:
    seconds between attempts. Raises OSError with the address, what is wrong and what to do: where the address does not
    answer five times in a row without a byte more, the disk is too small, or the server says there is no such file.
    """
    if path.exists():
        return require_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _continue(url, part)
            os.replace(part, path)
            return path
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise OSError(f"{url}: {error.code} {error.reason}: is the name right?") from None
            reason: Exception = error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = error
        failures = 0 if _size(part) > before else failures + 1
        if failures == _TRIES:
            raise OSError(
                f"{url} could not be read: {reason}. What has arrived is kept; the same command goes on, or put the "
                f"file there yourself: {path}"
            ) from None
        time.sleep(pause)


def _continue(url: str, part: Path) -> None:
    """Add to `part` what it lacks of `url`. Raises ConnectionError where fewer bytes come than were announced."""
    from tqdm import tqdm

    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", "") if error.headers else "")
        if error.code == 416 and whole and int(whole[1]) == start:
            return  # there was nothing left to ask for
        if error.code == 416:  # it is another file than the one that was begun
            part.unlink()
            raise ConnectionError("the file has changed; it is read anew") from None
        raise
    with answer:
        if start and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
            start = 0  # all of it comes again
        announced = answer.headers.get("Content-Length")
        total = None if announced is None else start + int(announced)
        if total is not None and total - start > (free := shutil.disk_usage(part.parent).free):
            raise OSError(f"{url}: {total / 1e9:.2f} GB wanted on the disk of {part.parent}, found {free / 1e9:.2f} GB")
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, mininterval=1.0)
        with part.open("ab" if start else "wb") as file, bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise ConnectionError(f"{_size(part)} of {total} bytes came")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
