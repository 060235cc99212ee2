"""What the files of a repository are by their names: models, parts of models, MTP heads, and which of them is meant.

Nothing is fetched or read here. Names follow the convention of GGUF repositories: `Name[-MTP]-QUANT[-00001-of-00003].gguf`
and `mtp-Name-QUANT.gguf` for an MTP head in a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from entmtp_local.errors import HubError, UsageError

_REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w./ +-]+))?")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})")
_QUANT = re.compile(
    r"(?:^|[-._ ])((?:UD-)?(?:I?Q|TQ)\d+(?:_[A-Z0-9]+)*|BF16|FP?16|FP?32|(?:MX|NV)FP\d+(?:_[A-Z0-9]+)*)(?=[-. ]|$)", re.IGNORECASE
)
_MTP = re.compile(r"(?:^|[-._ ])(?:mtp|nextn)(?=[-._ ]|$)", re.IGNORECASE)
_HEAD = re.compile(r"mtp[-._]", re.IGNORECASE)
# Files beside a model that are none: projectors, importance matrices, adapters, and drafts of other methods.
_OTHER = re.compile(r"mmproj|imatrix|(?:^|[-._])(?:lora|eagle3|dflash|dspark|vocab)(?=[-._]|$)", re.IGNORECASE)

#: Where no quantisation is named, the first of these that there is: about 4.8 bits a weight, then the nearest.
PREFERRED = (
    "Q4_K_M", "UD-Q4_K_M", "UD-Q4_K_XL", "Q4_K_XL", "Q4_K_L", "Q4_K_S", "UD-Q4_K_S", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
    "MXFP4", "MXFP4_MOE", "NVFP4", "Q5_K_M", "UD-Q5_K_XL", "Q5_K_S", "Q5_0", "Q6_K", "Q8_0",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository on the hub, and which of its models: a quantisation, a part of a file's name or a whole one, or None."""

    repo: str
    quant: str | None = None

    @staticmethod
    def parse(text: str) -> Reference:
        """Raises: UsageError when it is not written OWNER/NAME or OWNER/NAME:QUANT."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} does not name a model of the hub; write OWNER/NAME:QUANT, such as owner/model-GGUF:Q4_K_M."
            )
        return Reference(match["repo"], match["quant"])

    def __str__(self) -> str:
        return self.repo if self.quant is None else f"{self.repo}:{self.quant}"


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository.

    Args:
        name: with its folders, as in the repository.
        size: bytes.
        etag: what the hub names its content by: the sha256 of large files, git's sha1 of small ones; "" where nobody asks.
    """

    name: str
    size: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class RepoModel:
    """A model of a repository, or an MTP head in a file of its own.

    Args:
        files: its parts in order.
        quant: in capitals as in its name, "" where that names none.
        base: the name without quantisation and mark of a head; files of one model have the same.
        is_head: holds an MTP head alone.
        is_marked: its name says that an MTP head is in it.
    """

    files: tuple[RepoFile, ...]
    quant: str
    base: str
    is_head: bool
    is_marked: bool

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def models_of(files: Iterable[RepoFile]) -> tuple[list[RepoModel], list[str]]:
    """The models and heads among the files of a repository, and the names of models of which parts are missing."""
    parts: dict[tuple[str, int], dict[int, RepoFile]] = {}
    for file in files:
        path = PurePosixPath(file.name)
        # a terminal would act on control characters in a name; nobody who means well has them there
        if not file.name.isprintable() or path.is_absolute() or ".." in path.parts:
            continue
        if path.suffix.lower() != ".gguf" or _OTHER.search(path.name):
            continue
        stem = file.name[: -len(".gguf")]
        split = _SPLIT.fullmatch(stem)
        key, no = ((split["stem"], int(split["count"])), int(split["no"])) if split else ((stem, 1), 1)
        parts.setdefault(key, {})[no] = file
    models, incomplete = [], []
    for (stem, count), found in sorted(parts.items()):
        if set(found) == set(range(1, count + 1)):
            models.append(_model(stem, tuple(found[no] for no in sorted(found))))
        else:
            incomplete.append(stem)
    return models, incomplete


