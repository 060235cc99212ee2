"""Puts the patch series and the shipped model into the wheel, where they are package data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SHIPPED_MODELS = ("reference-11m.gguf",)


class PackageDataHook(BuildHookInterface):
    """Maps folders of the checkout to folders of the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files; an editable install finds them in the checkout."""
        if version == "editable":
            return
        root = Path(self.root)
        included = build_data["force_include"]
        for path in [root / "patches" / "UPSTREAM", *sorted((root / "patches").glob("*.patch"))]:
            included[str(path)] = f"entmtp_local/_patches/{path.name}"
        for name in _SHIPPED_MODELS:
            if (root / "models" / name).is_file():
                included[str(root / "models" / name)] = f"entmtp_local/_models/{name}"
