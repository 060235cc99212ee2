"""`entmtp-local chat`: talk with a model on a terminal or through a pipe."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from entmtp_local.calibration.calibrate import fingerprint
from entmtp_local.chat.conversation import Conversation
from entmtp_local.chat.interrupt import Interrupt, ended_by_signals
from entmtp_local.chat.keeping import Keeper
from entmtp_local.chat.model_template import template_of
from entmtp_local.chat.repl import Repl
from entmtp_local.chat.settings import OVERFLOWS, Settings
from entmtp_local.chat.store import Store
from entmtp_local.chat.terminal import Terminal
from entmtp_local.cli.machine import available_memory
from entmtp_local.cli.models import complete_model
from entmtp_local.cli.options import (
    Options,
    Plan,
    model_options,
    open_session,
    plain_step,
    prepare,
    ready_policy,
    sampling_options,
    with_checkpoints,
)
from entmtp_local.errors import UsageError
from entmtp_local.files import check_writable
from entmtp_local.native.sampler import check_grammar
from entmtp_local.native.session import Session
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.sampling import SamplingOptions


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--continue", "continues", is_flag=True, help="Go on with the conversation that was used last.")
@click.option(
    "--load",
    "name",
    metavar="NAME",
    shell_complete=lambda *call: [name for name in Store.default().names() if name.startswith(call[2])],
    help="Go on with a conversation that was kept; /sessions lists them.",
)
@click.option("--no-save", is_flag=True, help="Keep nothing of this conversation, nor of what is typed.")
@click.option("--system", metavar="TEXT", help="What the model is told before the first message.")
@click.option(
    "--overflow",
    type=click.Choice(OVERFLOWS),
    default=OVERFLOWS[0],
    help="When the conversation fills the context: stop, and say so; or drop its oldest questions and answers, and read what is "
    "left again. Default: stop.",
)
@click.option("--trace-file", type=click.Path(path_type=Path), metavar="FILE", help="Write how each token came, as JSON.")
@sampling_options
@model_options
def chat(
    model: str | None,
    continues: bool,
    name: str | None,
    no_save: bool,
    system: str | None,
    overflow: str,
    trace_file: Path | None,
    **shared: Any,
) -> None:
    """Talk with a model.

    MODEL is the path of a .gguf file, or a model of the hub, OWNER/NAME:QUANT, which is fetched where it is not here; without it
    the shipped model is used. /help lists the commands. Ctrl-C stops an answer; at the prompt it clears the line, and
    pressed twice where there is none it leaves, as Ctrl-D does. Conversations are kept in
    entmtp-local/chats in your data folder, XDG_DATA_HOME.

    In a pipe each line of standard input is one message of the same conversation, and each answer is written to
    standard output as it is, ended by a newline; everything else goes to standard error. Nothing is kept then, unless
    --continue or --load says so.

    \b
    Examples:
      entmtp-local chat
      entmtp-local chat --continue
      entmtp-local chat model.gguf --temp 0.6 -c 16384 --overflow drop
      entmtp-local chat owner/model-GGUF:Q4_K_M
      echo "What is MTP?" | entmtp-local chat model.gguf
    """
    options = Options(model=model, **shared)
    if no_save and (continues or name):
        raise UsageError("--no-save keeps nothing, so that there is nothing to go on with; leave it out.")
    if continues and name:
        raise UsageError("--continue goes on with the conversation used last and --load with another one: give one of them.")
    # before anything is loaded or measured
    if name is not None:
        Store.default().load(name)
    elif continues and not Store.default().names():
        raise UsageError("there is no conversation to go on with yet; start one without --continue.")
    if trace_file is not None:
        check_writable(trace_file)
    plan = with_checkpoints(prepare(options))
    terminal = Terminal(sys.stdin, sys.stdout, sys.stderr, show_stats=sys.stderr.isatty() or options.verbose)
    with open_session(plan) as session:
        template = template_of(plan.info, session)
        for notice in (*plan.notices, *session.notices, template.notice):
            if notice:
                terminal.note(notice)
        conversation = Conversation(
            template,
            lambda text, add_special: session.tokenize(text, add_special=add_special, parse_special=True),
        )

        def ready(policy: Policy) -> tuple[Policy, float | None]:
            # Ctrl-C never cuts through a pass of the engine
            with Interrupt() as interrupt:
                chosen = ready_policy(replace(plan, policy=policy), session, terminal.note)
            if interrupt():
                raise click.Abort
            return chosen, plain_step(plan, session, chosen)

        def changed(policy: Policy) -> tuple[Policy, float | None]:
            try:
                return ready(policy)
            except click.Abort:
                raise UsageError("stopped; the policy is what it was.") from None

        def check_sampling(sampling: SamplingOptions) -> None:
            check_grammar(sampling)
            with session.new_sampler(sampling):
                pass  # the vocabulary has the tokens that it names

        policy, seconds = ready(plan.policy)
        settings = Settings(
            policy=policy,
            rule=plan.rule,
            sampling=plan.sampling,
            acceptance=plan.rule.name,
            max_tokens=options.max_tokens,
            overflow=overflow,
            copy=options.copy,
            draft_vocab=options.draft_vocab,
            plain_step=seconds,
        )
        keeps = not no_save and (terminal.interactive or continues or name is not None)
        repl = Repl(
            session=session,
            conversation=conversation,
            settings=settings,
            stop_texts=template.stop_texts,
            terminal=terminal,
            ready=changed,
            check_sampling=check_sampling,
            keeper=_keeper(plan, session, conversation, terminal) if keeps else None,
            trace_file=trace_file,
            model=str(plan.session.model_path),
            has_thinking=template.has_thinking,
            n_ctx_train=plan.info.n_ctx_train,
        )
        if terminal.interactive:
            drafts = "nothing is drafted" if policy.name == "off" else f"drafting {policy.name}"
            terminal.note(f"{plan.info.name}: {session.n_ctx} tokens of context, {drafts}.")
        if name is not None:
            repl.resume(name)
        elif continues:
            repl.resume(Store.default().names()[0])
        if system is not None:
            conversation.system = system  # of a conversation that goes on, too
        # as the terminal was, and what was said kept
        with ended_by_signals():
            code = repl.run()
    sys.exit(code)


def _keeper(plan: Plan, session: Session, conversation: Conversation, terminal: Terminal) -> Keeper:
    engine = session.engine_info
    model = _fingerprint(plan.session.model_path)
    identity = {
        "model": model,
        "mtp_model": _fingerprint(plan.session.mtp_path) if plan.session.mtp_path else "",
        "engine": " ".join((engine["source_sha256"], engine["patches_sha256"], engine["backend"])),
        "drafts": "yes" if session.limits.max_depth else "no",
    }
    about = {"fingerprint": model, "path": str(plan.session.model_path)}
    return Keeper(Store.default(), session, conversation, about, identity, terminal.note, available_memory)


def _fingerprint(path: Path) -> str:
    try:
        return fingerprint(path)
    except OSError:
        return str(path)
