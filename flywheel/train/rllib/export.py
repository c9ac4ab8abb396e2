"""RLModule → ONNX, once an architecture; later policies replace the graph's weights, which takes a millisecond."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from flywheel.errors import FlywheelError, Refused
from flywheel.policy import Files, pack
from flywheel.records import ELSEWHERE, Array, Spec
from flywheel.train.rllib.filtering import Filter

_PREFIX = "module."


class _Acting(torch.nn.Module):
    """What the policy answers with, and nothing of the critic."""

    def __init__(self, module: Any, filter: Filter | None = None) -> None:
        super().__init__()
        self.module, self.filter = module, filter

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return float32[N, D]: the outputs that an action is drawn from."""
        seen = observations if self.filter is None else self.filter(observations)
        outputs: torch.Tensor = self.module._forward({"obs": seen})["action_dist_inputs"]
        return outputs


class Exporter:
    """The ONNX graph of one architecture, after one filter of observations, where there is one."""

    def __init__(self, module: Any, spec: Spec, filter: Filter | None = None) -> None:
        """Trace the module's acting part, with one free axis: the batch.

        Raises FlywheelError when the graph does not hold the acting part's weights under the module's own names,
        for then they could not be replaced, and Refused for a module that remembers.
        """
        if module.is_stateful():
            raise Refused(
                "This policy remembers what it saw (an LSTM or the like), and what is served answers each observation "
                "by itself: let the environment show what is to be remembered, "
                "as gymnasium.wrappers.FrameStackObservation does."
            )
        example = torch.zeros(2, int(np.prod(spec.observation_shape)))
        acting = _Acting(copy.deepcopy(module), filter).eval().requires_grad_(True)  # a target network has none
        with torch.no_grad():
            # Tensors that are equal (fresh biases are all zero) would become one tensor of the graph.
            for parameter in acting.parameters():
                parameter.copy_(torch.randn_like(parameter))
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            # The TorchScript exporter is deprecated but takes 40 ms where its successor takes 4 s of CPU; both give
            # the same nodes and names (torch is pinned, and the tests compare the answers).
            warnings.simplefilter("ignore", DeprecationWarning)
            path = Path(directory) / "policy.onnx"
            torch.onnx.export(
                acting,
                (example,),
                str(path),
                input_names=["observations"],
                output_names=["outputs"],
                dynamic_axes={"observations": {0: "rows"}, "outputs": {0: "rows"}},
                dynamo=False,
            )
            self._model = onnx.load(str(path))
        used = {name for node in self._model.graph.node for name in node.input}
        self._weights = {
            tensor.name.removeprefix(_PREFIX): tensor
            for tensor in self._model.graph.initializer
            if tensor.name.startswith(_PREFIX) and tensor.name in used
        }
        acts = {name for name, parameter in acting.module.named_parameters() if _is_read(acting, parameter, example)}
        if missing := sorted(acts - set(self._weights)):
            raise FlywheelError(
                f"The ONNX graph lacks {', '.join(missing)}, so this module's weights can't be replaced in it. "
                "Export it afresh each time, or use RLlib's default module."
            )

    def network(self, weights: Mapping[str, Array]) -> bytes:
        """Return the ONNX bytes of this architecture with the given weights, by the module's own keys."""
        for name, tensor in self._weights.items():
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[name]), tensor.name))
        network: bytes = self._model.SerializeToString()
        return network


def exported(
    algorithm: Any, spec: Spec, *, version: int, made_at: float, ranges: Mapping[str, Any]
) -> tuple[str, Files]:
    """Return digest and files of what an RLlib algorithm has learnt, its observation filter in the network.

    Golden vectors come from RLlib's own filter and module, so that an export without the filter is refused wherever it
    is loaded. `ranges` are as in `foreign.files`; nothing is trained from it here. Raises Refused where observations go
    through anything else than a filter.
    """
    module = algorithm.get_module()
    filter = Filter(algorithm.env_to_module_connector or algorithm.env_runner._env_to_module)
    observations, _ = golden(module, spec)
    seen = filter.filtered(observations)
    weights = {name: np.array(value) for name, value in module.get_state(inference_only=False).items()}
    return pack(
        network=Exporter(module, spec, filter).network(weights),
        weights={},
        spec=spec,
        golden=(observations, answered(module, seen)),
        filtered=(filter.name, seen) if filter.name else None,
        version=version,
        parent=None,
        trained_on={"strategy": ELSEWHERE, "parameters": {name: list(span) for name, span in ranges.items()}},
        made_at=made_at,
    )


def _is_read(acting: _Acting, parameter: torch.nn.Parameter, example: torch.Tensor) -> bool:
    """Return whether the outputs depend on a parameter, by asking autograd."""
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(acting(example).sum(), [parameter], allow_unused=True)
    return gradient is not None


def golden(module: Any, spec: Spec, num_rows: int = 16) -> tuple[Array, Array]:
    """Return observations [num_rows, *o] inside their space and the module's own outputs float32[num_rows, D]."""
    rng = np.random.default_rng(0)
    low = np.clip(np.array(spec.observation_low), -1.0, None)
    high = np.clip(np.array(spec.observation_high), None, 1.0)
    top, size = np.maximum(high, low), (num_rows, len(low))
    rows: Array = rng.uniform(low, top, size=size)
    if not np.issubdtype(spec.observation_dtype, np.floating):  # cut off, nearly all of them would be 0
        rows = rng.integers(np.ceil(low).astype(int), top.astype(int), size, endpoint=True)
    rows = rows.astype(spec.observation_dtype)
    return rows.reshape(num_rows, *spec.observation_shape), answered(module, rows)


def answered(module: Any, rows: Array) -> Array:
    """Return the module's own outputs float32[N, D] for what it sees [N, *o]."""
    with torch.no_grad():
        outputs = _Acting(module)(torch.as_tensor(rows.reshape(len(rows), -1), dtype=torch.float32))
    answers: Array = outputs.numpy().astype(np.float32)
    return answers
