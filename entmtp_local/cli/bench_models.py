"""One model of `entmtp-local bench`: its prompts and profiles, and the arms that decode it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from entmtp_local.bench import workloads
from entmtp_local.bench.arms import PLAIN, Arm, OurArm, OurChoice, ServerArm, Serving, StockSetting, names_of, sweep
from entmtp_local.bench.record import Record
from entmtp_local.bench.rounds import Subject, best_settings
from entmtp_local.bench.worker import in_child
from entmtp_local.calibration.calibrate import fingerprint
from entmtp_local.calibration.prompts import prompt_tokens
from entmtp_local.chat.model_template import template_of
from entmtp_local.cli.abilities import drafting
from entmtp_local.cli.options import default_n_ctx, open_for_drafts
from entmtp_local.cli.profiles import profile_for
from entmtp_local.errors import ProfileError, UsageError
from entmtp_local.hub.cache import ModelFiles
from entmtp_local.native.cores import physical_cores
from entmtp_local.native.model_file import read_model
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import ALL, Profile

_POLICIES = {"trees": "off,chain:3,hydra:7,entmtp,throughput", "chains": "off,chain:2,chain:3", "off": "off"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of a model before it is measured.

    Args:
        prompts: token ids by workload, the warm-up's the last one.
        eog: tokens that end a text.
        profiles: by draft vocabulary.
    """

    device: str
    engine: dict[str, str]
    prompts: dict[str, list[list[int]]]
    eog: frozenset[int]
    profiles: dict[int | None, Profile]


def prepare(
    files: ModelFiles, options: dict[str, Any], chosen: dict[str, list[workloads.Prompt]], vocabs: list[int | None]
) -> Prepared:
    """Read prompts as the model does, and find or measure profiles; runs in a process of its own.

    Args:
        options: as for `open_for_drafts`.
        chosen: prompts by workload.
        vocabs: draft vocabularies that profiles are needed for.
    """
    info, settings = open_for_drafts(files, options)
    profiles: dict[int | None, Profile] = {}
    prompts: dict[str, list[list[int]]] = {}
    for vocab in vocabs or [options["draft_vocab"]]:
        settings = replace(settings, draft_vocab=vocab)
        with Session.open(settings) as session:
            if not prompts:
                template = template_of(info, session)
                prompts = {name: [prompt_tokens(session, template, prompt) for prompt in some] for name, some in chosen.items()}
                eog = frozenset(token for token in range(session.n_vocab) if session.is_eog(token))
            if vocabs and session.limits.max_depth:
                profiles[vocab] = profile_for(session, settings, info, None, _note)
            found = Prepared(session.device, session.engine_info, prompts, eog, profiles)
    return found


