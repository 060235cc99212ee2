"""Models that are here already, in the cache folder that all tools of the hub share. Needs no network.

Its layout is the hub's own: `models--OWNER--NAME/` holds `blobs/` (contents, named by their checksums), `snapshots/COMMIT/` (the
files of a revision, links to blobs) and `refs/main` (the newest revision that was asked for).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from entmtp_local.errors import HubError
from entmtp_local.hub.header import file_announces_head
from entmtp_local.hub.names import Reference, RepoFile, RepoModel, choose, head_for, models_of

_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this machine.

    Args:
        path: its file, the first one of a split model.
        mtp_path: the file with its MTP head, where that is another one.
    """

    path: Path
    mtp_path: Path | None = None


def cache_folder() -> Path:
    """Where the hub's tools keep files: HF_HUB_CACHE, or hub/ in HF_HOME."""
    # a package that models in files do without, also where it is not installed
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repo_folder(repo: str) -> Path:
    """Where the files of a repository are kept."""
    return cache_folder() / (_PREFIX + repo.replace("/", "--"))


def find_cached(reference: Reference) -> ModelFiles | None:
    """The model that is meant, if all of it is here: that of the newest revision that has it."""
    for snapshot in _snapshots(repo_folder(reference.repo)):
        found, incomplete = models_of(_files(snapshot))
        with suppress(HubError, OSError):
            return _model_files(snapshot, choose(found, incomplete, reference), found)
    return None


def cached_models() -> list[str]:
    """OWNER/NAME:QUANT of every model that is here."""
    names = set()
    for folder in sorted(cache_folder().glob(f"{_PREFIX}*--*")):
        repo = folder.name[len(_PREFIX) :].replace("--", "/", 1)
        for snapshot in _snapshots(folder):
            models = [model for model in models_of(_files(snapshot))[0] if not model.is_head]
            names |= {f"{repo}:{model.quant or Path(model.name).name}" for model in models}
    return sorted(names)


def _model_files(snapshot: Path, meant: list[RepoModel], found: list[RepoModel]) -> ModelFiles:
    announced = {model: file_announces_head(snapshot / model.name) for model in meant}
    model = max(meant, key=lambda each: announced[each] is True)
    head = None if announced[model] else head_for(model, found)
    return ModelFiles(snapshot / model.name, snapshot / head.name if head else None)


def _snapshots(folder: Path) -> Iterator[Path]:
    """Revisions that are kept, that of refs/main first, then the newest."""
    try:
        kept = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return
    with suppress(OSError):
        newest = (folder / "refs" / "main").read_text().strip()
        kept.sort(key=lambda path: path.name != newest)
    yield from kept


def _files(snapshot: Path) -> Iterator[RepoFile]:
    for path in snapshot.rglob("*.gguf"):
        # a link whose content was removed is no file
        if path.is_file():
            yield RepoFile(path.relative_to(snapshot).as_posix(), path.stat().st_size)
