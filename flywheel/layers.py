"""Settings from several places, each over those before it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flywheel.config import Config
from flywheel.errors import UsageError, unknown
from flywheel.replaying import OWN


def layered(layers: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the defaults with every layer's values over those before it; a layer's key says where it comes from.

    Raises UsageError with the nearest name for a setting that doesn't exist, and for a value of the wrong type.
    """
    plain: dict[str, Any] = {}
    for source, layer in layers.items():
        _check_names(source, layer, Config(), "")
        plain = _over(plain, layer)
        try:
            config = msgspec.convert(plain, Config)
        except msgspec.ValidationError as error:
            raise UsageError(f"{source}: {error}.") from error
    return config if layers else Config()


def of_task(name: str, settings: Mapping[str, Any], algorithm: str = "") -> dict[str, Mapping[str, Any]]:
    """Return the layers that a task's own settings make, for the algorithm that they name or for another one.

    What an algorithm needs whatever the task is comes before settings that were made for it, and over those that were
    made for another one; the section of the task that bears its name comes over both.
    """
    source, common = f"the settings of task {name}", {key: settings[key] for key in settings if key not in OWN}
    train = common.get("train")
    usual = train.get("algorithm", "ppo") if isinstance(train, Mapping) else "ppo"
    chosen = algorithm if algorithm in OWN else usual
    needs = {f"what {chosen} needs": {"train": OWN.get(chosen, {})}}
    if chosen == usual:
        return {**needs, source: common}
    own = {"train": {**settings.get(chosen, {}), "algorithm": chosen}}
    return {source: common, **needs, f"{source} for {chosen}": own}


def _check_names(source: str, layer: Mapping[str, Any], fields: Any, where: str) -> None:
    known = [field.name for field in dataclasses.fields(fields)]
    for name, value in layer.items():
        if name not in known:
            raise unknown(f"setting in {source}:", f"{where}{name}", [f"{where}{other}" for other in known])
        if isinstance(value, Mapping) and dataclasses.is_dataclass(getattr(fields, name)):
            _check_names(source, value, getattr(fields, name), f"{where}{name}.")


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: _over(below.get(name, {}), value) for name, value in above.items() if isinstance(value, Mapping)}
    return {**below, **above, **both}


def named_values(words: Sequence[str]) -> dict[str, Any]:
    """Return the mapping that NAME=VALUE words give, or one JSON object; a value that is no JSON is text.

    Raises ValueError for a word that is neither.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("{"):
            found |= msgspec.json.decode(word, type=dict[str, Any])
        elif not equals or not name:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        else:
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
    return found


def words_from(values: Mapping[str, Any]) -> list[str]:
    """Return the words by which `named_values` gives this mapping."""
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]