class BenchedModel:
    """See the module.

    Args:
        number: in the record's list of models.
        options: of the command.
        chosen: prompts by workload, the warm-up's the last one.
        stock: the stock server, None where there is none.
        peers: command lines by name.
    """

    def __init__(
        self,
        number: int,
        files: ModelFiles,
        options: Mapping[str, Any],
        chosen: dict[str, list[workloads.Prompt]],
        stock: Path | None,
        peers: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.info = read_model(files.path)
        self._number, self._path, self._stock, self._peers = number, files.path, stock, peers
        head = read_model(files.mtp_path, role="mtp") if files.mtp_path else self.info
        self.ability = drafting(self.info, head)[0]
        names = (_POLICIES[self.ability] if options["policies"] is None else options["policies"]).split(",")
        self.choices = [OurChoice.parse(name) for name in dict.fromkeys([PLAIN, *names])]
        self.n_ctx = options["n_ctx"] or default_n_ctx(self.info)
        self.n_threads = options["n_threads"] or physical_cores()
        self._effort = options["sweep_effort"]
        self._stock_args = tuple(shlex.split(options["stock_args"]))
        needed = {
            0 if choice.full_head else options["draft_vocab"]
            for choice in self.choices
            if parse_policy(choice.policy.replace("TASK", ALL)).needs_profile
        }
        opened = {**options, "n_ctx": self.n_ctx}
        vocabs = sorted(needed, key=lambda vocab: -1 if vocab is None else vocab)
        self.prepared = in_child(prepare, files, opened, chosen, vocabs)
        self._check_room(options["n_tokens"])
        self._base = SessionOptions(
            files.path,
            files.mtp_path,
            n_ctx=self.n_ctx,
            n_threads=self.n_threads,
            n_gpu_layers=options["n_gpu_layers"],
            draft_vocab=options["draft_vocab"],
            draft_head_type=options["draft_head_type"],
        )
        self._check_tasks(list(chosen), given=options["policies"] is not None)
        self._serving = Serving(
            files.path, files.mtp_path, self.n_ctx, self.n_threads, options["n_gpu_layers"], self.prepared.eog
        )

    def _check_room(self, n_tokens: int) -> None:
        for workload, some in self.prepared.prompts.items():
            for ids in some:
                if not 0 < len(ids) <= self.n_ctx - n_tokens - 1:
                    raise UsageError(
                        f"a prompt of {workload} has {len(ids)} tokens, which leaves no room for an answer of {n_tokens} in a "
                        f"context of {self.n_ctx}; give a larger -c or a smaller -n."
                    )

    def _check_tasks(self, names: list[str], *, given: bool) -> None:
        """Refuse policies that the profile has no figures for before anything is measured, and say what stands in for TASK.

        Args:
            given: the user named the policies; those of the default are left out instead.
        Raises: ProfileError naming what the profile has.
        """
        left_out = []
        for choice in list(self.choices):
            try:
                self._check_task(choice, names)
            except ProfileError:
                if given:
                    raise
                left_out.append(choice.name)
                self.choices.remove(choice)
        if left_out:
            _note(
                f"left out, because they are fitted to texts and the profile knows none yet: {', '.join(left_out)}; "
                f"entmtp-local calibrate {shlex.quote(str(self._path))} measures them."
            )
        by_task = any("TASK" in choice.policy for choice in self.choices)
        missing = [name for name in names if any(name not in profile.tasks for profile in self.prepared.profiles.values())]
        if by_task and missing:
            _note(f"the profile has no figures of {', '.join(missing)} alone: TASK stands for all tasks together there.")

    def _check_task(self, choice: OurChoice, names: list[str]) -> None:
        profile = self._profile(choice)
        for workload in names if profile is not None else ():
            policy = parse_policy(choice.policy.replace("TASK", _task(profile, workload)))
            if policy.needs_profile and profile is not None:
                policy.calibrated(profile)

    @property
    def about(self) -> dict[str, Any]:
        info = self.info
        return {
            "label": info.path.stem,
            "file": info.path.name,
            "name": info.name,
            "architecture": info.arch,
            "quantisation": info.quantisation,
            "size_bytes": info.size_bytes,
            "n_parameters": info.n_parameters,
            "n_layer": info.n_layer,
            "n_embd": info.n_embd,
            "n_vocab": info.n_vocab,
            "fingerprint": fingerprint(self._path),
            "n_prompt_tokens": {name: [len(ids) for ids in some[:-1]] for name, some in self.prepared.prompts.items()},
        }

    def subject(self, record: Record) -> Subject:
        prompts = self.prepared.prompts
        return Subject(
            self._number,
            record.content["models"][self._number]["label"],
            {name: some[:-1] for name, some in prompts.items()},
            {name: some[-1] for name, some in prompts.items()},
            partial(self._arms, record),
            OurArm("plain decoding", OurArm.of(OurChoice(PLAIN, PLAIN), self._base, None, ALL).setup).open,
        )

    def _arms(self, record: Record, temp: float, workload: str) -> list[Arm]:
        arms: list[Arm] = []
        for choice in self.choices:
            profile = self._profile(choice)
            arms.append(OurArm.of(choice, self._base, profile, _task(profile, workload)))
        if self._stock is not None:
            arms.append(self._stock_arm(None))
            rows = record.content["models"][self._number].get("sweep", [])
            settings = best_settings(rows, temp, workload) if self._effort != "default" else [StockSetting()]
            if self.ability != "off":
                arms += [self._stock_arm(setting) for setting in settings]
        arms += [self._serving.peer(name, command) for name, command in self._peers.items()]
        list(names_of(arms))
        return arms

    def _profile(self, choice: OurChoice) -> Profile | None:
        return self.prepared.profiles.get(0 if choice.full_head else self._base.draft_vocab)

    def _stock_arm(self, setting: StockSetting | None) -> ServerArm:
        assert self._stock is not None
        return self._serving.stock(self._stock, setting, self._stock_args)

    def swept(self) -> list[tuple[StockSetting, Arm]]:
        """Settings of stock's that are tried, with their arms."""
        if self._stock is None or self.ability == "off":
            return []
        return [(setting, self._stock_arm(setting)) for setting in sweep(self._effort)]

    def check_sweep(self, record: Record) -> None:
        """Say so where stock's MTP does not run at all."""
        rows = record.content["models"][self._number].get("sweep", [])
        if rows and all("error" in row for row in rows):
            _note(f"stock llama.cpp's MTP does not run with {self.info.path.name}: {rows[0]['error']}")


def _task(profile: Profile | None, workload: str) -> str:
    return workload if profile is not None and workload in profile.tasks else ALL


def _note(text: str) -> None:
    click.echo(text, err=True)
