"""What is compared: this runtime by policy, stock llama.cpp plain and with its MTP by setting, and other servers.

An arm is only a description; opening it starts a process of its own, which is ended with the context.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from entmtp_local.bench.server import Server
from entmtp_local.bench.text import Request, Text
from entmtp_local.bench.worker import Setup, Worker
from entmtp_local.errors import UsageError
from entmtp_local.native.session import SessionOptions
from entmtp_local.speculative.copying import MAX_COPIED
from entmtp_local.speculative.draft_vocab import SAME
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Profile

PLAIN = "off"
STOCK_PLAIN = "stock plain"


class Runner(Protocol):
    """A running arm."""

    @property
    def pid(self) -> int: ...

    def complete(self, request: Request) -> Text:
        """Raises: ServerError or EngineError where it fails."""
        ...


class Arm(Protocol):
    """Something that continues prompts."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """ "ours", "stock" or "peer"."""
        ...

    def open(self) -> AbstractContextManager[Runner]:
        """Start it. Raises: ServerError or EngineError where it does not start."""
        ...


# -- this runtime


@dataclass(frozen=True, slots=True)
class OurChoice:
    """An entry of --policies: a policy, and what differs from chat's defaults.

    Args:
        name: as the user wrote it.
        policy: TASK in it stands for the workload.
        full_head: draft from the whole vocabulary.
        copy: whether text is copied.
    """

    name: str
    policy: str
    full_head: bool = False
    copy: bool = True

    @staticmethod
    def parse(text: str) -> OurChoice:
        """POLICY, POLICY@full or POLICY@no-copy, or both.

        Raises: UsageError naming what is known.
        """
        policy, *marks = text.split("@")
        unknown = set(marks) - {"full", "no-copy"}
        if unknown:
            raise UsageError(f"'{text}' has an unknown mark @{min(unknown)}; known are @full and @no-copy.")
        parse_policy(policy.replace("TASK", "all"))
        return OurChoice(text, policy, "full" in marks, "no-copy" not in marks)

    def options(self, base: SessionOptions) -> SessionOptions:
        """How its session is opened."""
        policy = parse_policy(self.policy.replace("TASK", "all"))
        return replace(
            base,
            max_depth=policy.max_depth,
            max_nodes=policy.max_nodes,
            max_copied=MAX_COPIED if self.copy and policy.max_nodes > 0 else 0,
            draft_vocab=0 if self.full_head else base.draft_vocab,
            draft_head_type=SAME if self.full_head else base.draft_head_type,
        )


@dataclass(frozen=True, slots=True)
class OurArm:
    """This runtime with one policy."""

    name: str
    setup: Setup
    kind: str = "ours"

    @staticmethod
    def of(choice: OurChoice, base: SessionOptions, profile: Profile | None, task: str) -> OurArm:
        """
        Args:
            task: of the profile, for policies whose name says TASK.
        """
        return OurArm(choice.name, Setup(choice.options(base), choice.policy.replace("TASK", task), choice.copy, profile))

    def open(self) -> Worker:
        return Worker(self.name, self.setup)


# -- servers


@dataclass(frozen=True, slots=True)
class StockSetting:
    """How stock llama.cpp drafts with the MTP head; the defaults are its own."""

    n_max: int = 3
    p_min: float = 0.0
    draft_sampling: bool = True  # drafts are sampled where they are computed
    backend_sampling: bool = False  # the text, too
    lookup: bool = False  # text that stood before is looked up as well

    @property
    def name(self) -> str:
        marks = [f"stock mtp:{self.n_max}"]
        marks += [f"p{self.p_min:g}"] if self.p_min else []
        marks += [] if self.draft_sampling else ["-dbs"]
        marks += ["+bs"] if self.backend_sampling else []
        marks += ["+ngram"] if self.lookup else []
        return " ".join(marks)

    @property
    def arguments(self) -> tuple[str, ...]:
        drafts = "--spec-draft-backend-sampling" if self.draft_sampling else "--no-spec-draft-backend-sampling"
        return (
            "--spec-type", "draft-mtp,ngram-mod" if self.lookup else "draft-mtp",
            "--spec-draft-n-max", str(self.n_max),
            "--spec-draft-p-min", str(self.p_min),
            drafts,
            *(("--backend-sampling",) if self.backend_sampling else ()),
        )  # fmt: skip


def sweep(effort: str) -> list[StockSetting]:
    """Settings among which stock's best one is looked for: "full", "quick", or none at all for "default"."""
    if effort == "default":
        return []
    if effort == "quick":
        return [StockSetting(n, p) for p in (0.0, 0.75) for n in range(1, 5)]
    grid = [(n, p) for p in (0.0, 0.6, 0.75) for n in range(1, 7)]
    return [
        *(StockSetting(n, p, drafts, text) for drafts in (True, False) for text in (False, True) for n, p in grid),
        *(StockSetting(n, p, lookup=True) for n, p in grid),
    ]


@dataclass(frozen=True, slots=True)
class ServerArm:
    """An external server.

    Args:
        command: program and arguments, host and port left out.
        model: the file.
        eog: tokens that end a text.
    """

    name: str
    command: tuple[str, ...]
    model: Path
    eog: frozenset[int] = field(default_factory=frozenset)
    kind: str = "stock"

    def open(self) -> Server:
        return Server(self.name, self.command, self.model, self.eog)


@dataclass(frozen=True, slots=True)
class Serving:
    """What every server is told, so that it decodes under the same conditions as this runtime.

    Args:
        mtp_model: the file with the MTP head, where it is another one.
        n_gpu_layers: None for all.
    """

    model: Path
    mtp_model: Path | None
    n_ctx: int
    n_threads: int
    n_gpu_layers: int | None
    eog: frozenset[int]

    def stock(self, binary: Path, setting: StockSetting | None, extra: tuple[str, ...] = ()) -> ServerArm:
        """Stock llama-server; plain without a setting."""
        threads = str(self.n_threads)
        command = (*self._common(binary), "-tb", threads, "-ub", "512")
        command += ("-np", "1", "--cache-ram", "0", "--ctx-checkpoints", "0", "-fit", "off")
        if setting is not None:
            command += (*setting.arguments, "-td", threads)
            command += ("--spec-draft-model", str(self.mtp_model)) if self.mtp_model else ()
        return ServerArm(setting.name if setting else STOCK_PLAIN, (*command, *extra), self.model, self.eog)

    def peer(self, name: str, command: tuple[str, ...]) -> ServerArm:
        """Another server, whose further arguments are the user's affair."""
        return ServerArm(name, (*self._common(Path(command[0])), "-np", "1", *command[1:]), self.model, self.eog, "peer")

    def _common(self, binary: Path) -> tuple[str, ...]:
        # forks know no "all"
        layers = "999" if self.n_gpu_layers is None else str(self.n_gpu_layers)
        return (str(binary), "-m", str(self.model), "-c", str(self.n_ctx), "-t", str(self.n_threads), "-ngl", layers)


def names_of(arms: Collection[Arm]) -> Iterator[str]:
    """Their names, each of which has to be another one: figures are kept by name."""
    seen: set[str] = set()
    for arm in arms:
        if arm.name in seen:
            raise UsageError(f"two arms are called '{arm.name}'; give each another name.")
        seen.add(arm.name)
        yield arm.name
