"""The commands against a scripted session: whole transcripts, exit codes, and no traceback ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes import FakeSession, encode, install, model_info

from entmtp_local.cli import forecast, models, options
from entmtp_local.cli.main import main
from entmtp_local.errors import EngineError, ModelFileError
from entmtp_local.native.model_file import ModelInfo


def call(arguments: Sequence[str], stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


def assert_one_line_error(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


# -- run


def test_run_streams_the_text_and_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["hello there, \N{GRINNING FACE}"], notices=["decoding plainly: a test."])
    opened = install(monkeypatch, session)
    result = call(["run", "m.gguf", "-p", "Hi"])
    assert (result.exit_code, result.stdout) == (0, "hello there, \N{GRINNING FACE}")
    assert result.stderr == "decoding plainly: a test.\n"
    assert session.prompts == [encode("Hi")]
    assert session.closed and session.samplers[0].closed
    # The policy's size is what the session is opened for: that of throughput where trees can be verified.
    assert (opened[0].max_depth, opened[0].max_nodes, opened[0].n_ctx) == (12, 15, 2048)


def test_run_json_is_one_object_with_the_documented_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["hello there, world"]))
    result = call(["run", "m.gguf", "-p", "Hi", "--json", "--seed", "7", "--policy", "chain:2"])
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.count("\n") == 1
    told = json.loads(result.stdout)
    assert set(told) >= {
        *("text", "tokens", "n_prompt", "n_generated", "finish_reason", "seconds", "tokens_per_second", "n_steps"),
        *("tokens_per_step", "accepted_per_depth", "sibling_hits", "nodes_per_step", "policy", "model", "engine", "device"),
    }
    assert set(told["seconds"]) == {"load", "prefill", "decode", "draft", "verify", "accept", "commit", "schedule"}
    assert told["engine"] == {"source_sha256": "aa", "patches_sha256": "bb", "backend": "cpu"}
    assert told["text"] == "hello there, world" and told["tokens"] == encode("hello there, world")
    assert (told["n_prompt"], told["n_generated"], told["finish_reason"]) == (2, 9, "stop")
    assert (told["policy"], told["model"], told["device"], told["seed"]) == ("chain:2", "m.gguf", "fake device", 7)
    assert told["accepted_per_depth"] == [3, 3]


def test_run_reports_the_seed_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["x"])
    install(monkeypatch, session)
    told = json.loads(call(["run", "m.gguf", "-p", "Hi", "--json", "--seed", "-1"]).stdout)
    assert told["seed"] == session.samplers[0].options.seed is not None


@pytest.mark.parametrize("from_file", [True, False])
def test_run_reads_files_and_pipes_without_their_last_newline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, from_file: bool
) -> None:
    session = FakeSession(["x"])
    install(monkeypatch, session)
    path = tmp_path / "prompt.txt"
    path.write_text("é\n\n", encoding="utf-8")
    arguments = ["run", "m.gguf", *(["-f", str(path)] if from_file else [])]
    assert call(arguments, stdin="" if from_file else "é\n\n").exit_code == 0
    assert session.prompts == [encode("é\n")]


def test_run_stops_at_max_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["abcdefgh"]))
    told = json.loads(call(["run", "m.gguf", "-p", "Hi", "--json", "-n", "4"]).stdout)
    assert (told["text"], told["n_generated"], told["finish_reason"]) == ("abcd", 4, "length")


def test_run_says_that_the_context_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["abcdefghijklmnopqrstuvwxyz"], n_ctx=20))
    result = call(["run", "m.gguf", "-p", "Hi"])
    assert result.exit_code == 0
    assert "abcdefghijklmnopqrstuvwxyz".startswith(result.stdout) and len(result.stdout) == 19
    assert result.stderr == "the text was cut: the context of 20 tokens is full; use a larger -c.\n"


def test_run_with_too_long_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["x"], n_ctx=20))
    assert_one_line_error(call(["run", "m.gguf", "-p", "y" * 30]), 1, "30 tokens", "holds 20")


@pytest.mark.parametrize("as_json", [True, False])
def test_run_interrupted_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    def interrupt_at_three(n_tokens: int) -> None:
        if n_tokens == 3:
            os.kill(os.getpid(), signal.SIGINT)

    install(monkeypatch, FakeSession(["abcdefgh"], on_token=interrupt_at_three))
    before = signal.getsignal(signal.SIGINT)
    result = call(["run", "m.gguf", "-p", "Hi", "--policy", "off", *(["--json"] if as_json else [])])
    assert result.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    if as_json:
        told = json.loads(result.stdout)
        assert (told["text"], told["finish_reason"]) == ("abcde", "interrupted")
    else:
        assert result.stdout == "abcde"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "a", "-f", "b"], ["-p and -f"]),
        (["-p", ""], ["empty"]),
        (["-f", "/does/not/exist"], ["/does/not/exist", "No such file"]),
        (["-p", "a\udcff"], ["not valid UTF-8"]),
        (["-p", "a", "--temp", "-1"], ["--temp", "0 or more"]),
        (["-p", "a", "--policy", "tree"], ["'tree'", "chain:N"]),
        (["-p", "a", "--grammar", "x", "--json-schema", "{}"], ["exclude each other"]),
        (["-p", "a", "--grammar", "x", "--grammar-file", "y"], ["exclude each other"]),
        (["-p", "a", "--json-schema", "{"], ["not valid JSON"]),
    ],
)
def test_run_usage_errors(monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]) -> None:
    opened = install(monkeypatch, FakeSession(["x"]))
    assert_one_line_error(call(["run", "m.gguf", *arguments]), 2, *words)
    assert arguments == ["-p", ""] or opened == []


def test_run_refuses_what_is_not_utf_8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeSession(["x"]))
    assert_one_line_error(call(["run", "m.gguf"], stdin=b"a\xff"), 2, "standard input", "0xff at offset 1")
    (tmp_path / "p").write_bytes(b"\x80")
    assert_one_line_error(call(["run", "m.gguf", "-f", str(tmp_path / "p")]), 2, "0x80 at offset 0")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--nope"],
        ["run", "-n", "0"],
        ["run", "-c", "many"],
        ["run", "--logit-bias", "5"],
        ["run", "--draft-vocab", "63"],
        ["run", "--draft-vocab", "most"],
        ["run", "--draft-head-type", "F16"],
        ["run", "--seed", str(2**32)],
        ["nope"],
        ["run", "a", "b"],
    ],
)
def test_wrong_command_lines_end_with_2_and_no_traceback(arguments: list[str]) -> None:
    result = call(arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: entmtp-local") and "Traceback" not in result.stderr


def test_a_bug_is_one_sentence_and_a_traceback_with_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(n_tokens: int) -> None:
        raise RuntimeError("broken")

    session = FakeSession(["x"], on_token=broken)
    install(monkeypatch, session)
    result = call(["run", "m.gguf", "-p", "Hi"])
    assert_one_line_error(result, 1, "RuntimeError: broken", "--debug")
    assert session.closed
    result = call(["run", "m.gguf", "-p", "Hi", "--debug"])
    assert result.exit_code == 1 and "Traceback" in result.stderr


def test_the_systems_refusals_are_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(n_tokens: int) -> None:
        raise OSError(28, "No space left on device")

    install(monkeypatch, FakeSession(["x"], on_token=full_disk))
    assert_one_line_error(call(["run", "m.gguf", "-p", "Hi"]), 1, "No space left on device")


# -- acceptance

NOTICE = "typical acceptance: the output distribution is changed, the text is no longer the model's own.\n"
SHORT = "typical acceptance: not the model's own distribution]\n"


def test_run_with_typical_acceptance_says_so_first_and_in_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["hello there, world"], notices=["drafting chains: a test."])
    install(monkeypatch, session)
    arguments = ["run", "m.gguf", "-p", "Hi", "--acceptance", "typical", "-c", "4096"]
    result = call([*arguments, "--json", "--policy", "chain:2"])
    assert result.exit_code == 0 and result.stderr.startswith(NOTICE) and result.stderr.count("\n") == 3
    told = json.loads(result.stdout)
    assert (told["acceptance"], told["lossless"]) == ("typical", False)
    assert told["tokens"] == encode("hello there, world") and told["accepted_per_depth"] == [3, 3]
    # what was drafted was shown to the sampler; the first token of each step it chose itself
    assert session.samplers[0].taken == [*told["tokens"][1:3], *told["tokens"][4:6], *told["tokens"][7:9]]
    install(monkeypatch, FakeSession(["hello"]))
    result = call([*arguments, "--verbose"])
    assert result.stderr.startswith(NOTICE) and result.stderr.endswith(SHORT)


@pytest.mark.parametrize("arguments", [[], ["--acceptance", "strict"], ["--acceptance", "typical", "--temp", "0"]])
def test_strict_acceptance_is_the_default_and_what_typical_is_at_temperature_0(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    session = FakeSession(["hello"])
    install(monkeypatch, session)
    result = call(["run", "m.gguf", "-p", "Hi", "--json", "--verbose", *arguments])
    told = json.loads(result.stdout)
    assert (told["acceptance"], told["lossless"]) == ("strict", True)
    assert session.samplers[0].taken == []
    same = "at temperature 0 typical acceptance is the same as strict acceptance, which is used.\n"
    assert result.stderr == (same if "typical" in arguments else "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grammar", "root ::= [a-z]+"], "a grammar or a JSON schema"),
        (["--json-schema", "{}"], "a grammar or a JSON schema"),
        (["--repeat-penalty", "1.1"], "--repeat-penalty 1 and --presence-penalty 0"),
    ],
)
@pytest.mark.parametrize("command", [["run", "-p", "Hi"], ["chat"]])
def test_typical_acceptance_is_refused_with_what_it_cannot_follow(
    monkeypatch: pytest.MonkeyPatch, command: list[str], arguments: list[str], words: str
) -> None:
    opened = install(monkeypatch, FakeSession(["x"]))
    result = call([*command, "m.gguf", "--acceptance", "typical", *arguments])
    assert_one_line_error(result, 2, "--acceptance typical cannot be combined with", words, "--acceptance strict")
    assert opened == []


def test_penalties_of_the_models_file_are_refused_until_they_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["x", "x"]), model_info(sampling={"penalty_repeat": 1.1}))
    arguments = ["run", "m.gguf", "-p", "Hi", "--acceptance", "typical"]
    assert_one_line_error(call(arguments), 2, "penalties")
    assert call([*arguments, "--repeat-penalty", "1", "--presence-penalty", "0"]).exit_code == 0


def test_chat_with_typical_acceptance_says_so_first_and_after_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["one", "two"])
    install(monkeypatch, session)
    result = call(["chat", "m.gguf", "--acceptance", "typical", "--verbose"], stdin="Hi\nHo\n")
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert result.stderr.startswith(NOTICE)
    assert result.stderr.count(SHORT) == 2
    assert all(sampler.taken for sampler in session.samplers)


def test_an_unknown_acceptance_is_refused() -> None:
    result = call(["run", "m.gguf", "-p", "Hi", "--acceptance", "loose"])
    assert result.exit_code == 2 and "'strict', 'typical'" in result.stderr


# -- choosing the model, sampling and memory


def test_options_reach_the_session_and_the_sampler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = FakeSession(["x"])
    opened = install(monkeypatch, session, model_info(sampling={"temp": 0.6, "top_k": 20}, n_ctx_train=8192))
    checked: list[str | None] = []
    monkeypatch.setattr(options, "check_grammar", lambda sampling: checked.append(sampling.grammar))
    grammar = tmp_path / "g.gbnf"
    grammar.write_text("root ::= [a-z]+\n")
    result = call(
        ["run", "m.gguf", "-p", "Hi", "--top-k", "30", "--logit-bias", "7-inf", "--logit-bias", "5+1.5"]
        + ["--grammar-file", str(grammar), "-c", "512", "--threads", "3", "--gpu-layers", "0", "--policy", "chain:5"]
        + ["--draft-vocab", "8192"]
    )
    assert result.exit_code == 0
    # The command line wins over the model file, the file over llama.cpp's defaults.
    sampling = session.samplers[0].options
    assert (sampling.temp, sampling.top_k, sampling.top_p) == (0.6, 30, 0.95)
    assert sampling.logit_bias == ((7, float("-inf")), (5, 1.5))
    assert checked == ["root ::= [a-z]+\n"]
    assert (opened[0].n_ctx, opened[0].n_threads, opened[0].n_gpu_layers, opened[0].max_depth) == (512, 3, 0, 5)
    assert opened[0].draft_vocab == 8192


@pytest.mark.parametrize(("value", "wanted"), [("auto", None), ("full", 0), ("64", 64)])
def test_the_draft_vocabulary(monkeypatch: pytest.MonkeyPatch, value: str, wanted: int | None) -> None:
    opened = install(monkeypatch, FakeSession(["x"]))
    assert call(["run", "m.gguf", "-p", "Hi", "--draft-vocab", value]).exit_code == 0
    assert opened[0].draft_vocab == wanted


@pytest.mark.parametrize(("value", "wanted"), [("auto", None), ("same", "same"), ("q8_0", "Q8_0"), ("Q4_0", "Q4_0")])
def test_the_type_of_the_draft_head(monkeypatch: pytest.MonkeyPatch, value: str, wanted: str | None) -> None:
    opened = install(monkeypatch, FakeSession(["x"]))
    assert call(["run", "m.gguf", "-p", "Hi", "--draft-head-type", value]).exit_code == 0
    assert opened[0].draft_head_type == wanted


def test_a_model_without_a_head_is_decoded_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch, FakeSession(["x"]), model_info(has_mtp=False, n_layer_nextn=0, head_kind="none"))
    told = json.loads(call(["run", "m.gguf", "-p", "Hi", "--json"]).stdout)
    assert told["policy"] == "off" and opened[0].max_depth == 0


def test_the_file_is_checked_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch, FakeSession(["x"]))

    def refuse(path: Path, role: str = "main") -> ModelInfo:
        raise ModelFileError(f"{path} is damaged.")

    monkeypatch.setattr(options, "read_model", refuse)
    assert_one_line_error(call(["run", "m.gguf", "-p", "Hi"]), 1, "m.gguf is damaged.")
    assert opened == []


def test_without_a_name_the_shipped_model_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = install(monkeypatch, FakeSession(["x"]))
    monkeypatch.setattr(models, "_PACKAGE", tmp_path / "package")
    assert_one_line_error(call(["run", "-p", "Hi"]), 2, "no model was named")
    for folder in ("package/_models", "models"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "small.gguf").touch()
        assert call(["run", "-p", "Hi"]).exit_code in (0, 1)
        assert opened[-1].model_path == tmp_path / folder / "small.gguf"


def test_a_context_beyond_the_training_length_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["x"]))
    assert "more than the 2048 tokens" in call(["run", "m.gguf", "-p", "Hi", "-c", "4096"]).stderr


def test_a_context_that_does_not_fit_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch, FakeSession(["x"]), model_info(kv_bytes_per_token=1024**2))
    monkeypatch.setattr(options, "available_memory", lambda: 4 * 1024**3)
    result = call(["run", "m.gguf", "-p", "Hi", "-c", "100000"])
    assert_one_line_error(result, 2, "context of 100000 tokens needs 97.8 GiB", "4.0 GiB are available")
    largest = int(result.stderr.rsplit("-c ", 1)[1].rstrip(".\n"))
    assert opened == [] and largest % 256 == 0
    # The named length is accepted, the next one is not.
    assert call(["run", "m.gguf", "-p", "Hi", "-c", str(largest)]).exit_code == 0
    assert call(["run", "m.gguf", "-p", "Hi", "-c", str(largest + 256)]).exit_code == 2


def test_a_model_that_does_not_fit_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["x"]), model_info(size_bytes=20 * 1024**3))
    monkeypatch.setattr(options, "available_memory", lambda: 4 * 1024**3)
    assert_one_line_error(call(["run", "m.gguf", "-p", "Hi"]), 1, "20.1 GiB", "smaller quantisation")


# -- info


def test_info(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession([]))
    monkeypatch.setattr(forecast, "available_memory", lambda: 4 * 1024**3)
    monkeypatch.setattr(forecast, "profile_folder", lambda: Path("/does/not/exist"))
    result = call(["info", "m.gguf"])
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "model          Fake (m.gguf)"
    assert "MTP head       1 block, used at every depth" in lines
    assert "can draft      trees: its head drafts any depth and the engine verifies trees on its kind of memory" in lines
    assert "engine         cpu on fake device" in lines
    assert (
        "fits           yes: 4.0 GiB of main memory are available, which is enough for all 2048 tokens that it was trained for"
        in lines
    )
    assert lines[-1] == "speed          not measured yet: entmtp-local calibrate m.gguf does it, and the first chat in short"
    assert any(line.startswith("memory ") and "with the weights at -c 2048" in line for line in lines) and result.stderr == ""
    beyond = call(["info", "m.gguf", "--n-ctx", "100000"]).stderr
    assert beyond == "-c 100000 is more than the 2048 tokens this model was trained for: expect worse text beyond them.\n"


@pytest.mark.parametrize(
    ("values", "drafting"),
    [
        ({"memory_kind": "attention"}, "trees"),
        ({"memory_kind": "iswa"}, "trees"),
        ({"memory_kind": "hybrid"}, "trees"),
        ({"memory_kind": "hybrid", "node_bytes": 0}, "chains"),
        ({"memory_kind": "other", "node_bytes": 0}, "chains"),
        ({"head_kind": "chained", "n_layer_nextn": 3}, "chains"),
        ({"head_kind": "none", "has_mtp": False, "n_layer_nextn": 0}, "off"),
    ],
)
def test_info_json(monkeypatch: pytest.MonkeyPatch, values: dict[str, object], drafting: str) -> None:
    install(monkeypatch, FakeSession([]), model_info(**values))
    told = json.loads(call(["info", "m.gguf", "--json", "-c", "1024"]).stdout)
    assert (told["architecture"], told["quantisation"], told["drafting"]) == ("qwen35", "F16", drafting)
    assert told["memory"]["n_ctx"] == 1024 and told["memory"]["needed_bytes"] > 25 * 1024**2
    assert told["reason"] and (told["mtp"] is None) == (drafting == "off")


# -- chat, in a pipe


def test_chat_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["hello there", "Bye.\n"])
    install(monkeypatch, session)
    result = call(["chat", "m.gguf"], stdin="Hi\n\n  And?  \n")
    assert (result.exit_code, result.stdout) == (0, "hello there\nBye.\n")
    assert result.stderr == "this model file has no chat template: using ChatML, which its vocabulary supports.\n"
    first, second = session.prompts
    assert first == encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert second[: len(first)] == first
    # Only the end of the first answer and the new question had to be read.
    assert session.prefilled[1] == encode("<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n")


def test_chat_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["one", "two", "never"])
    install(monkeypatch, session, model_info(chat_template="{% for m in messages %}{{ m.content }}|{% endfor %}"))
    result = call(["chat", "m.gguf"], stdin="Hi\n/clear\nHo\n/nope\n/exit\nnot read\n")
    # A line that got no answer counts as a failure, as in any pipe.
    assert (result.exit_code, result.stdout) == (1, "one\ntwo\n")
    assert result.stderr == "error: there is no command /nope: /help lists them.\n"
    assert session.prompts == [encode("Hi|"), encode("Ho|")]


def test_chat_stops_where_a_model_without_a_template_goes_on_as_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession([" Yes.\nUser: and then", " Good."])
    install(monkeypatch, session)
    monkeypatch.setattr(session, "tokenize", lambda text, *, add_special, parse_special: list(text.encode()))
    result = call(["chat", "m.gguf", "--policy", "off"], stdin="Hi\nOh\n")
    assert result.stdout == " Yes.\n Good.\n"
    assert bytes(session.prompts[1]).decode() == "User: Hi\nAssistant:  Yes.\nUser: Oh\nAssistant:"


def test_chat_survives_a_full_context(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["ok", "fine"], n_ctx=60)
    install(monkeypatch, session, model_info(chat_template="{% for m in messages %}{{ m.content }}|{% endfor %}"))
    result = call(["chat", "m.gguf"], stdin=f"Hi\n{'x' * 80}\nHo\n")
    assert (result.exit_code, result.stdout) == (1, "ok\nfine\n")
    told = "this message alone has 81 tokens and the context holds 60: shorten it, or start again with -c 2048."
    assert result.stderr == f"error: {told}\n"
    # The refused message is not part of the conversation.
    assert session.prompts[1] == encode("Hi|ok|Ho|")


def test_chat_goes_on_after_a_failed_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_once(n: int) -> None:
        if n == 2 and not failed:
            failed.append(n)
            raise EngineError("decoding a tree of 4 nodes failed (code -3: a test); the context was emptied, try again.")

    failed: list[int] = []
    session = FakeSession(["abcdef", "fine"], on_token=fail_once)
    install(monkeypatch, session, model_info(chat_template="{% for m in messages %}{{ m.content }}|{% endfor %}"))
    result = call(["chat", "m.gguf", "--policy", "off"], stdin="Hi\nHo\n")
    assert (result.exit_code, result.stdout) == (1, "abc\nfine\n")
    assert "error: decoding a tree of 4 nodes failed" in result.stderr
    assert session.prompts[1] == encode("Ho|"), "the question without an answer is not part of the conversation"


def test_chat_says_that_an_answer_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["abcdefghijklmnopqrstuvwxyz"], n_ctx=20)
    install(monkeypatch, session, model_info(chat_template="{{ messages[-1].content }}"))
    result = call(["chat", "m.gguf"], stdin="Hi\n")
    assert result.stdout == "abcdefghijklmnopqrs\n"
    assert "the context of 20 tokens is full and the answer was cut" in result.stderr


def test_chat_goes_on_when_the_template_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% if 'bad' in messages[-1].content %}{{ raise_exception('No.') }}{% endif %}{{ messages[-1].content }}"
    install(monkeypatch, FakeSession(["ok"]), model_info(chat_template=source))
    result = call(["chat", "m.gguf"], stdin="bad\ngood\n")
    assert (result.exit_code, result.stdout) == (1, "ok\n")
    assert result.stderr == "error: the model's chat template refuses this conversation: No.\n"


def test_chat_draws_a_seed_for_each_answer_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(["a", "b"])
    install(monkeypatch, session)
    call(["chat", "m.gguf", "--seed", "5"], stdin="x\ny\n")
    assert [sampler.seed for sampler in session.samplers] == [5, 5]
    session = FakeSession(["a", "b"])
    install(monkeypatch, session)
    call(["chat", "m.gguf"], stdin="x\ny\n")
    assert len({sampler.seed for sampler in session.samplers}) == 2


def test_chat_verbose_shows_figures_and_input_must_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeSession(["abc", "d"]))
    result = call(["chat", "m.gguf", "--verbose", "-n", "2"], stdin="Hi\n")
    assert result.stdout == "ab\n"
    assert "(cut after 2 tokens; /set max-tokens changes that)\n[2 tokens, " in result.stderr
    result = call(["chat", "m.gguf"], stdin=b"\xff\n")
    assert result.exit_code == 2 and "not UTF-8 text" in result.stderr


def test_ctrl_c_while_modules_are_imported_ends_quietly() -> None:
    code = """
import os, signal, sys
class Pressed:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Pressed())
from entmtp_local.__main__ import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    # a shell reports 130 of it
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("arguments", [["info", "--trace", "none.json", "--html", "page.html"], ["run", "-p", "x", "-f", "y"]])
def test_what_was_given_to_read_is_the_command_lines_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(call(arguments), 2)