def _model(stem: str, files: tuple[RepoFile, ...]) -> RepoModel:
    path = PurePosixPath(stem)
    # a folder may name the quantisation where its files do not
    quants = _QUANT.findall(path.name) or [quant for part in path.parts[:-1] for quant in _QUANT.findall(part)]
    is_head = bool(_HEAD.match(path.name)) or path.parent.name.lower() == "mtp"
    base = re.sub(r"[-._ ]+", "-", _MTP.sub("", _QUANT.sub("", path.name))).strip("-").lower()
    return RepoModel(files, quants[-1].upper() if quants else "", base, is_head, not is_head and bool(_MTP.search(path.name)))


def choose(found: Sequence[RepoModel], incomplete: Sequence[str], reference: Reference) -> list[RepoModel]:
    """The files that are meant, the likeliest one to hold an MTP head first; they are the same model in the same quantisation.

    Raises: HubError when there is none or when more than one model is meant; it says what there is.
    """
    models = [model for model in found if not model.is_head]
    if not models:
        what = "only MTP heads, no model" if found else "only incomplete models" if incomplete else "no GGUF files"
        raise HubError(
            f"the repository {reference.repo} has {what}; name one with GGUF in its name: entmtp-local pull OWNER/NAME."
        )
    if reference.quant is not None:
        meant = _named(models, reference.quant)
        if not meant and any(_is_named(stem, reference.quant) for stem in incomplete):
            raise HubError(f"parts of {reference} are missing in the repository; it has {_listed(models)}.")
    else:
        meant = _preferred([model for model in models if model.is_marked] or models)
    if not meant:
        wanted = f"nothing named {reference.quant}" if reference.quant else "no quantisation that is the usual choice"
        raise HubError(
            f"the repository {reference.repo} has {wanted}, but {_listed(models)}; name one: "
            f"entmtp-local pull {reference.repo}:{_short(models[0])}."
        )
    if len({(model.base, model.quant) for model in meant}) > 1:
        names = ", ".join(model.name for model in meant)
        raise HubError(
            f"{reference} may mean {len(meant)} models: {names}; name one: entmtp-local pull {reference.repo}:{meant[0].name}."
        )
    return sorted(meant, key=lambda model: (not model.is_marked, model.name))


def readable(n_bytes: int) -> str:
    """A size as the hub shows it."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def head_for(model: RepoModel, found: Sequence[RepoModel]) -> RepoModel | None:
    """The head for a model without one: of the same quantisation, else of the nearest, rather with more bits than with fewer."""
    heads = [head for head in found if head.is_head]
    if len({each.base for each in found if not each.is_head}) > 1:
        heads = [head for head in heads if head.base == model.base]
    bits = _n_bits(model.quant)

    def distance(head: RepoModel) -> tuple[bool, float, float, str]:
        return head.quant != model.quant, abs(_n_bits(head.quant) - bits), -_n_bits(head.quant), head.name

    return min(heads, key=distance, default=None)


def _named(models: Sequence[RepoModel], quant: str) -> list[RepoModel]:
    """Those of this quantisation, else those whose names hold it between separators."""
    exact = [model for model in models if quant in (model.name, PurePosixPath(model.name).name)]
    equal = [model for model in models if model.quant == quant.upper()]
    return exact or equal or [model for model in models if _is_named(model.name, quant)]


def _is_named(name: str, quant: str) -> bool:
    return re.search(rf"(?:^|[-./ ]){re.escape(quant)}(?=[-./ ]|$)", name, re.IGNORECASE) is not None


def _preferred(models: Sequence[RepoModel]) -> list[RepoModel]:
    for quant in PREFERRED:
        meant = [model for model in models if model.quant == quant]
        if meant:
            return meant
    return list(models) if len(models) == 1 else []


def _short(model: RepoModel) -> str:
    return model.quant or PurePosixPath(model.name).name


def _listed(models: Sequence[RepoModel]) -> str:
    """What there is, for people: "Q4_K_M (16.5 GB), Q8_0 (28.6 GB)"."""
    sizes: dict[str, int] = {}
    for model in models:
        sizes.setdefault(_short(model), model.size)
    return ", ".join(f"{short} ({readable(size)})" for short, size in sizes.items())


def _n_bits(quant: str) -> int:
    match = re.search(r"\d+", quant)
    return int(match[0]) if match else 16
