"""What the commands share: their options, and the checks that need no loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from entmtp_local.chat.interrupt import Interrupt
from entmtp_local.cli.abilities import default_policy
from entmtp_local.cli.machine import (
    MAX_THREADS,
    N_CELLS,
    available_memory,
    checkpoint_bytes,
    largest_context,
    memory_needed,
    memory_on_host,
    most_checkpoint_bytes,
    readable_size,
)
from entmtp_local.cli.models import find_model
from entmtp_local.cli.profiles import profile_for
from entmtp_local.errors import EntMTPError, ModelFileError, UsageError
from entmtp_local.hub.cache import ModelFiles
from entmtp_local.native import api as native
from entmtp_local.native import library
from entmtp_local.native.model_file import ModelInfo, check_pair, read_model
from entmtp_local.native.sampler import check_grammar
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.native.timing import warm_up
from entmtp_local.speculative.copying import MAX_COPIED
from entmtp_local.speculative.draft_vocab import DRAFT_HEAD_TYPES, SAME
from entmtp_local.speculative.entmtp import EntMTP
from entmtp_local.speculative.policy import COMMON, KNOWN, drafted_by, parse_policy, sizes_of
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.sampling import MAX_SEED, SamplingOptions, model_defaults, parse_bias
from entmtp_local.speculative.verify import ACCEPTANCES, STRICT, AcceptanceRule, Strict, parse_acceptance

DEFAULT_N_CTX = 4096

# The engine's smallest choice, which is also the step of larger ones.
MIN_DRAFT_VOCAB = native.VOCAB_STEP

# Far above what any model is trained for, far below where llama.cpp's 32-bit counts end.
MAX_N_CTX = 2**27

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Options:
    """The shared options as the user gave them; None where nothing was given."""

    model: str | None
    policy: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    mtp_model: Path | None = None
    draft_vocab: int | None = None
    draft_head_type: str | None = None
    copy: bool = True
    acceptance: str = Strict.name
    profile: Path | None = None
    verbose: bool = False
    debug: bool = False
    max_tokens: int | None = None
    temp: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    grammar_file: Path | None = None
    json_schema: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is known before the model is loaded.

    Args:
        info: of the model's file.
        policy: what to draft.
        rule: which drafted tokens are accepted.
        sampling: the model's defaults, overridden by the command line.
        session: how to load it.
        notices: sentences the user should see once.
        profile: the user's own profile.
    """

    info: ModelInfo
    policy: Policy
    rule: AcceptanceRule
    sampling: SamplingOptions
    session: SessionOptions
    notices: tuple[str, ...]
    profile: Path | None = None


