"""Values of `train.rllib` that stand for more than JSON can say: functions, classes and networks, by their names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from flywheel.errors import UsageError, unknown
from flywheel.train.running import HOOKS

_CALLED = (*HOOKS, "on_algorithm_init", "on_train_result", "on_env_runners_recreated", "learner_connector")
_VECTORIZED = ("sync", "async")
_OWN_LAYERS = {
    "fcnet_hiddens": "set train.hidden", "fcnet_activation": "set train.activation",
    "vf_share_layers": "policy and critic share no layers, so that a policy is exported without its critic",
}  # fmt: skip
_REMEMBERS = "a policy that remembers can't be served: it answers each observation by itself, on any replica"
_FLAT = "observations come as one row of numbers, also those of images: give rl_module_spec a module that folds them"


def meant(ready: AlgorithmConfig, name: str, value: Any) -> Any:
    """Return what RLlib is given for a setting's value in `train.rllib`. Raises UsageError where that can't be."""
    if value is None:
        return None
    if name == "gym_env_vectorize_mode" and value not in _VECTORIZED:
        raise UsageError(
            f"train.rllib gives gym_env_vectorize_mode as {value!r}: it can be sync or async (a task's vector form is "
            "what our own env runner steps)."
        )
    if name == "callbacks_class" or name in _CALLED:
        found = _imported(name, value)
        if name == "on_env_runners_recreated":  # ours tells a runner that came back its recipe
            return [ready.callbacks_on_env_runners_recreated, found]
        return found
    if name == "model_config":
        return _network(ready.model_config, value)
    if name == "rl_module_spec":
        return RLModuleSpec(module_class=_module(_imported(name, value)), catalog_class=PPOCatalog)
    return value


def _imported(name: str, value: Any) -> Any:
    """Return the function or class `module:name`."""
    module, _, attribute = str(value).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a person's module may do anything when it is imported
        raise UsageError(
            f"train.rllib gives {name} as {value!r}, and there is no such thing ({error}): give module:name, which can "
            "be imported where the env runners run."
        ) from error
    if not callable(found):
        raise UsageError(f"train.rllib gives {name} as {value!r}, which is no function or class.")
    return found


def _module(found: Any) -> Any:
    """Return a class that a policy and its critic can be of."""
    if not (isinstance(found, type) and issubclass(found, TorchRLModule) and issubclass(found, ValueFunctionAPI)):
        raise UsageError(
            f"train.rllib gives rl_module_spec as {found!r}: it has to be a TorchRLModule with a ValueFunctionAPI, as "
            "RLlib's PPO needs it."
        )
    begins: Any = found.get_initial_state  # type: ignore[attr-defined]
    if not begins.__module__.startswith("ray."):  # what RLlib's own say depends on model_config
        raise UsageError(f"train.rllib can't set rl_module_spec to {found.__name__}: {_REMEMBERS}.")
    return found


def _network(usual: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """Return RLlib's model configuration with a user's values over ours."""
    if not isinstance(given, Mapping):
        raise UsageError(f"train.rllib gives model_config as {given!r}, where RLlib takes names with values.")
    known = DefaultModelConfig.__dataclass_fields__
    for name, value in given.items():
        if name not in known:
            raise unknown("setting of RLlib's model_config:", name, known)
        why = _OWN_LAYERS.get(name)
        if name.startswith("lstm_") or name in ("use_lstm", "max_seq_len"):
            why = _REMEMBERS
        elif name.startswith("conv_") and value is not None:
            why = _FLAT
        if why:
            raise UsageError(f"train.rllib can't set model_config's {name}: {why}.")
    return {**usual, **given}
