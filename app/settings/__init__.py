"""All settings. NAME is YOLOPARD_NAME in the environment and --name on the command line."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.errors import SettingsError
from app.settings.model import ModelSettings
from app.settings.places import DEMO, DEMO_WEIGHTS, ENGINES_DIR
from app.settings.server import PROTOCOLS, ServerSettings

__all__ = ["DEMO", "DEMO_WEIGHTS", "ENGINES_DIR", "FIELDS", "PREFIX", "PROTOCOLS", "ModelSettings", "ServerSettings"]

PREFIX = "YOLOPARD_"
FIELDS = ModelSettings.model_fields | ServerSettings.model_fields
RENAMED = {  # old name: what to use instead
    "lanes": "renamed to INSTANCES",
    "shapes": "now part of IMGSZ: give IMGSZ=640x640,384x640",
    "rect": "now part of IMGSZ: IMGSZ=640 means the smallest rectangles, IMGSZ=640x640 squares",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a server and of its model."""

    server: ServerSettings = field(default_factory=ServerSettings)  # type: ignore[arg-type]  # all have defaults
    model: ModelSettings = field(default_factory=ModelSettings)  # type: ignore[arg-type]

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make settings from values by lower-case name. Raises SettingsError with every wrong value."""
        server = {name: value for name, value in values.items() if name in ServerSettings.model_fields}
        found: list[Any] = []
        problems: list[ErrorDetails] = []
        rest = {name: value for name, value in values.items() if name not in server}
        for kind, given in ((ServerSettings, server), (ModelSettings, rest)):
            try:
                found.append(kind(**given))
            except ValidationError as error:
                problems += error.errors()
        if problems:
            order = [*FIELDS, *values]
            problems.sort(key=lambda problem: order.index(str(problem["loc"][0])) if problem["loc"] else len(order))
            raise SettingsError("; ".join(dict.fromkeys(map(_explain, problems))))
        return cls(*found)

    @classmethod
    def read(cls, options: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> Self:
        """Make settings from command-line options and the environment; options win. Raises SettingsError."""
        named = {name.removeprefix(PREFIX): value for name, value in environ.items() if name.startswith(PREFIX)}
        if wrong := [name for name in named if name != name.upper()]:
            raise SettingsError(f"{PREFIX}{wrong[0]}: no such setting; names are upper case in the environment")
        return cls.of(**{name.lower(): value for name, value in named.items()} | dict(options))

    def given(self) -> dict[str, str]:
        """Return the settings that were set explicitly, by name, as text that `read` accepts."""
        values = self.model.model_dump(exclude_unset=True) | self.server.model_dump(exclude_unset=True)
        return {name: str(value) for name, value in values.items()}


def _explain(problem: ErrorDetails) -> str:
    name, text = str(problem["loc"][0]) if problem["loc"] else "", problem["msg"].removeprefix("Value error, ")
    if not name:  # about several settings, named in the text
        return text
    if problem["type"] == "extra_forbidden":
        known = ", ".join(each.upper() for each in FIELDS)
        return f"{name.upper()}: {RENAMED.get(name, f'no such setting; the settings are {known}')}"
    given = "..." if name == "api_keys" else problem["input"]
    return f"{name.upper()}={given}: {text}"
