"""`entmtp-local chat`: talk with a model on a terminal or through a pipe."""

from __future__ import annotations

import sys
from typing import Any

import click

from entmtp_local.chat.conversation import Conversation
from entmtp_local.chat.repl import Repl, Terminal
from entmtp_local.chat.template import ChatTemplate
from entmtp_local.cli.options import Options, model_options, open_session, prepare, ready_policy, sampling_options
from entmtp_local.native import library
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.native.session import Session
from entmtp_local.speculative.copying import CopyDrafter


@click.command()
@click.argument("model", required=False)
@sampling_options
@model_options
def chat(model: str | None, **shared: Any) -> None:
    """Talk with a model.

    MODEL is the path of a .gguf file; without it the shipped model is used. /help lists the commands. Ctrl-C stops an
    answer; at the prompt, pressed twice, it leaves, and so does Ctrl-D.

    In a pipe each line of standard input is one message of the same conversation, and each answer is written to
    standard output as it is, ended by a newline; everything else goes to standard error.
    """
    options = Options(model=model, **shared)
    plan = prepare(options)
    terminal = Terminal(sys.stdin, sys.stdout, sys.stderr, show_stats=sys.stderr.isatty() or options.verbose)
    with open_session(plan) as session:
        template = _template(plan.info, session)
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
            policy=ready_policy(plan, session),
            rule=plan.rule,
            sampling=plan.sampling,
            max_tokens=options.max_tokens,
            stop_texts=template.stop_texts,
            terminal=terminal,
            copies=CopyDrafter() if options.copy else None,
        )
        code = repl.run()
    sys.exit(code)


def _template(info: ModelInfo, session: Session) -> ChatTemplate:
    bos, eos = _edge_tokens(session)
    return ChatTemplate(
        info.chat_template or None,
        has_chatml=len(session.tokenize("<|im_start|>", add_special=False, parse_special=True)) == 1,
        bos_token=bos,
        eos_token=eos,
    )


def _edge_tokens(session: Session) -> tuple[str, str]:
    """Texts of the tokens that begin and end a text in this vocabulary, "" for none."""
    llama = library.load()
    ids = (llama.llama_vocab_bos(session.vocab), llama.llama_vocab_eos(session.vocab))
    bos, eos = (session.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else "" for token in ids)
    return bos, eos
