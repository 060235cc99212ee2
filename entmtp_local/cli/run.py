"""`entmtp-local run`: one completion of a text, streamed or as one JSON object."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from entmtp_local.chat.interrupt import Interrupt
from entmtp_local.chat.stream import TextStream, dimmed, figures, without_control
from entmtp_local.cli.models import complete_model
from entmtp_local.cli.options import (
    Options,
    Plan,
    decode_text,
    model_options,
    open_session,
    prepare,
    read_text,
    ready_policy,
    sampling_options,
)
from entmtp_local.engine import Generation, generate
from entmtp_local.errors import UsageError
from entmtp_local.native.session import Session
from entmtp_local.speculative.copying import CopyDrafter

EXIT_INTERRUPTED = 130


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("-p", "--prompt", metavar="TEXT", help="The text to continue.")
@click.option("-f", "--file", type=click.Path(path_type=Path), metavar="FILE", help="Read it from a file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@sampling_options
@model_options
def run(model: str | None, prompt: str | None, file: Path | None, as_json: bool, **shared: Any) -> None:
    """Continue a text, as it is: no chat template is applied.

    MODEL is the path of a .gguf file, or a model of the hub, OWNER/NAME:QUANT, which is fetched where it is not here; without it
    the shipped model is used. The text comes from -p, from -f, or from standard input; one newline at the end of a file or of
    standard input is dropped. Only the new text is printed, and in a pipe nothing is added to it. Ctrl-C ends it early with exit
    code 130.

    \b
    Examples:
      entmtp-local run -p "def fibonacci(n):" -n 200
      entmtp-local run model.gguf -f prompt.txt --temp 0 --json
      entmtp-local run model.gguf -p "A colour as JSON:" --json-schema "{}"
      cat prompt.txt | entmtp-local run owner/model-GGUF:Q4_K_M
    """
    options = Options(model=model, **shared)
    text = _prompt_text(prompt, file)
    plan = prepare(options)
    sys.exit(_complete(plan, text, options, as_json=as_json))


def _prompt_text(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise UsageError("-p and -f exclude each other; give one of them.")
    if prompt is not None:
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("the prompt given with -p is not valid UTF-8 text.") from None
        return prompt
    if file is not None and str(file) != "-":
        return read_text(file, "the prompt file").removesuffix("\n")
    if sys.stdin.isatty():
        raise UsageError("there is no text to continue; give -p TEXT or -f FILE, or pipe it in.")
    return decode_text(sys.stdin.buffer.read(), "standard input").removesuffix("\n")


def _complete(plan: Plan, prompt: str, options: Options, *, as_json: bool) -> int:
    sampling = plan.sampling.with_seed()
    t_start = time.perf_counter()
    with open_session(plan) as session:
        load_seconds = time.perf_counter() - t_start
        for notice in (*plan.notices, *session.notices):
            _note(notice)
        ids = session.tokenize(prompt, add_special=True, parse_special=True)
        if not ids:
            raise UsageError("the text to continue is empty and this model has no token to begin a text with; give some text.")
        text = TextStream()
        with Interrupt() as interrupt, session.new_sampler(sampling) as sampler:
            generation = generate(
                session,
                ids,
                policy=ready_policy(plan, session, _note),
                rule=plan.rule,
                sampler=sampler,
                max_tokens=options.max_tokens or session.n_ctx,
                stop=interrupt,
                copies=CopyDrafter() if options.copy else None,
            )
            for step in generation:
                for token in step.tokens:
                    shown = text.feed(session.piece(token))
                    if not as_json:
                        _write(shown)
        if as_json:
            print(json.dumps(_as_json(plan, session, generation, text.text, load_seconds, sampling.seed)))
        else:
            _end(generation, text.text, session.n_ctx, options)
    return EXIT_INTERRUPTED if generation.finish_reason == "interrupted" else 0


def _as_json(
    plan: Plan, session: Session, generation: Generation, text: str, load_seconds: float, seed: int | None
) -> dict[str, Any]:
    stats = generation.stats.as_json()
    return {
        "text": text,
        "tokens": generation.tokens,
        "finish_reason": generation.finish_reason,
        **stats,
        "seconds": {"load": load_seconds, **stats["seconds"]},
        "seed": seed,
        "policy": generation.policy.name,
        "policy_requested": plan.policy.name,
        "acceptance": generation.rule.name,
        "lossless": generation.rule.lossless,
        "draft_vocab": session.n_draft_vocab,
        "model": str(plan.session.model_path),
        "mtp_model": str(plan.session.mtp_path) if plan.session.mtp_path else None,
        "engine": session.engine_info,
        "device": session.device,
    }


def _end(generation: Generation, text: str, n_ctx: int, options: Options) -> None:
    if sys.stdout.isatty() and not text.endswith("\n"):
        _write("\n")
    if generation.finish_reason == "stop" and not generation.tokens:
        _note("the model ended the text at once.")
    if generation.finish_reason == "context":
        _note(f"the text was cut: the context of {n_ctx} tokens is full; use a larger -c.")
    if sys.stderr.isatty() or options.verbose:
        _note(figures(generation.stats, generation.rule))


def _write(text: str) -> None:
    if text:
        sys.stdout.write(without_control(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(dimmed(text, sys.stderr) + "\n")
