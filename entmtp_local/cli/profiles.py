"""The profile of a loaded model: the one that is kept, or a quick calibration where none fits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from entmtp_local.bench import workloads
from entmtp_local.calibration.calibrate import QUICK, Interrupted, Say, calibrate, key_of, profile_path
from entmtp_local.calibration.prompts import calibration_prompts, prompt_tokens
from entmtp_local.chat.interrupt import Interrupt
from entmtp_local.chat.model_template import template_of
from entmtp_local.errors import ProfileError, visible
from entmtp_local.files import user_cache
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.speculative.cost import is_disturbed
from entmtp_local.speculative.profile import Key, Profile
from entmtp_local.speculative.sampling import SamplingOptions

#: What chances are fitted to, where the user does not say: llama.cpp's own default.
TEMPERATURE = 0.8


# By file and key: the file as it was (modified at, bytes; None for none), and the profile. Policies change while a chat goes on,
# and a profile that cannot be kept must not be measured for each.
_loaded: dict[tuple[Path, Key], tuple[tuple[int, int] | None, Profile]] = {}


def profile_folder() -> Path:
    """Where profiles are kept."""
    return user_cache() / "entmtp-local" / "profiles"


def profile_for(
    session: Session, options: SessionOptions, info: ModelInfo, given: Path | None, note: Callable[[str], None]
) -> Profile:
    """The profile of a session.

    Args:
        given: a file that the user named; where it does not fit, `note` says why and the kept one is taken.
        note: tells the user.
    Raises: click.Abort at Ctrl-C, ProfileError where there is no such file.
    """
    key = key_of(session, options)
    kept = profile_path(profile_folder(), options.model_path, key)
    if given is not None and not given.is_file():
        if given.exists():
            raise ProfileError(
                f"the profile {given} is no regular file; name one that entmtp-local calibrate MODEL --out FILE wrote."
            )
        raise ProfileError(f"there is no profile {given}; entmtp-local calibrate MODEL --out {given} writes one.")
    for path in (given, kept):
        if path is None:
            continue
        state, profile = _loaded.get((path, key), (None, None))
        if profile is not None and state == _state(path):
            return profile
        if path == given or os.path.exists(path):
            try:
                profile = Profile.load(path, key)
                _loaded[path, key] = (_state(path), profile)
                return profile
            except ProfileError as error:
                note(str(error))
    note("first use of this model here: measuring for some seconds what drafts cost and bring; it is kept for later starts.")
    prompts = {}
    template = template_of(info, session)
    for task, some in calibration_prompts(workloads.NAMES, QUICK.n_prompts).items():
        ids = [prompt_tokens(session, template, prompt) for prompt in some]
        # a small context has no room for long prompts and the trees that are drafted behind them
        fitting = [each for each in ids if 0 < len(each) < session.n_ctx - 2 * QUICK.n_nodes]
        if fitting:
            prompts[task] = fitting
    with Interrupt() as interrupt, progress() as say:
        try:
            profile, _ = calibrate(session, key, prompts, SamplingOptions(temp=TEMPERATURE), QUICK, say, interrupt)
        except Interrupted:
            raise click.Abort from None
    session.clear()
    _loaded[kept, key] = (_state(kept), profile)
    if not prompts:
        note("nothing is known of its drafts yet, because nothing fits into the context; this is not kept.")
        return profile
    if is_disturbed(profile.costs):
        note(
            "something else ran meanwhile, so what was measured is not kept: the next start measures again, and "
            "entmtp-local calibrate MODEL more thoroughly."
        )
        return profile
    if not profile.tasks:
        note("no text was long enough to learn from, so only costs are known; entmtp-local calibrate MODEL takes its time.")
    try:
        profile.save(kept)
    except OSError as error:
        note(f"the profile cannot be kept in {kept.parent} ({error.strerror or error}): the next start measures again.")
    _loaded[kept, key] = (_state(kept), profile)
    return profile


def _state(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@contextmanager
def progress(*, lines: bool = False) -> Iterator[Say]:
    """A progress bar on a terminal.

    Args:
        lines: elsewhere, a line for each twentieth; nothing otherwise.
    """
    if not sys.stderr.isatty():
        told = -1

        def tell(share: float, what: str) -> None:
            nonlocal told
            if lines and int(20 * share) > told:
                told = int(20 * share)
                click.echo(f"calibrating, {100 * share:.0f} %: {visible(what)}", err=True)

        yield tell
        return
    # how long it takes depends on where texts end and on what an interrupted run has left
    with click.progressbar(length=1000, label="calibrating", file=sys.stderr, show_eta=False, show_percent=True) as bar:

        def say(share: float, what: str) -> None:
            bar.label = f"calibrating ({visible(what)})"
            bar.update(max(0, int(1000 * share) - bar.pos))

        yield say
