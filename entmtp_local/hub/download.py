"""Fetch a model from the hub into the cache folder: resumed where it stopped, checked against the hub's checksum.

The package's own hf_hub_download throws away what an interrupted process had fetched, and compares sizes only; its http_get calls
itself for every broken connection, without an end where a server knows no ranges. So the transfer is done here, to a file that
stays, and the result is hashed before it gets its place. `etag.incomplete` is the name that earlier versions of the package used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import Timeout
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status, logging, tqdm

from entmtp_local import __version__
from entmtp_local.errors import HubError
from entmtp_local.files import replace_file
from entmtp_local.hub.cache import ModelFiles, cache_folder, repo_folder
from entmtp_local.hub.failures import explained
from entmtp_local.hub.header import N_BYTES, announces_head
from entmtp_local.hub.names import Reference, RepoFile, RepoModel, choose, head_for, models_of, readable

_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_N_SHA256 = 64  # digits
_BLOCK = 1 << 22
_LOCK_SECONDS = 0.3
# An interruption loses no more than this.
CHUNK_BYTES = 1 << 20
# Attempts in a row that bring nothing new, and what is waited before each.
_N_VAIN, PAUSE_SECONDS = 5, 1.0
_PARTIAL_CONTENT = 206
# Statuses that pass.
_PASSING = (408, 429, 500, 502, 503, 504)
_NAME = "entmtp-local"

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Repo:
    name: str
    commit: str
    files: tuple[RepoFile, ...]

    def url(self, file: RepoFile) -> str:
        return hf_hub_url(self.name, file.name, revision=self.commit)

    def link(self, file: RepoFile) -> Path:
        """Where the file is found by its name."""
        return repo_folder(self.name) / "snapshots" / self.commit / file.name

    def blob(self, file: RepoFile) -> Path:
        """Where its content is put."""
        return repo_folder(self.name) / "blobs" / file.etag

    def kept(self, file: RepoFile) -> Path | None:
        """Where its content is; None where it is not here."""
        return next((path for path in (self.blob(file), self.link(file)) if path.is_file()), None)

    def partial(self, file: RepoFile) -> Path:
        """What has been fetched of it."""
        return self.blob(file).with_name(f"{file.etag}.incomplete")


def list_models(reference: Reference) -> list[RepoModel]:
    """The models and heads of a repository.

    Raises: HubError.
    """
    with explained(reference):
        return models_of(_ask(reference.repo).files)[0]


def pull(reference: Reference, note: Note) -> ModelFiles:
    """Fetch the model that is meant and the MTP head that belongs to it; what is here and whole is not fetched again.

    Args:
        note: tells the user what was chosen.
    Raises: HubError, one sentence with what to do. KeyboardInterrupt leaves what has been fetched.
    """
    # what it logs is said by the sentence at the end
    logging.set_verbosity_error()
    with explained(reference):
        repo = _ask(reference.repo)
        found, incomplete = models_of(repo.files)
        model, head = _with_head(repo, choose(found, incomplete, reference), found, note)
        # the head first: a model that is complete has its head
        wanted = [*(head.files if head else ()), *model.files]
        _check_files(repo, wanted, reference)
        for file in wanted:
            _fetch(repo, file, reference, note)
        with replace_file(repo_folder(repo.name) / "refs" / "main") as ref:
            ref.write(repo.commit.encode())
    return ModelFiles(repo.link(model.files[0]), repo.link(head.files[0]) if head else None)


def _ask(name: str) -> _Repo:
    answer = HfApi(library_name=_NAME, library_version=__version__).model_info(
        name, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    files = []
    for sibling in answer.siblings or ():
        size, etag = (sibling.lfs.size, sibling.lfs.sha256) if sibling.lfs else (sibling.size, sibling.blob_id)
        files.append(RepoFile(sibling.rfilename, size or 0, etag or ""))
    if answer.sha is None or not _CHECKSUM.fullmatch(answer.sha):
        raise ValueError(f"the revision of the repository is {answer.sha!r}")
    return _Repo(name, answer.sha, tuple(files))


def _with_head(
    repo: _Repo, meant: Sequence[RepoModel], found: Sequence[RepoModel], note: Note
) -> tuple[RepoModel, RepoModel | None]:
    """The model to fetch, and the file with its head where that is another one."""
    announced: bool | None = None
    model = meant[0]
    for each in meant:
        announced = announces_head(_first_bytes(repo, each.files[0]))
        if announced is not False:
            model = each
            break
    head = None if announced else head_for(model, found)
    parts = f" in {len(model.files)} parts" if len(model.files) > 1 else ""
    note(f"{model.name} ({readable(model.size)}{parts})" + (f", and its MTP head {head.name}" if head else ""))
    if announced is False and head is None:
        note("it has no MTP head: its tokens will be decoded one by one; repositories with MTP in their names have heads.")
    return model, head


def _first_bytes(repo: _Repo, file: RepoFile) -> bytes:
    headers = {**_headers(), "Range": f"bytes=0-{N_BYTES - 1}", "Accept-Encoding": "identity"}
    start = b""
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", repo.url(file), headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        # a server that knows no ranges sends all of it
        for block in response.iter_bytes(N_BYTES):
            start += block
            if len(start) >= N_BYTES:
                break
    return start


def _check_files(repo: _Repo, wanted: Sequence[RepoFile], reference: Reference) -> None:
    """Raises: HubError where a file cannot be fetched, or not all of them have room."""
    most = constants.MAX_HTTP_DOWNLOAD_SIZE
    for file in wanted:
        if not _CHECKSUM.fullmatch(file.etag):
            raise HubError(f"the hub gives no checksum for {file.name}; check HF_ENDPOINT and run entmtp-local pull {reference}.")
        if file.size > most and not repo.kept(file):
            raise HubError(
                f"{file.name} has {readable(file.size)}, and files of more than {readable(most)} need the hub's "
                f"own program: run hf download {repo.name} {file.name}."
            )
    needed = sum(max(0, file.size - _size(repo.partial(file))) for file in wanted if not repo.kept(file))
    folder = cache_folder()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HubError(
            f"{reference} needs {readable(needed)} more and {readable(free)} are free in {cache_folder()}; make room there "
            f"or name another folder with HF_HUB_CACHE, and run entmtp-local pull {reference}."
        )


def _fetch(repo: _Repo, file: RepoFile, reference: Reference, note: Note) -> None:
    blob = repo.blob(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    # the lock that the hub's tools take
    lock = cache_folder() / ".locks" / repo_folder(repo.name).name / f"{file.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(lock, timeout=_LOCK_SECONDS):
            kept = repo.kept(file)
            if kept is not None and _is_whole(kept, file):
                _link(repo, file)
                return
            if kept is not None:
                note(f"{file.name} is damaged on this machine and is fetched again.")
                kept.unlink()
            partial = repo.partial(file)
            _transfer(repo, file, partial)
            if not _is_whole(partial, file):
                partial.unlink()
                raise HubError(
                    f"what arrived of {file.name} does not have the checksum that the hub gives, and was removed; "
                    f"run entmtp-local pull {reference} again."
                )
            os.replace(partial, blob)
            _link(repo, file)
    except Timeout:
        raise HubError(
            f"another program is fetching {file.name}; wait for it, and run entmtp-local pull {reference} again."
        ) from None


def _transfer(repo: _Repo, file: RepoFile, partial: Path) -> None:
    """Fetch what is missing; a connection that breaks off is opened again where it ended, as long as that brings anything new."""
    if _size(partial) > file.size:
        partial.unlink()
    with partial.open("ab") as out, _bar(Path(file.name).name, file.size, out.tell()) as bar:
        furthest, n_vain = out.tell(), 0
        while out.tell() < file.size and n_vain < _N_VAIN:
            failure = None
            try:
                _receive(repo.url(file), out, file.size, bar)
            except HTTPError as error:
                answer = getattr(error, "response", None)
                if answer is not None and answer.status_code not in _PASSING:
                    raise
                failure = error
            n_vain = 0 if out.tell() > furthest else n_vain + 1
            furthest = max(furthest, out.tell())
            if failure is not None and n_vain == _N_VAIN:
                raise failure
            if out.tell() < file.size:
                time.sleep(PAUSE_SECONDS)
        out.flush()
        os.fsync(out.fileno())


def _receive(url: str, out: IO[bytes], size: int, bar: tqdm) -> None:
    """Write what one connection brings beyond what is in the file."""
    start = out.tell()
    headers = {**_headers(), "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if response.status_code != _PARTIAL_CONTENT:
            # the server knows no ranges and sends all of it
            out.seek(0)
            out.truncate()
            bar.reset()
        elif not (part := response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
            # what has been fetched stays as it is
            raise ValueError(f"it sends {part!r} of a file where the bytes from {start} on were asked for")
        for block in response.iter_bytes(CHUNK_BYTES):
            out.write(block)
            bar.update(len(block))
            if out.tell() > size:
                break  # whatever this is, it does not have the checksum


def _is_whole(path: Path, file: RepoFile) -> bool:
    """Whether the size and the sha256 are those that the hub gives; small files, which have none there, go by their size."""
    if _size(path) != file.size:
        return False
    if len(file.etag) != _N_SHA256:
        return True
    digest = hashlib.sha256()
    with path.open("rb") as content, _bar(f"checking {Path(file.name).name}", file.size, leave=False) as bar:
        while block := content.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest() == file.etag


def _link(repo: _Repo, file: RepoFile) -> None:
    """Let the content be found by the file's name."""
    link, blob = repo.link(file), repo.blob(file)
    if not blob.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        os.symlink(os.path.relpath(blob, link.parent), link)
    except OSError:
        # a file system without links: the content goes where it is looked for, as the hub's own tools do it
        os.replace(blob, link)


def _bar(label: str, size: int, done: int = 0, *, leave: bool = True) -> tqdm:
    """A progress bar on a terminal, nothing elsewhere."""
    return tqdm(desc=label, total=size, initial=done, unit="B", unit_scale=True, leave=leave, disable=None)


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name=_NAME, library_version=__version__)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
