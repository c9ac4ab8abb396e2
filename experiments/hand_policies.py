"""Networks with weights that a hand wrote, of the architectures that the trainer exports: nothing has to be trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flywheel.policy import Policy
from flywheel.task import Task, spec_of
from flywheel.testing import GOOD

Layer = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weights [out, in] and biases [out]."""


def cartpole_policy(task: Task) -> Policy:
    """Return one of 64 and 64 tanh units that keeps the pole up: a linear rule in two units, the others are noise."""
    rng = np.random.default_rng(0)
    one, two = (rng.normal(0.0, 0.3, shape) for shape in ((64, 4), (64, 64)))
    one[0], two[0] = 0.01 * np.array(GOOD), np.eye(64)[0]  # so small that tanh is straight there
    out = np.zeros((2, 64))
    out[:, 0] = -50.0, 50.0
    return _policy(task, [(one, np.zeros(64)), (two, np.zeros(64)), (out, np.zeros(2))], "Tanh")


def hopper_policy(task: Task) -> Policy:
    """Return one of 64 and 64 tanh units that moves somehow."""
    rng = np.random.default_rng(0)
    sizes = (11, 64, 64, 3)
    layers = [
        (rng.normal(0.0, size**-0.5, (next_, size)), np.zeros(next_)) for size, next_ in itertools.pairwise(sizes)
    ]
    return _policy(task, layers, "Tanh")


def lander_policy(task: Task) -> Policy:
    """Return one of 128 and 128 relu units that mostly lands: the rule of Gymnasium's `lunar_lander.heuristic`."""
    x, y, vx, vy, angle, turn, left, right = np.eye(8)
    tilt = 0.5 * x + vx
    signed = [(v, 0.0) for u in (x, y, vy, angle, turn) for v in (u, -u)]
    first = [*signed, (left + right, 0.0), (tilt, 0.4), (tilt, -0.4)]  # the last two: the tilt, cut off at ±0.4
    px, nx, py, ny, pv, nv, pa, na, pt, nt, legs, more, less = np.eye(128)[: len(first)]
    todo = 0.5 * (more - less - pa + na) - pt + nt  # of the angle: less a half of 0.4
    fall = 0.275 * (px + nx) - 0.5 * (py - ny)
    stands = 10.0 * legs  # what neither angle nor height is corrected in
    second = [(todo - stands, -0.2), (-todo - stands, 0.2), (fall - stands, 0.0), (-fall - stands, 0.0)]
    second += [(pv, 0.0), (nv, 0.0)]
    a, b, c, d, e, f = np.eye(128)[: len(second)]
    out = [(0 * a, 0.05), (a - b, 0.0), (c - d - 0.5 * (e - f), 0.0), (b - a, 0.0)]
    return _policy(task, [_padded(first, 8), _padded(second, 128), _layer(out)], "Relu")


def _layer(units: Sequence[tuple[NDArray[np.float64], float]]) -> Layer:
    return np.array([weights for weights, _ in units]), np.array([bias for _, bias in units])


def _padded(units: Sequence[tuple[NDArray[np.float64], float]], size: int) -> Layer:
    """Return a layer of 128 units: these, and others that nothing reads."""
    rng = np.random.default_rng(0)
    return _layer([*units, *((rng.normal(0.0, 0.3, size), 0.0) for _ in range(128 - len(units)))])


def _policy(task: Task, layers: Sequence[Layer], activation: str) -> Policy:
    nodes, tensors, reads = [], [], "observations"
    for i, layer in enumerate(layers):
        names = [f"weight{i}", f"bias{i}"]
        tensors += [numpy_helper.from_array(array.astype(np.float32), n) for array, n in zip(layer, names, strict=True)]
        last = i == len(layers) - 1
        gives = "outputs" if last else f"sum{i}"
        nodes.append(helper.make_node("Gemm", [reads, *names], [gives], transB=1))
        if not last:
            nodes.append(helper.make_node(activation, [gives], [f"unit{i}"]))
            reads = f"unit{i}"
    ends = [("observations", layers[0][0].shape[1]), ("outputs", len(layers[-1][0]))]
    taken, given = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])] for name, size in ends)
    graph = helper.make_graph(nodes, "hand", taken, given, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Policy(model.SerializeToString(), spec_of(task))
