"""Training of a reference model: the loop, its log and its checkpoints.

A run is a folder: tokenizer.json, log.jsonl, checkpoint.pt, model.gguf, and tokens/ with what has been tokenized. Knows nothing
of the engine that will run the model.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.reference.data import KINDS, Mixture, heldout_rows, load_tokens
from scripts.reference.export import export
from scripts.reference.loss import head_loss, repetition_loss
from scripts.reference.model import MTP_DEPTHS, ReferenceConfig, ReferenceModel
from scripts.reference.optimiser import Optimiser, rate_share
from scripts.reference.tokenizer import RESERVED, balanced_sample, load, save, train_tokenizer

FORMAT = 1
PARTS = ("trunk", *(f"mtp{depth + 1}" for depth in range(MTP_DEPTHS)))


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """What a run is made with. Only the budget may change when it goes on later."""

    size: str = "small"
    seed: int = 1
    minutes: float = 120.0  # of training, across interruptions
    steps: int = 0  # where not 0, the budget instead of the minutes: such runs are reproducible
    batch_tokens: int = 4096
    n_tokens: int = 512  # of a row
    long_tokens: int = 1024  # of a row towards the end, so that positions far apart are not new to the model
    long_from: float = 0.8  # share of the budget
    repeat_rows: int = 1  # of a batch, in place of ordinary ones; not before repeat_from
    repeat_from: float = 0.6  # share of the budget: a penalty for the last sixth alone left most long outputs looping
    # Of the penalty on repetition. Its gradient is then some 3 times the ordinary rows' and their losses fall a little slower; at
    # 0.5, where it is one to one as the source mixes them, loops stay.
    repeat_weight: float = 1.0
    draft_share: float = 0.25  # of the positions, where drafts start in training
    part_weights: tuple[float, ...] = (1.0, 0.3, 0.2, 0.15)  # trunk, then MTP depths
    z_weight: float = 0.01  # 1e-4 leaves the logs of the denominators near 10 in runs as short as these
    kind_weights: Mapping[str, float] = field(default_factory=lambda: {"code": 0.4, "math": 0.2, "chat": 0.2, "prose": 0.2})
    muon: bool = True
    matrix_lr: float = 0.015
    lr: float = 0.01
    weight_decay: float = 0.02
    n_warmup: int = 60
    decay_from: float = 0.4
    max_norm: float = 1.0
    heldout_per_kind: int = 6  # rows
    compiled: bool = True


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "n_layer": 4,
        "n_embd": 64,
        "n_ff": 128,
        "head_dim": 64,
        "n_rot": 16,
        "rope_sections": (3, 3, 2, 0),
        "n_key_heads": 1,
        "state_size": 32,
        "n_ctx": 1024,
    },
    "small": {},
    "large": {"n_layer": 12, "n_embd": 512, "n_ff": 1408, "n_head": 4, "n_head_kv": 2, "n_key_heads": 4, "n_value_heads": 4},
}
N_VOCAB = {"tiny": 512, "small": 8192, "large": 8192}

# What differs from the defaults above for a size.
OPTIONS: dict[str, dict[str, Any]] = {
    "tiny": {"batch_tokens": 1024, "n_tokens": 128, "long_tokens": 256, "n_warmup": 10, "compiled": False},
    "small": {},
    "large": {"batch_tokens": 65536, "minutes": 60.0, "repeat_rows": 8},
}


def new_model(size: str, n_vocab: int, seed: int, dtype: torch.dtype) -> ReferenceModel:
    """A model with random weights that follow from the seed."""
    torch.manual_seed(seed)
    return ReferenceModel(ReferenceConfig(n_vocab=n_vocab, **SIZES[size]), dtype=dtype)


def load_model(checkpoint: Path, dtype: torch.dtype = torch.float32) -> ReferenceModel:
    """The model of a checkpoint, on the CPU."""
    state = read_checkpoint(checkpoint)
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(state["config"]).items()}
    model = ReferenceModel(ReferenceConfig(**config), dtype=dtype)
    model.load_state_dict(state["model"])
    return model


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Raises: ValueError when the file is missing or of another format."""
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}; start the run without --resume.")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {state.get('format')}, not {FORMAT}; train it anew.")
    return state


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the file, then put it in place: an interruption leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


