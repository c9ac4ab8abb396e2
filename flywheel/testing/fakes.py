"""Public fakes and laws for tests, without Ray and without torch: policies that are one matrix, and what worlds obey.

`write_linear_artifact(directory, cartpole)` masters CartPole with a short and with a long pole; with the gains
SHORT_POLE it masters only the short one, with BAD it falls within some steps. `check_worlds(task)` tries whether
the worlds of your own task are what the gate and the trace take them for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from flywheel.errors import UsageError
from flywheel.policy import Policy, write_artifact
from flywheel.records import Array, Artifact, Episode, Spec
from flywheel.simulate import play
from flywheel.task import Task, spec_of

GOOD = (3.0, 6.0, 60.0, 24.0)
"""Gains on CartPole's observation that keep the pole up for 500 steps, at half lengths 0.5 and 2.0."""
SHORT_POLE = (0.9, 2.4, 30.0, 6.0)
"""Gains that do so at half length 0.5 and always fail at 2.0: what a policy trained on the old pole is like."""
BAD = (0.0, 0.0, -30.0, 0.0)
"""Gains that push CartPole's pole over."""


def linear_policy(
    spec: Spec, gains: ArrayLike, bias: ArrayLike | None = None
) -> tuple[bytes, dict[str, Array], tuple[Array, Array]]:
    """Return the network (ONNX), weights and golden vectors of a policy whose outputs are observation @ gains.T + bias.

    `gains` is float[D, o], D the spec's `num_outputs` (logits, of every sub-action; or mean and log deviation of a
    box action), o the size of a flattened observation; float[o] stands for two actions, the second one being likelier
    the larger gains·observation is.
    """
    matrix = np.asarray(gains, dtype=np.float32)
    if matrix.ndim == 1:
        matrix = np.stack([-matrix, matrix]) / np.float32(2)
    offset = np.zeros(len(matrix), np.float32) if bias is None else np.asarray(bias, dtype=np.float32)
    node = helper.make_node("Gemm", ["observations", "gains", "bias"], ["outputs"], transB=1)
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("observations", TensorProto.FLOAT, ["batch", matrix.shape[1]])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["batch", matrix.shape[0]])],
        [numpy_helper.from_array(matrix, "gains"), numpy_helper.from_array(offset, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    observations = np.random.default_rng(0).normal(0.0, 0.1, (16, *spec.observation_shape))
    rows = observations.astype(np.float32).reshape(16, -1)
    golden = (observations.astype(spec.observation_dtype), rows @ matrix.T + offset)
    return model.SerializeToString(), {"gains": matrix, "bias": offset}, golden


def load_linear(task: Task, gains: ArrayLike = GOOD, bias: ArrayLike | None = None, digest: str = "") -> Policy:
    """Return a linear policy ready to act, without writing it anywhere."""
    spec = spec_of(task)
    return Policy(linear_policy(spec, gains, bias)[0], spec, digest)


def write_linear_artifact(
    policies: Path,
    task: Task,
    gains: ArrayLike = GOOD,
    *,
    bias: ArrayLike | None = None,
    version: int = 1,
    parent: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
    made_at: float = 0.0,
) -> Artifact:
    """Write a linear policy to `policies/<digest>/` and return its Artifact."""
    spec = spec_of(task)
    network, weights, golden = linear_policy(spec, gains, bias)
    return write_artifact(
        policies,
        network=network,
        weights=weights,
        spec=spec,
        golden=golden,
        version=version,
        parent=parent,
        trained_on=trained_on or {},
        made_at=made_at,
    )


def check_worlds(task: Task, num_worlds: int = 6) -> None:
    """Raise UsageError unless a world is a function of its own seed, parameters and actions alone; return None.

    A random policy plays each world among the others, among them in reverse order, alone, and as an environment of
    its own instead of in the vector form: all four must be equal to the last bit.
    """
    spec = spec_of(task)
    policy = load_linear(task, np.zeros((spec.num_outputs, int(np.prod(spec.observation_shape)))))

    def _played(worlds: Sequence[int], task: Task = task) -> list[Episode]:
        return play(task, policy, seeds=worlds, parameters=[task.nominal] * len(worlds), draw_keys=worlds)

    together = _played(range(num_worlds))
    again = {
        "in reverse order": _played(range(num_worlds)[::-1])[::-1],
        "alone": [_played([world])[0] for world in range(num_worlds)],
        "without the vector form": _played(range(num_worlds), dataclasses.replace(task, vector=None)),
    }
    for way, episodes in again.items():
        for world, (one, other) in enumerate(zip(together, episodes, strict=True)):
            if any(getattr(one, n).tobytes() != getattr(other, n).tobytes() for n in ("observations", "rewards")):
                raise UsageError(
                    f"World {world} of task {task.name} goes another way when it is played {way}: draw everything "
                    "random in it from the environment's own np_random, and keep no state across resets."
                )
