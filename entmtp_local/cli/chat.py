"""`entmtp-local chat`: talk with a model on a terminal or through a pipe."""

from __future__ import annotations

import sys
from typing import Any

import click

from entmtp_local.chat.conversation import Conversation
from entmtp_local.chat.model_template import template_of
from entmtp_local.chat.repl import Repl, Terminal
from entmtp_local.cli.models import complete_model
from entmtp_local.cli.options import Options, model_options, open_session, prepare, ready_policy, sampling_options
from entmtp_local.speculative.copying import CopyDrafter


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@sampling_options
@model_options
def chat(model: str | None, **shared: Any) -> None:
    """Talk with a model.

    MODEL is the path of a .gguf file, or a model of the hub, OWNER/NAME:QUANT, which is fetched where it is not here; without it
    the shipped model is used. /help lists the commands. Ctrl-C stops an answer; at the prompt, pressed twice, it leaves, and so
    does Ctrl-D.

    In a pipe each line of standard input is one message of the same conversation, and each answer is written to
    standard output as it is, ended by a newline; everything else goes to standard error.

    \b
    Examples:
      entmtp-local chat
      entmtp-local chat model.gguf --temp 0.6 -c 16384
      entmtp-local chat owner/model-GGUF:Q4_K_M
      echo "What is MTP?" | entmtp-local chat model.gguf
    """
    options = Options(model=model, **shared)
    plan = prepare(options)
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
        repl = Repl(
            session=session,
            conversation=conversation,
            policy=ready_policy(plan, session, terminal.note),
            rule=plan.rule,
            sampling=plan.sampling,
            max_tokens=options.max_tokens,
            stop_texts=template.stop_texts,
            terminal=terminal,
            copies=CopyDrafter() if options.copy else None,
        )
        code = repl.run()
    sys.exit(code)