class Trainer:
    """One run: the model, its optimiser, its place in the data, and the folder they are kept in."""

    def __init__(self, corpus: Path, out: Path, options: TrainingOptions, device: str | None = None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.options = out, options
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = self._tokenizer(corpus)
        n_vocab = self.tokenizer.get_vocab_size()
        cache = out / "tokens"
        self.mixture = Mixture(load_tokens(corpus / "train", self.tokenizer, cache), options.kind_weights, options.seed)
        heldout = load_tokens(corpus / "heldout", self.tokenizer, cache)
        self.heldout = {kind: heldout_rows(heldout[kind], options.heldout_per_kind, options.n_tokens) for kind in sorted(heldout)}
        # tests of the arithmetic run in F32; bfloat16 products are what the speed comes from
        self.dtype = torch.float32 if options.size == "tiny" else torch.bfloat16
        self.model = new_model(options.size, n_vocab, options.seed, self.dtype).to(self.device)
        self.optimiser = Optimiser(
            self.model, matrix_lr=options.matrix_lr, lr=options.lr, weight_decay=options.weight_decay, muon=options.muon
        )
        if options.compiled:
            self.model.compile(dynamic=False)
        self.step = self.n_tokens = 0
        self.seconds = 0.0  # of training so far
        self._typical: dict[tuple[int, int], float] = {}  # seconds of a step, by tokens of a row and rows that repeat

    def _tokenizer(self, corpus: Path) -> Any:
        own, given = self.out / "tokenizer.json", corpus / "tokenizer.json"
        if not own.is_file():
            if given.is_file():
                shutil.copyfile(given, own)
            else:
                say("training the tokenizer")
                save(train_tokenizer(balanced_sample(corpus, 20_000_000, self.options.seed), N_VOCAB[self.options.size]), own)
        return load(own)

    # -- checkpoints

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "format": FORMAT,
            "config": json.dumps(asdict(self.model.config)),
            "options": json.dumps(asdict(self.options)),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "position": json.dumps(self.mixture.position()),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "n_tokens": self.n_tokens,
            "seconds": self.seconds,
        }
        write_atomically(self.checkpoint, lambda path: torch.save(state, path))

    def resume(self) -> None:
        """Go on from the folder's checkpoint."""
        state = read_checkpoint(self.checkpoint)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.mixture.restore(json.loads(state["position"]))
        torch.set_rng_state(state["rng"])
        self.step, self.n_tokens, self.seconds = state["step"], state["n_tokens"], state["seconds"]

    def export(self, name: str = "model.gguf", kind: str = "F16") -> Path:
        path = self.out / name
        note = f"{self.n_tokens / 1e6:.1f}M tokens seen"
        write_atomically(path, lambda partial: export(self.model, self.tokenizer, partial, kind, note=note))
        return path

    # -- training

    def done(self) -> float:
        """Share of the budget that is spent."""
        options = self.options
        return self.step / options.steps if options.steps else self.seconds / (60 * options.minutes)

    def train_step(self, done: float) -> dict[str, float]:
        """One batch; the losses of its parts in nats."""
        began = time.monotonic()
        options, model = self.options, self.model
        n_tokens = options.long_tokens if done >= options.long_from else options.n_tokens
        n_rows = options.batch_tokens // n_tokens
        # small models loop when they take the likeliest token each time; a batch keeps at least one ordinary row
        n_repeating = min(options.repeat_rows, n_rows - 1) if done >= options.repeat_from else 0
        n_ordinary = n_rows - n_repeating
        rows = self.mixture.rows(n_rows, n_tokens)
        if n_repeating > 0:
            ordinary, repetitions = self.mixture.split_repeating(rows, n_repeating)
            rows = np.concatenate([ordinary, repetitions.ids])
        starts = self.mixture.draft_starts(n_tokens, int(options.draft_share * n_tokens), MTP_DEPTHS)
        ids, at = torch.from_numpy(rows).to(self.device), torch.from_numpy(starts).to(self.device)

        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        hidden = model(inputs, at, n_drafting=n_ordinary)
        looping, hidden[0] = hidden[0][n_ordinary:], hidden[0][:n_ordinary]
        total = looping.new_zeros(())
        losses: dict[str, float | Tensor] = {}
        for i, (part, weight) in enumerate(zip(PARTS, options.part_weights, strict=True)):
            target = targets[:n_ordinary] if i == 0 else targets[:n_ordinary, at + i - 1]
            loss = head_loss(
                hidden[i],
                model.embedding,
                target,
                weight=weight,
                z_weight=options.z_weight,
                dtype=self.dtype,
                compiled=options.compiled,
            )
            total = total + loss.total
            losses[part] = loss.nll
            if i == 0:
                losses["z"] = loss.z
        if n_repeating > 0:
            repeat = repetition_loss(
                looping,
                model.embedding,
                targets[n_ordinary:],
                torch.from_numpy(repetitions.begins).to(self.device),
                torch.from_numpy(repetitions.lengths).to(self.device),
                weight=options.repeat_weight,
                z_weight=options.z_weight,
                dtype=self.dtype,
            )
            total = total + repeat.total
            losses["repeat"], losses["repeat_p"] = repeat.penalty, repeat.probability
        total.backward()  # type: ignore[no-untyped-call]
        losses["norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_norm)
        self.optimiser.step(rate_share(self.step, done, n_warmup=options.n_warmup, decay_from=options.decay_from))
        self.step += 1
        self.n_tokens += inputs.numel()
        result = {key: float(value) for key, value in losses.items()}
        if not all(map(math.isfinite, result.values())):
            raise FloatingPointError(f"the loss is not finite at step {self.step}; go on from the checkpoint with a lower rate.")
        self._count_time((n_tokens, n_repeating), time.monotonic() - began)
        return result

    def _count_time(self, shape: tuple[int, int], seconds: float) -> None:
        """Spend a step's time from the budget, but neither the compiler's, which the first step waits for, nor a pause."""
        typical = self._typical.get(shape)
        if typical is None:
            self._typical[shape] = math.inf
            self.seconds += 0.0 if self.options.compiled else seconds
        else:
            counted = min(seconds, 5 * typical)
            self._typical[shape] = counted if math.isinf(typical) else 0.8 * typical + 0.2 * counted
            self.seconds += counted

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, float]]:
        """Held-out losses of each kind and part, in nats, and what the reserved ids get."""
        model, result = self.model, {}
        reserved = slice(model.config.n_vocab - len(RESERVED), model.config.n_vocab)
        for kind, rows in self.heldout.items():
            losses: dict[str, list[float]] = {}
            for row in rows:
                ids = torch.from_numpy(row[None]).to(self.device)
                inputs, targets = ids[:, :-1], ids[:, 1:]
                at = torch.arange(inputs.shape[1] - MTP_DEPTHS + 1, device=self.device)
                with torch.compiler.set_stance("force_eager"):
                    hidden = model(inputs, at)
                for i, part in enumerate(PARTS):
                    target = targets if i == 0 else targets[:, at + i - 1]
                    logits = model.logits(hidden[i])
                    lse = logits.logsumexp(-1)
                    nll = lse - logits.gather(-1, target.unsqueeze(-1))[..., 0]
                    losses.setdefault(part, []).append(float(nll.mean()))
                    if i == 0:
                        losses.setdefault("lse", []).append(float(lse.mean()))
                        # the largest reserved logit decides how far the widened vocabulary's padding can be pushed down
                        losses.setdefault("reserved", []).append(float(logits[..., reserved].max()))
            result[kind] = {key: round(max(v) if key == "reserved" else float(np.mean(v)), 4) for key, v in losses.items()}
        return result


