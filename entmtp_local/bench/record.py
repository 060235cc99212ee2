"""The file of a benchmark: what was asked, every visit, and what follows. Written after each visit, so that none is lost.

docs/BENCH.md describes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from entmtp_local.errors import UsageError
from entmtp_local.files import open_file, reason, replace_file

FORMAT, VERSION = "entmtp-local bench", 1
# What results are computed from, beside the numbers that are looked at one by one.
_OF_A_VISIT = {"texts", "load_seconds", "resident_bytes", "device_bytes"}
_OF_A_TEXT = {"compared", "loops", "ended", "n_prompt", "n_steps", "n_drafted", "accepted_per_depth", "parts", "pace"}
_SHOWN = 60  # characters of a setting in a sentence


class Record:
    """See the module.

    Args:
        path: None keeps it in memory alone.
        content: as docs/BENCH.md describes it.
    """

    def __init__(self, path: Path | None, content: dict[str, Any]) -> None:
        self._path = path
        self.content = content

    @staticmethod
    def begin(path: Path | None, settings: Mapping[str, Any], created: str, *, resume: bool) -> Record:
        """A new record, or the one that an interrupted run left.

        Args:
            settings: everything that figures of one record have in common, as JSON values.
        Raises: UsageError where there is nothing to go on with, or where it was measured with other settings.
        """
        if resume:
            if path is None:
                raise UsageError("--resume goes on with the file of --json FILE; name it.")
            found = Record.read(path)
            _check_settings(path, found.content["settings"], settings)
            found.content |= {"complete": False, "settings": dict(settings)}
            return found
        if path is not None and path.exists():
            _check_replaceable(path)
        content = {"format": FORMAT, "version": VERSION, "complete": False, "created": created, "settings": dict(settings)}
        return Record(path, {**content, "models": [], "visits": [], "judged": {}})

    @staticmethod
    def read(path: Path) -> Record:
        """Raises: UsageError where the file is none of this program's."""
        try:
            with open_file(path) as file:
                content = json.loads(file.read().decode("utf-8"))
        except FileNotFoundError:
            raise UsageError(f"there is no {path} to go on with; leave out --resume.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{path} cannot be read as a benchmark's file ({reason(error)}); leave out --resume.") from None
        kinds = {"settings": dict, "models": list, "visits": list, "judged": dict}
        if (
            not isinstance(content, dict)
            or content.get("format") != FORMAT
            or not all(isinstance(content.get(name), kind) for name, kind in kinds.items())
        ):
            raise UsageError(f"{path} is no benchmark's file; leave out --resume, or name the file of an interrupted run.")
        if content.get("version") != VERSION:
            raise UsageError(f"{path} is of version {content.get('version')}, not {VERSION}; measure again.")
        if not (
            all(isinstance(model, dict) for model in content["models"])
            and all(map(_is_visit, content["visits"]))
            and all(isinstance(each, dict) and each.keys() >= {"gap", "tolerance"} for each in content["judged"].values())
        ):
            raise UsageError(f"{path} is damaged: what it says of a model, a visit or a difference is incomplete; measure again.")
        return Record(path, content)

    def save(self) -> None:
        """Write it; what is there is replaced when all is written."""
        if self._path is not None:
            with replace_file(self._path) as file:
                file.write(_lines(self.content).encode())

    # -- visits

    def add(self, visit: Mapping[str, Any]) -> None:
        self.content["visits"].append(dict(visit))
        self.save()

    def has(self, **about: Any) -> bool:
        """Whether there is a visit of this round, model, temperature, workload and arm."""
        return any(all(visit[name] == value for name, value in about.items()) for visit in self.content["visits"])

    def visits(self, **about: Any) -> Iterator[dict[str, Any]]:
        """Those that are of what is named and have not failed."""
        for visit in self.content["visits"]:
            if "error" not in visit and all(visit[name] == value for name, value in about.items()):
                yield visit

    def failure(self, model: int, arm: str) -> str | None:
        """Why an arm was given up."""
        for visit in self.content["visits"]:
            if visit["model"] == model and visit["arm"] == arm and "error" in visit:
                return str(visit["error"])
        return None


def _is_visit(visit: object) -> bool:
    return (
        isinstance(visit, dict)
        and visit.keys() >= {"round", "model", "temp", "workload", "arm", "kind"}
        and (
            "error" in visit
            or (visit.keys() >= _OF_A_VISIT and isinstance(visit["texts"], list) and all(map(_is_text, visit["texts"])))
        )
    )


def _is_text(text: object) -> bool:
    if not isinstance(text, dict):
        return False
    numbers = [text.get(name) for name in ("prompt", "n", "prefill_seconds", "decode_seconds")]
    return (
        all(isinstance(number, (int, float)) and number >= 0 for number in numbers)
        and text.keys() >= _OF_A_TEXT
        and (not text["compared"] or "difference" in text)
    )


def _lines(content: Mapping[str, Any]) -> str:
    """JSON with a line for each visit and each model: short, and a difference between two files can be read."""
    parts = []
    for name, value in content.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(each) for each in value) + "\n ]"
        else:
            text = json.dumps(value)
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _check_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # through JSON, which has no tuples
    now = json.loads(json.dumps(wanted))
    if isinstance(found.get("n_rounds"), int) and found["n_rounds"] <= now["n_rounds"]:
        # rounds can be added
        now["n_rounds"] = found["n_rounds"]
    differing = sorted(name for name in {*found, *now} if found.get(name) != now.get(name))
    if differing:
        told = "; ".join(f"{name} {_short(found.get(name))}, now {_short(now.get(name))}" for name in differing)
        raise UsageError(f"{path} was measured with other settings ({told}); resume with those, or measure into another file.")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _check_replaceable(path: Path) -> None:
    """Raises: UsageError where the file holds rounds, or is something else."""
    try:
        found = Record.read(path)
    except UsageError:
        raise UsageError(f"{path} exists and is no benchmark's file; name another one.") from None
    if found.content["visits"]:
        what, how = ("a finished", " and more --rounds") if found.content.get("complete") else ("an interrupted", "")
        raise UsageError(f"{path} holds the rounds of {what} run; go on with --resume{how}, name another file, or remove it.")
