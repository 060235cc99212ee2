"""The file of a benchmark: what was asked, every visit, and what follows. Written after each visit, so that none is lost.

docs/BENCH.md describes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from entmtp_local.bench.arms import StockSetting
from entmtp_local.errors import UsageError
from entmtp_local.files import open_file, reason, replace_file

FORMAT, VERSION = "entmtp-local bench", 1
_MOST = 1e300  # that a number may be, whatever it counts: more is infinite, or soon will be
_MOST_ROUNDS, _MOST_TOKENS = 1 << 20, 1 << 27
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
        n_models, n_prompts = len(content["models"]), content["settings"].get("n_prompts")
        if not (
            type(n_prompts) is int
            and all(map(_is_model, content["models"]))
            and all(_is_visit(visit, n_models, n_prompts) for visit in content["visits"])
            and all(_has(each, gap=_is_number, tolerance=_is_amount) for each in content["judged"].values())
        ):
            raise UsageError(
                f"{path} is damaged: what it says of settings, a model, a visit or a difference cannot be; measure again."
            )
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


# -- whether what is read has what results are computed from


def _has(found: object, **wanted: Callable[[Any], bool]) -> bool:
    return isinstance(found, dict) and all(name in found and is_right(found[name]) for name, is_right in wanted.items())


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -_MOST <= value <= _MOST  # type: ignore[operator]


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_known_amount(value: object) -> bool:
    return value is None or _is_amount(value)


def _below(n: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value < n


def _list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _dict_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_amount, value))


def _is_model(model: dict[str, Any]) -> bool:
    texts = _dict_of(_list_of(_list_of(lambda token: type(token) is int)))
    return (
        _has(model, label=_is_text, quantisation=_is_text, size_bytes=_is_amount, n_vocab=_is_amount)
        and _list_of(_is_swept)(model.get("sweep", []))
        and texts(model.get("plain", {}))
        and _dict_of(lambda found: _has(found, p_value=_is_amount) or _has(found, error=_is_text))(model.get("chi_square", {}))
    )


def _is_swept(row: dict[str, Any]) -> bool:
    measured = {"temp": _is_amount, "workload": _is_text, "tokens_per_second": _is_amount}
    return _has(row, arm=_is_text, setting=_is_setting) and ("error" in row or _has(row, **measured))


def _is_setting(setting: object) -> bool:
    return isinstance(setting, dict) and setting.keys() == {field.name for field in fields(StockSetting)}


def _is_visit(visit: dict[str, Any], n_models: int, n_prompts: int) -> bool:
    about = {"round": _below(_MOST_ROUNDS), "model": _below(n_models), "temp": _is_amount}
    names = dict.fromkeys(("workload", "arm", "kind"), _is_text)
    memory = dict.fromkeys(("resident_bytes", "device_bytes"), _is_known_amount)
    return _has(visit, **about, **names) and (
        "error" in visit
        or _has(visit, load_seconds=_is_amount, texts=_list_of(lambda found: _is_answer(found, n_prompts)), **memory)
    )


def _is_answer(text: dict[str, Any], n_prompts: int) -> bool:
    amounts = ("n", "n_prompt", "n_drafted", "prefill_seconds", "decode_seconds")
    return _has(
        text,
        prompt=_below(n_prompts),
        n_steps=_is_known_amount,
        accepted_per_depth=_list_of(_is_amount),
        parts=_dict_of(_is_amount),
        pace=_list_of(_is_point),
        **dict.fromkeys(("compared", "loops", "ended"), _is_flag),
        **dict.fromkeys(amounts, _is_amount),
    ) and (not text["compared"] or _is_difference(text))


def _is_difference(text: dict[str, Any]) -> bool:
    found = text.get("difference", "")
    return found is None or (_has(text, key=_is_text) and _has(found, at=_below(_MOST_TOKENS), token=_is_number))


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