def say(text: str) -> None:
    """A line for the person who watches; on a terminal it replaces the one before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds_ = divmod(int(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds_:02d}"


def train(
    corpus: Path,
    out: Path,
    options: TrainingOptions,
    *,
    resume: bool = False,
    stop: Callable[[Trainer], bool] = lambda trainer: False,
    device: str | None = None,
    save_every: float = 4.0,
    evaluate_every: float = 6.0,
    export_every: float = 0.0,
    log_every: float = 15.0,
) -> Trainer:
    """Train until the budget is spent or `stop` says so; the folder then holds a checkpoint and an exported model.

    Args:
        resume: go on from the folder's checkpoint: the options are its own, but for the budget
        stop: asked after each step; the checkpoint is written before it is obeyed
        save_every, evaluate_every, export_every: minutes; 0 = only at the end
        log_every: seconds
    Raises: ValueError for a folder that does not fit, FloatingPointError when the loss is lost.
    """
    if resume:
        saved = json.loads(read_checkpoint(out / "checkpoint.pt")["options"])
        saved["part_weights"] = tuple(saved["part_weights"])
        options = replace(TrainingOptions(**saved), minutes=options.minutes, steps=options.steps, compiled=options.compiled)
    elif (out / "checkpoint.pt").exists():
        raise ValueError(f"{out} holds a run already; go on with --resume or name another folder.")
    trainer = Trainer(corpus, out, options, device)
    if resume:
        trainer.resume()
    log = (out / "log.jsonl").open("a", encoding="utf-8")

    def record(event: str, **values: Any) -> None:
        head = {"event": event, "step": trainer.step, "tokens": trainer.n_tokens, "seconds": round(trainer.seconds, 1)}
        log.write(json.dumps(head | values) + "\n")
        log.flush()

    def evaluate() -> None:
        record("heldout", kinds=trainer.evaluate(), epochs=trainer.mixture.epochs())

    record("resume" if resume else "start", n_parameters=trainer.model.n_parameters(), options=asdict(options))
    last = dict.fromkeys(("log", "save", "evaluate", "export"), time.monotonic())
    window: list[dict[str, float]] = []
    window_tokens = trainer.n_tokens

    def due(what: str, seconds: float) -> bool:
        if seconds <= 0 or time.monotonic() - last[what] < seconds:
            return False
        last[what] = time.monotonic()
        return True

    stopped = False
    try:
        while not stopped and (done := trainer.done()) < 1.0:
            since = last["log"]
            window.append(trainer.train_step(done))
            stopped = stop(trainer)
            if due("log", log_every):
                # a part that began inside the window counts from there
                some = {key: [w[key] for w in window if key in w] for key in window[-1]}
                means = {key: round(sum(values) / len(values), 4) for key, values in some.items()}
                rate = (trainer.n_tokens - window_tokens) / (time.monotonic() - since)
                record("train", **means, tokens_per_second=round(rate), done=round(done, 4))
                left = trainer.seconds * (1 - done) / max(done, 1e-6) if options.steps else 60 * options.minutes * (1 - done)
                parts = " ".join(f"{part} {means[part]:.3f}" for part in (*PARTS, "repeat") if part in means)
                say(f"step {trainer.step}  {parts}  {rate:.0f} tokens/s  {_clock(left)} left")
                window, window_tokens = [], trainer.n_tokens
            if due("evaluate", 60 * evaluate_every):
                evaluate()
            if due("export", 60 * export_every):
                trainer.export()
            if due("save", 60 * save_every):
                trainer.save()
        trainer.save()
        if not stopped:
            evaluate()
            trainer.export()
        record("stop" if stopped else "end")
    finally:
        log.close()
    return trainer


__all__ = ["KINDS", "OPTIONS", "SIZES", "Trainer", "TrainingOptions", "load_model", "new_model", "train"]