def _parse_biases(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[int, float], ...]:
    try:
        return tuple(parse_bias(value) for value in values)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def parse_draft_vocab(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A number of tokens; 0 for full, None for auto."""
    names = {"auto": None, "full": 0}
    if value in names:
        return names[value]
    if value.isascii() and value.isdigit() and MIN_DRAFT_VOCAB <= int(value) < 2**31:
        return int(value)
    raise click.BadParameter(f"{value!r} is not auto, full, or a number from {MIN_DRAFT_VOCAB}.", ctx, param)


HEAD_TYPES = "|".join(("auto", SAME, *DRAFT_HEAD_TYPES))


def parse_draft_head_type(ctx: click.Context, param: click.Parameter, value: str) -> str | None:
    """The name of a type, or SAME; None for auto."""
    for name in HEAD_TYPES.split("|"):
        if value.lower() == name.lower():
            return None if name == "auto" else name
    raise click.BadParameter(f"{value!r} is none of {HEAD_TYPES.replace('|', ', ')}.", ctx, param)


_MODEL_OPTIONS = (
    click.option(
        "--policy",
        metavar="POLICY",
        shell_complete=lambda ctx, param, word: [name for name in COMMON if name.startswith(word)],
        help=f"What to draft at each step: {KNOWN}. "
        "Default: throughput where trees can be verified, chain:3 where only chains can, off without an MTP head.",
    ),
    click.option(
        "-c",
        "--ctx",
        "n_ctx",
        type=click.IntRange(16, MAX_N_CTX),
        metavar="N",
        help=f"Tokens of context. Default: {DEFAULT_N_CTX}, or what the model was trained for if that is less.",
    ),
    click.option(
        "--threads",
        "n_threads",
        type=click.IntRange(1, MAX_THREADS),
        metavar="N",
        help="CPU threads. Default: one per physical core.",
    ),
    click.option(
        "--gpu-layers",
        "n_gpu_layers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Layers to keep on the GPU. Default: all.",
    ),
    click.option(
        "--mtp-model",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A file with the MTP head, where the model's own file has none.",
    ),
    click.option(
        "--draft-vocab",
        callback=parse_draft_vocab,
        default="auto",
        metavar="N|auto|full",
        help="Draft from the first N tokens of the vocabulary, or from all: fewer are faster to draft, and never change the "
        "text. Default: auto, as the text needs.",
    ),
    click.option(
        "--draft-head-type",
        callback=parse_draft_head_type,
        default="auto",
        metavar=HEAD_TYPES,
        help="Draft from a copy of the output matrix in a smaller type, or from it as it is. Default: auto, Q8_0 where it has "
        "16 bits a weight and a large vocabulary.",
    ),
    click.option(
        "--copy/--no-copy",
        default=True,
        help="Beside the policy's drafts, draft what followed the last tokens where they stood earlier. Default: --copy.",
    ),
    click.option(
        "--acceptance",
        type=click.Choice(ACCEPTANCES),
        default=Strict.name,
        help="Which drafted tokens are kept: strict, those that the sampler chooses itself; typical, all that the model finds "
        "probable enough, which changes the distribution of the text. Default: strict.",
    ),
    click.option(
        "--profile",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="What entmtp-local calibrate wrote. Default: the one in the cache folder, which the first use writes.",
    ),
    click.option("--verbose", is_flag=True, help="Show llama.cpp's own log and the figures of each answer."),
    click.option("--debug", is_flag=True, help="Show a traceback when something fails."),
)

_SAMPLING_OPTIONS = (
    click.option(
        "-n",
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Most tokens to generate. Default: until the model ends or the context is full.",
    ),
    click.option("--temp", type=float, metavar="T", help="Temperature; 0 takes the most probable token. Default: 0.8."),
    click.option("--top-k", type=int, metavar="K", help="Keep the K most probable tokens, 0 for all. Default: 40."),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        help="Keep the most probable tokens up to this probability mass, 1 for all. Default: 0.95.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="P",
        help="Drop tokens below this share of the top probability, 0 for none. Default: 0.05.",
    ),
    click.option("--repeat-penalty", type=float, metavar="X", help="Make recent tokens less likely, 1 for off. Default: 1."),
    click.option("--presence-penalty", type=float, metavar="X", help="Subtract from the logits of recent tokens. Default: 0."),
    click.option(
        "--seed",
        type=click.IntRange(-1, MAX_SEED),
        metavar="N",
        help="Seed of the random numbers; -1 draws one. Default: -1.",
    ),
    click.option(
        "--logit-bias",
        callback=_parse_biases,
        multiple=True,
        metavar="ID+X",
        help="Add X to the logit of token ID; also ID-X, and ID-inf to forbid it. May be repeated.",
    ),
    click.option("--grammar", metavar="GBNF", help="A grammar that the text must follow."),
    click.option("--grammar-file", type=click.Path(path_type=Path), metavar="FILE", help="The same, read from a file."),
    click.option("--json-schema", metavar="JSON", help="A JSON schema that the text must follow; {} for any object."),
)


def model_options(command: _Command) -> _Command:
    """Add the options that choose a model and how it is loaded."""
    return _with(_MODEL_OPTIONS, command)


def sampling_options(command: _Command) -> _Command:
    """Add the options that choose how tokens are sampled and where the text ends."""
    return _with(_SAMPLING_OPTIONS, command)


def prepare(options: Options) -> Plan:
    """Check everything that can be checked before the model is loaded.

    Raises: UsageError or ModelFileError, naming what to change.
    """
    files = find_model(options.model, options.mtp_model)
    info = read_model(files.path)
    sidecar = None
    if files.mtp_path is not None:
        sidecar = read_model(files.mtp_path, role="mtp")
        check_pair(info, sidecar)
    policy = parse_policy(default_policy(info, sidecar or info) if options.policy is None else options.policy)
    sampling = sampling_from(options, info)
    rule = parse_acceptance(options.acceptance, sampling)
    check_grammar(sampling)
    n_ctx = options.n_ctx or default_n_ctx(info)
    check_memory(info, sidecar, n_ctx, policy, options.n_gpu_layers, options.draft_vocab, options.draft_head_type)
    notices = []
    if not rule.lossless and policy.max_nodes == 0:
        rule = STRICT
        notices.append("nothing is drafted, so that typical acceptance changes nothing.")
    elif not rule.lossless:
        notices.append("typical acceptance: the output distribution is changed, the text is no longer the model's own.")
    elif options.acceptance != rule.name:
        notices.append("at temperature 0 typical acceptance is the same as strict acceptance, which is used.")
    if beyond := beyond_training(info, n_ctx):
        notices.append(beyond)
    session = SessionOptions(
        model_path=files.path,
        mtp_path=files.mtp_path,
        n_ctx=n_ctx,
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
        max_depth=policy.max_depth,
        max_nodes=policy.max_nodes,
        max_copied=MAX_COPIED if options.copy and policy.max_nodes > 0 else 0,
        draft_vocab=options.draft_vocab,
        draft_head_type=options.draft_head_type,
        verbose=options.verbose,
    )
    return Plan(info, policy, rule, sampling, session, tuple(notices), options.profile)


def open_session(plan: Plan) -> Session:
    """Load the model; Ctrl-C ends that too.

    Raises: click.Abort at Ctrl-C, and what Session.open raises.
    """
    with Interrupt() as interrupt:
        try:
            session = Session.open(plan.session, interrupt)
        except EntMTPError:
            if interrupt():
                raise click.Abort from None
            raise
    if interrupt():
        session.close()
        raise click.Abort
    return session


def ready_policy(plan: Plan, session: Session, note: Callable[[str], None]) -> Policy:
    """The policy as the session can follow it, with the profile that it wants; `note` tells the user what is measured for it."""
    policy = plan.policy.within(session.limits)
    opened, wanted = plan.session, plan.policy
    if policy is not wanted and (wanted.max_depth > opened.max_depth or wanted.max_nodes > opened.max_nodes):
        how = "less than" if policy.name == wanted.name else f"{policy.name} instead of"
        limits = session.limits
        deep = f", {limits.max_depth} deep," if limits.max_depth < limits.max_nodes else ""
        note(
            f"drafting {how} {wanted.name}: the model was opened for {limits.max_nodes} drafted tokens a step{deep} at most; "
            f"start with --policy {wanted.name} for more."
        )
    elif policy.name != wanted.name and not session.notices:
        note(f"drafting {policy.name} instead of {wanted.name}: {session.limits.reason}.")
    if policy.needs_profile:
        profile = profile_for(session, plan.session, plan.info, plan.profile, note)
        if profile.head is not None:
            session.adopt_draft_head(profile.head)
        policy.calibrated(profile)
    warm_up(session, sizes_of(policy), drafted_by(policy))
    return policy


def plain_step(plan: Plan, session: Session, policy: Policy) -> float | None:
    """Seconds of a step that drafts nothing, as the profile has them; None where the policy needs no profile."""
    if not policy.needs_profile:
        return None
    costs = profile_for(session, plan.session, plan.info, plan.profile, lambda _: None).costs
    return costs.verify_seconds(1) + costs.step


def open_for_drafts(files: ModelFiles, options: Mapping[str, Any]) -> tuple[ModelInfo, SessionOptions]:
    """How to open a model that is to be calibrated.

    Args:
        options: with n_ctx, n_threads, n_gpu_layers, draft_vocab, draft_head_type and verbose.
    Raises: UsageError or ModelFileError, naming what to change.
    """
    info = read_model(files.path)
    sidecar = None
    if files.mtp_path is not None:
        sidecar = read_model(files.mtp_path, role="mtp")
        check_pair(info, sidecar)
    policy = EntMTP()  # of the largest trees that are measured
    drafts = (options["draft_vocab"], options["draft_head_type"])
    check_memory(info, sidecar, options["n_ctx"], policy, options["n_gpu_layers"], *drafts)
    return info, SessionOptions(
        model_path=files.path,
        mtp_path=files.mtp_path,
        n_ctx=options["n_ctx"],
        n_threads=options["n_threads"],
        n_gpu_layers=options["n_gpu_layers"],
        max_depth=policy.max_depth,
        max_nodes=policy.max_nodes,
        draft_vocab=options["draft_vocab"],
        draft_head_type=options["draft_head_type"],
        verbose=options["verbose"],
    )


def default_n_ctx(info: ModelInfo) -> int:
    """Tokens of context where -c does not say."""
    return min(DEFAULT_N_CTX, info.n_ctx_train or DEFAULT_N_CTX)


def beyond_training(info: ModelInfo, n_ctx: int) -> str:
    """What to say of a context that the model was not trained for; "" where it was."""
    if not info.n_ctx_train or n_ctx <= info.n_ctx_train:
        return ""
    return f"-c {n_ctx} is more than the {info.n_ctx_train} tokens this model was trained for: expect worse text beyond them."


def sampling_from(options: Options, info: ModelInfo) -> SamplingOptions:
    """llama.cpp's defaults, replaced by the model file's, replaced by the command line's."""
    if options.grammar_file is not None and options.grammar is not None:
        raise UsageError("--grammar and --grammar-file exclude each other; give one of them.")
    grammar = options.grammar
    if options.grammar_file is not None:
        grammar = read_text(options.grammar_file, "the grammar file")
    given = {
        "temp": options.temp,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repeat_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "seed": None if options.seed == -1 else options.seed,
        "logit_bias": options.logit_bias,
        "grammar": grammar,
        "json_schema": options.json_schema,
    }
    values: dict[str, Any] = dict(model_defaults(info.sampling))
    values.update({name: value for name, value in given.items() if value is not None})
    return SamplingOptions(**values)


def read_text(path: Path, what: str) -> str:
    """Read a text file the user named.

    Raises: UsageError when it cannot be read or is not UTF-8.
    """
    try:
        return decode_text(path.read_bytes(), f"{what} {path}")
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror or error}.") from None


