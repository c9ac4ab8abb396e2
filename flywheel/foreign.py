"""Policies that were trained elsewhere: any ONNX file that answers observations with logits, or means, of the task.

In: an ONNX file, the task's Spec, what is otherwise for this policy. Out: a Policy ready to act, or its Artifact.
Never: takes a network whose shapes don't fit, or trains from one (its weights have no names that training knows).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flywheel.errors import Refused, UsageError, unknown
from flywheel.policy import TOLERANCE, Files, Policy, pack
from flywheel.records import ELSEWHERE, Array, Artifact, Correction, Parameters, Spec

NUM_GOLDEN = 16
"""Observations that a network is tried with, and has to answer the same way wherever it is loaded."""
_OPEN = ("rule", "unsquash")
_WIDE = 1e6  # a bound beyond it is none: environments write float32's largest number


def read_changes(path: str | Path) -> dict[str, Any]:
    """Return what a `--spec` file says: a JSON object. Raises UsageError when it is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The spec file {path} can't be read: {error}.") from error
    if not isinstance(found, dict):
        raise UsageError(f'The spec file {path} must hold a JSON object, such as {{"rule": {{"greedy": true}}}}.')
    return found


def change(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    """Return the task's Spec with this policy's own acting rule and units.

    Raises UsageError for a name that a Spec doesn't have, and for what the environment decides.
    """
    fields = {field.name for field in dataclasses.fields(spec)}
    for name in changes:
        if name not in fields:
            raise unknown("field of a Spec:", name, _OPEN)
        if name not in _OPEN:
            raise UsageError(
                f"A policy has the {name} that its task's environment decides ({getattr(spec, name)}) and no other. "
                f"Only {' and '.join(_OPEN)} may be given."
            )
    plain = dataclasses.asdict(spec.rule)
    rule = changes.get("rule", {})
    if not isinstance(rule, dict):
        raise UsageError(f'"rule" must be an object, such as {{"greedy": true}}, not {rule!r}.')
    for name in rule:
        if name not in plain or name == "kind":
            raise unknown("field of a policy's rule:", f"rule.{name}", [f"rule.{n}" for n in plain if n != "kind"])
    try:
        changed: Spec = msgspec.convert({**dataclasses.asdict(spec), **changes, "rule": {**plain, **rule}}, Spec)
    except msgspec.ValidationError as error:
        raise UsageError(f"The policy's spec can't be used: {error}.") from error
    if changed.unsquash and not spec.unsquash:
        raise UsageError("unsquash stretches [-1, 1] to the action's bounds, and this task's action has none.")
    if not (0.0 <= changed.rule.exploration_rate <= 1.0 and changed.rule.temperature > 0.0):
        raise UsageError("rule.exploration_rate is a share from 0 to 1, and rule.temperature is more than 0.")
    return changed


def load(source: str | Path | bytes, spec: Spec, changes: Mapping[str, Any] | None = None) -> Policy:
    """Return the policy of an ONNX file (or its bytes), tried on observations of the task; its digest is its sha256.

    `spec` is the task's, `changes` what is otherwise for this policy: {"rule": {"greedy": true}} acts by the mean or
    the largest logit; {"unsquash": false} says that a Box policy answers in the environment's own units. Such a
    network is given a last layer that turns them into [-1, 1], so that raw actions mean the same for all policies of
    the task. Raises UsageError for a file or changes that can't be read, Refused for a network that doesn't fit.
    """
    if isinstance(source, bytes):
        network = source
    else:
        try:
            network = Path(source).read_bytes()
        except OSError as error:
            raise UsageError(f"The policy {source} can't be read ({error}): give the path of an ONNX file.") from error
    changed = change(spec, changes or {})
    policy = Policy(network, changed)
    _check_input(policy)
    width = _check_outputs(policy)
    if spec.unsquash and not changed.unsquash:
        network = _in_raw_units(network, spec, width)
        changed = dataclasses.replace(changed, unsquash=True)
    return Policy(network, changed, hashlib.sha256(network).hexdigest())


def files(
    policy: Policy,
    *,
    version: int,
    made_at: float,
    ranges: Mapping[str, Any],
    correction: Correction | None = None,
) -> tuple[str, Files]:
    """Return digest and files of a policy from `load`; it has no weights, so nothing is trained from it.

    `ranges` are the simulator's parameters that it is judged for, as a Plan names them, and its `correction`.
    """
    observations = sample(policy.spec)
    return pack(
        network=policy.network,
        weights={},
        spec=policy.spec,
        golden=(observations, policy.outputs(observations)),
        version=version,
        parent=None,
        trained_on={
            "strategy": ELSEWHERE,
            "parameters": {name: list(span) for name, span in ranges.items()},
            "network": policy.digest,
            **({} if correction is None else {"correction": dataclasses.asdict(correction)}),
        },
        made_at=made_at,
    )


def is_of(artifact: Artifact, policy: Policy) -> bool:
    """Say whether an artifact is this very policy from `load`: the same network and the same acting rule."""
    return artifact.trained_on.get("network") == policy.digest and artifact.spec == policy.spec


def middle(ranges: Mapping[str, tuple[float, float]]) -> Parameters:
    """Return the parameters that a policy is judged at: the middle of each range, as for a trained one."""
    return {name: (low + high) / 2 for name, (low, high) in ranges.items()}


def sample(spec: Spec) -> Array:
    """Return observations dtype[16, *o] inside the space, always the same ones; standard normal where it has no end."""
    rng = np.random.default_rng(0)
    low, high = np.array(spec.observation_low), np.array(spec.observation_high)
    bounded = (np.abs(low) < _WIDE) & (np.abs(high) < _WIDE)
    inside = rng.uniform(np.where(bounded, low, 0.0), np.where(bounded, high, 1.0), (NUM_GOLDEN, len(low)))
    wide = np.clip(rng.normal(size=(NUM_GOLDEN, len(low))), low, high)
    rows = np.where(bounded, inside, wide).reshape(NUM_GOLDEN, *spec.observation_shape)
    return rows.astype(spec.observation_dtype)


def _check_input(policy: Policy) -> None:
    """Raise Refused unless the network takes float32[any number, size of an observation] and nothing else."""
    size = int(np.prod(policy.spec.observation_shape))
    wanted = f"one input float32[N, {size}] (N observations of {list(policy.spec.observation_shape)}, flattened)"
    name, kind, shape = policy.inputs[0]
    found = f"The network's input {name!r} is {kind} {shape}, expected {wanted}"
    if kind != "tensor(float)":
        raise Refused(f"{found}: export it in float32.")
    if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != size):
        raise Refused(f"{found}: it was trained on other observations, or its export doesn't flatten them.")
    if isinstance(shape[0], int):
        raise Refused(
            f"{found}: its batch is fixed at {shape[0]}. Export it with a free first axis "
            f"(torch.onnx.export(..., dynamic_axes={{{name!r}: {{0: 'N'}}}}, dynamo=False))."
        )