def decode_text(data: bytes, what: str) -> str:
    """Decode what the user gave.

    Raises: UsageError when it is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it first, for instance with iconv."
        ) from None


def check_memory(
    info: ModelInfo,
    sidecar: ModelInfo | None,
    n_ctx: int,
    policy: Policy,
    n_gpu_layers: int | None,
    draft_vocab: int | None,
    draft_head_type: str | None,
) -> None:
    """Refuse a context that main memory cannot hold, before minutes are spent on loading.

    Raises: UsageError naming the largest context that fits, ModelFileError when none does.
    """
    if _uses_gpu(n_gpu_layers):
        # The GPU's memory decides, and llama.cpp refuses what does not fit there by itself.
        return
    available = available_memory()

    def needed(n_tokens: int) -> int:
        return memory_needed(info, sidecar, n_tokens, policy, draft_vocab, draft_head_type)

    if available is None or needed(n_ctx) <= available:
        return
    largest = largest_context(needed, available)
    if largest is None:
        raise ModelFileError(
            f"{info.path} needs {readable_size(needed(N_CELLS))} of memory and {readable_size(available)} are available; "
            "close other programs or use a smaller quantisation."
        )
    raise UsageError(
        f"a context of {n_ctx} tokens needs {readable_size(needed(n_ctx))} of memory and "
        f"{readable_size(available)} are available; the largest that fits is -c {largest}."
    )


def with_checkpoints(plan: Plan) -> Plan:
    """The plan of a chat, which keeps copies of the model's state to go back to: as many as main memory has room for."""
    session, info = plan.session, plan.info
    one, most = checkpoint_bytes(info, session.n_ctx), most_checkpoint_bytes(info, session.n_ctx)
    available = available_memory()
    if not one or available is None:
        return plan
    sidecar = read_model(session.mtp_path, role="mtp") if session.mtp_path else None
    needed = memory_needed(info, sidecar, session.n_ctx, plan.policy, session.draft_vocab, session.draft_head_type)
    if _uses_gpu(session.n_gpu_layers):
        needed = memory_on_host(info, needed, session.n_gpu_layers)
    room = min(most, max(0, available - needed))
    notices = plan.notices
    if room // one < most // one:
        how = f"{room // one} of up to {most // one} copies" if room >= one else "no copy"
        notices += (
            f"main memory has room for {how} of the model's state, {readable_size(one)} each: "
            "going back further with /regen, /undo or /edit reads the text again.",
        )
    return replace(plan, session=replace(session, checkpoint_bytes=room), notices=notices)


def _uses_gpu(n_gpu_layers: int | None) -> bool:
    return n_gpu_layers != 0 and bool(library.load().llama_supports_gpu_offload())


def _with(options: tuple[Callable[[_Command], _Command], ...], command: _Command) -> _Command:
    # Decorators apply from the last to the first, and --help lists them in the order of application.
    for option in reversed(options):
        command = option(command)
    return command