def _check_outputs(policy: Policy) -> int:
    """Return the number of outputs a row; raise Refused unless it is one the task's actions can be read from."""
    spec = policy.spec
    size = int(np.prod(spec.action_shape))
    widths: tuple[int, ...]
    if spec.action_kind != "box":
        widths, wanted = (spec.num_outputs,), f"[N, {spec.num_outputs}] logits, one an action"
    elif spec.rule.greedy:
        widths = (size, 2 * size)
        wanted = f"[N, {size}] means, or [N, {2 * size}] means and log deviations"
    else:
        widths, wanted = (2 * size,), f"[N, {2 * size}] means and log deviations"
    name, kind, _ = policy.answers[0]
    observations = sample(spec)
    try:
        found = policy.outputs(observations)
        alone = [policy.outputs(row[None]) for row in observations]
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise Refused(f"The network can't answer {len(observations)} observations of the task: {error}") from error
    if kind != "tensor(float)" or found.ndim != 2 or len(found) != len(observations) or found.shape[1] not in widths:
        hint = ""
        if spec.action_kind == "box" and found.shape[1:] == (size,) and not spec.rule.greedy:
            hint = ' Means alone need a greedy rule: give --spec a file with {"rule": {"greedy": true}}.'
        elif "int" in kind:
            hint = " Export what the actions are chosen from, not the actions."
        raise Refused(
            f"The network's output {name!r} is {kind} {list(found.shape)} for {len(observations)} observations, "
            f"expected float32 {wanted}.{hint}"
        )
    if not np.isfinite(found).all():
        raise Refused("The network answers an observation of the task with a number that is not finite.")
    if not np.allclose(np.concatenate(alone), found, rtol=TOLERANCE, atol=TOLERANCE):
        raise Refused(
            "The network answers an observation otherwise when others stand beside it, so no action could be computed "
            "again: export it in evaluation mode (module.eval())."
        )
    return int(found.shape[1])


def _in_raw_units(network: bytes, spec: Spec, width: int) -> bytes:
    """Return the network with a last layer from the environment's units to raw actions in [-1, 1]."""
    import onnx
    from onnx import helper, numpy_helper

    low, high = np.array(spec.action_low), np.array(spec.action_high)
    scale = 2.0 / (high - low)
    logs = np.log(scale)[: width - len(scale)]  # of the deviations, where there are any
    factor: NDArray[np.float32] = np.concatenate([scale, np.ones(len(logs))]).astype(np.float32)
    shift: NDArray[np.float32] = np.concatenate([-low * scale - 1.0, logs]).astype(np.float32)
    model = onnx.load_model_from_string(network)
    output = model.graph.output[0]
    names = {name: f"flywheel.{name}" for name in ("factor", "shift", "scaled", "raw")}
    model.graph.initializer.extend(
        [numpy_helper.from_array(factor, names["factor"]), numpy_helper.from_array(shift, names["shift"])]
    )
    model.graph.node.extend(
        [
            helper.make_node("Mul", [output.name, names["factor"]], [names["scaled"]]),
            helper.make_node("Add", [names["scaled"], names["shift"]], [names["raw"]]),
        ]
    )
    output.name = names["raw"]
    data: bytes = model.SerializeToString()
    return data
