"""A policy at rest and in action: ONNX Runtime runs the network, row-wise NumPy draws the action.

An action is a function of (digest, observation, draws). Loads no Ray and no torch, and runs no code from an artifact:
the files are ONNX, safetensors and JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flywheel.config import canonical
from flywheel.draws import chances_of, log_slope, squash
from flywheel.errors import Refused
from flywheel.records import SCHEMA_VERSION, Array, Artifact, Rule, Spec

NETWORK = "policy.onnx"
WEIGHTS = "weights.safetensors"
MANIFEST = "manifest.json"
TOLERANCE = 1e-5
"""Largest difference between an output and its golden vector on another CPU kind or library version."""
NO_DEVIATIONS = "The policy gives means without deviations, so its actions can't be drawn: its rule is greedy."


class Policy:
    """One network and its acting rule, ready to act."""

    def __init__(self, network: bytes, spec: Spec, digest: str = "") -> None:
        """Load the network from ONNX bytes. `digest` is "" for a candidate that isn't an artifact yet."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise Refused(f"The network can't be loaded by ONNX Runtime: {error}") from error
        reads, gives = (
            [node.name for node in nodes] for nodes in (self._session.get_inputs(), self._session.get_outputs())
        )
        if len(reads) != 1 or len(gives) != 1:
            raise Refused(
                f"The network reads {', '.join(reads)} and gives {', '.join(gives)}. Recurrent policies are not "
                "supported: a network reads one batch of observations and gives one batch of outputs, with no state "
                "in or out. Export only those, or train a policy without memory."
            )
        self._input, self._gives = reads[0], gives
        self.spec = spec
        self.digest = digest
        self.network = network
        self.num_bytes = len(network)

    @property
    def inputs(self) -> list[tuple[str, str, list[Any]]]:
        """What the network takes: (name, ONNX type, shape) each; a free axis of a shape is a name or None."""
        return [(node.name, node.type, node.shape) for node in self._session.get_inputs()]

    @property
    def answers(self) -> list[tuple[str, str, list[Any]]]:
        """What the network gives, as `inputs`."""
        return [(node.name, node.type, node.shape) for node in self._session.get_outputs()]

    def outputs(self, observations: Array) -> NDArray[np.float32]:
        """Return the network's outputs float32[N, D] for observations [N, *o]; a row never depends on the others."""
        rows = np.ascontiguousarray(observations, dtype=np.float32).reshape(len(observations), -1)
        result: NDArray[np.float32] = self._session.run(self._gives, {self._input: rows})[0]
        return result

    def bound(self) -> tuple[Callable[[], object], NDArray[np.float32], NDArray[np.float32]]:
        """Return (run, observation float32[1, o], outputs float32[1, D]) for one decision after another.

        What lies in the second array when `run` is called has its outputs, those of `outputs`, in the third one then.
        """
        seen = np.zeros((1, math.prod(self.spec.observation_shape)), np.float32)
        gives = self.outputs(seen)
        binding = self._session.io_binding()
        binding.bind_input(self._input, "cpu", 0, np.float32, seen.shape, seen.ctypes.data)
        binding.bind_output(self._gives[0], "cpu", 0, np.float32, gives.shape, gives.ctypes.data)
        return functools.partial(self._session.run_with_iobinding, binding), seen, gives

    def act(
        self, observations: Array, draws: NDArray[np.float64], rule: Rule | None = None
    ) -> tuple[Array, NDArray[np.float64]]:
        """Return raw actions [N, *a] and their log probabilities float64[N] for observations [N, *o], draws [N, K].

        `rule` replaces the artifact's own acting rule (a fork's edit). Raises Refused when the network answers
        with NaN or infinity.
        """
        outputs = self.outputs(observations).astype(np.float64)
        if not math.isfinite(np.vdot(outputs, outputs)):  # squares of float32 numbers don't overflow here
            raise Refused(f"Policy {self.digest[:12] or 'candidate'} answered with a number that is not finite.")
        rule = rule or self.spec.rule
        if rule.kind == "categorical":
            return _categorical(outputs, draws, rule)
        if rule.kind == "multi_categorical":
            return _multi_categorical(outputs, draws, rule, self.spec.action_nvec)
        return _gaussian(outputs, draws, rule, self.spec.action_shape)


def _categorical(
    logits: NDArray[np.float64], draws: NDArray[np.float64], rule: Rule
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if len(logits) == 1:
        action, chance = categorical_one(logits[0].tolist(), float(draws[0, 0]), rule)
        return np.array([action]), np.array([np.log(chance)])
    chances = chances_of(logits, rule)
    below = np.add.accumulate(chances) <= draws[:, 0]
    actions = np.minimum(np.add.reduce(below, dtype=np.int64), len(chances) - 1)
    return actions, np.log(chances[actions, np.arange(len(logits))])


def categorical_one(logits: list[float], draw: float, rule: Rule) -> tuple[int, float]:
    """Return one row's action and its probability as `Policy.act` has them, to the last bit, in a fourth of the time.

    Sums and quotients are the same in Python's floats; exponentials are NumPy's here, too.
    """
    if rule.greedy:
        chances = [0.0] * len(logits)
        chances[logits.index(max(logits))] = 1.0
    else:
        scaled = logits if rule.temperature == 1.0 else [logit / rule.temperature for logit in logits]
        largest = max(scaled)
        powers = np.exp(np.array([one - largest for one in scaled])).tolist()
        *_, total = accumulate(powers)
        chances = [power / total for power in powers]
    if rule.exploration_rate:
        chances = [(1.0 - rule.exploration_rate) * c + rule.exploration_rate / len(logits) for c in chances]
    action = min(sum(reached <= draw for reached in accumulate(chances)), len(logits) - 1)
    return action, chances[action]


def _multi_categorical(
    logits: NDArray[np.float64], draws: NDArray[np.float64], rule: Rule, nvec: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    parts = np.split(logits, np.cumsum(nvec)[:-1], axis=1)
    drawn = [_categorical(part, draws[:, k : k + 1], rule) for k, part in enumerate(parts)]
    # one after another, at any number of rows: np.sum adds the parts of a single row in another order
    return np.stack([actions for actions, _ in drawn], axis=1), np.add.accumulate([logps for _, logps in drawn])[-1]


def _gaussian(
    outputs: NDArray[np.float64], draws: NDArray[np.float64], rule: Rule, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    from scipy.special import ndtri

    size = int(np.prod(shape))
    mean, log_deviation = outputs[:, :size], outputs[:, size:]
    if rule.greedy:
        mean = np.tanh(mean) if rule.squashed else mean
        return mean.astype(np.float32).reshape(-1, *shape), np.zeros(len(mean))
    if not log_deviation.size:
        raise Refused(NO_DEVIATIONS)
    deviation = np.exp(log_deviation) * rule.temperature
    actions = (mean + deviation * ndtri(draws)).astype(np.float32)
    distance = (actions - mean) / deviation
    logps = -0.5 * distance**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)
    if rule.squashed:
        actions, logps = squash(actions), logps - log_slope(actions)
    return actions.reshape(-1, *shape), logps.sum(axis=1)


def to_env(spec: Spec, raw_actions: Array) -> Array:
    """Return what the environment gets for raw actions [N, *a]: shifted, clipped or unsquashed, as RLlib does it."""
    if spec.action_kind == "discrete":
        return np.asarray(raw_actions) + spec.action_start
    if spec.action_kind == "multi_discrete":
        return np.asarray(raw_actions) + np.array(spec.action_starts, dtype=np.int64)
    return in_box(np.asarray(raw_actions, dtype=np.float32), *bounds(spec), spec.unsquash)


def bounds(spec: Spec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the lowest and the highest box action, float32[*a] each."""
    low, high = (np.asarray(bound, dtype=np.float32) for bound in (spec.action_low, spec.action_high))
    return low.reshape(spec.action_shape), high.reshape(spec.action_shape)


def in_box(
    raw_actions: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32], unsquash: bool
) -> NDArray[np.float32]:
    """Return raw box actions float32[..., *a] within their bounds, stretched to them where they are unsquashed."""
    actions = low + (raw_actions + 1.0) * (high - low) / 2.0 if unsquash else raw_actions
    inside: NDArray[np.float32] = np.minimum(np.maximum(actions, low), high)
    return inside


Files = Mapping[str, bytes]
"""A policy's files by name, as they lie in `policies/<digest>/`."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """An artifact with the files that acting needs: how a policy reaches a node that has no run directory."""

    artifact: Artifact
    files: Files

    @property
    def digest(self) -> str:
        """The artifact's digest."""
        return self.artifact.digest


def pack(
    *,
    network: bytes,
    weights: Mapping[str, Array],
    spec: Spec,
    golden: tuple[Array, Array],
    version: int,
    parent: str | None,
    trained_on: Mapping[str, Any],
    made_at: float,
    filtered: tuple[str, Array] | None = None,
) -> tuple[str, Files]:
    """Return a new policy's digest and its files.

    `golden` holds observations [16, *o] and the outputs float32[16, D] that the trainer's own module gave. Where it saw
    them through a filter, `filtered` is that one's name and what it made of them, float32[16, *o].
    """
    from safetensors.numpy import save

    files = {NETWORK: network, WEIGHTS: save({k: np.ascontiguousarray(v) for k, v in weights.items()})}
    covered = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "spec": dataclasses.asdict(spec),
        "version": version,
        "parent": parent,
        "trained_on": dict(trained_on),
        "made_at": made_at,
        "files": covered,
        "golden": {"observations": np.asarray(golden[0]).tolist(), "outputs": np.asarray(golden[1]).tolist()},
    }
    if filtered is not None:
        manifest["golden"] |= {"filter": filtered[0], "filtered": np.asarray(filtered[1]).tolist()}
    text = canonical(manifest).encode()
    return hashlib.sha256(text).hexdigest(), {**files, MANIFEST: text}


def write_files(policies: Path, digest: str, files: Files) -> Artifact:
    """Write `policies/<digest>/` durably and return its Artifact; one that exists already is left alone.

    Raises Refused, writing nothing, when the files don't have that digest.
    """
    _proven(digest, files)
    target = policies / digest
    if not target.exists():
        temporary = policies / f".{digest[:12]}-{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        for name, data in files.items():
            with open(temporary / name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        try:
            temporary.rename(target)
        except OSError:
            shutil.rmtree(temporary)
            if not target.exists():
                raise
    return read_artifact(target)


def write_artifact(policies: Path, **parts: Any) -> Artifact:
    """Write a new policy's `policies/<digest>/` durably and return its Artifact; `parts` are those of `pack`."""
    return write_files(policies, *pack(**parts))


def read_files(directory: Path) -> Files:
    """Return every file that a policy's manifest names, and the manifest; raise Refused where one can't be read."""
    files = {}
    try:
        files[MANIFEST] = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise Refused(f"There is no policy {directory.name[:12]}: its manifest can't be read ({error}).") from error
    for name in _manifest(directory.name, files)["files"]:
        try:
            files[name] = (directory / name).read_bytes()
        except OSError as error:
            raise Refused(f"Policy {directory.name[:12]} is incomplete: {name} can't be read ({error}).") from error
    return files


def read_artifact(directory: Path) -> Artifact:
    """Return the Artifact in a directory after hashing every file of it again.

    Raises Refused, naming the file, when a digest doesn't fit or a file is missing.
    """
    return dataclasses.replace(_proven(directory.name, read_files(directory)), uri=str(directory))


def bundle(artifact: Artifact) -> Bundle:
    """Return an artifact with its network and manifest, read and proven; it says no more where they lie."""
    return bundled(artifact.digest, read_files(Path(artifact.uri)))


def bundled(digest: str, files: Files) -> Bundle:
    """Return what acting needs of a policy's files, each hashed again; raise Refused when one isn't of this digest."""
    for name in (MANIFEST, NETWORK):
        if name not in files:
            raise Refused(f"Policy {digest[:12]} is incomplete: there is no {name}.")
    return Bundle(_proven(digest, files), {name: files[name] for name in (MANIFEST, NETWORK)})


def _manifest(digest: str, files: Files) -> dict[str, Any]:
    found = hashlib.sha256(files[MANIFEST]).hexdigest()
    if found != digest:
        raise Refused(f"Policy {digest[:12]} is damaged: its manifest's sha256 is {found[:12]}.")
    manifest: dict[str, Any] = json.loads(files[MANIFEST])
    return manifest


def _proven(digest: str, files: Files) -> Artifact:
    """Return the Artifact of these files after hashing each of them again; raise Refused naming the wrong one."""
    manifest = _manifest(digest, files)
    for name, data in files.items():
        if name != MANIFEST and manifest["files"].get(name, {}).get("sha256") != hashlib.sha256(data).hexdigest():
            raise Refused(f"Policy {digest[:12]} is damaged: {name} does not have the sha256 that its manifest states.")
    return Artifact(
        digest=digest,
        version=manifest["version"],
        uri="",
        spec=msgspec.convert(manifest["spec"], Spec),
        parent=manifest["parent"],
        trained_on=manifest["trained_on"],
        made_at=manifest["made_at"],
    )


def read_weights(files: Files) -> dict[str, Array]:
    """Return all weights of a policy's files, the critic's too, by the trainer's own keys."""
    from safetensors.numpy import load

    return dict(load(files[WEIGHTS]))


def read_trained_on(files: Files) -> Mapping[str, Any]:
    """Return what a policy's files say of its training."""
    found: Mapping[str, Any] = json.loads(files[MANIFEST])["trained_on"]
    return found


def activation_of(trained_on: Mapping[str, Any]) -> str:
    """Return the function between a trained policy's layers; manifests that don't name it are of tanh."""
    return str(trained_on.get("activation", "tanh"))


def load(policy: Artifact | Bundle) -> Policy:
    """Return the policy of an artifact, proven: every file hashed again, golden vectors answered (`_is_near`).

    Raises Refused otherwise.
    """
    artifact, files = (policy.artifact, policy.files) if isinstance(policy, Bundle) else (policy, None)
    files = read_files(Path(artifact.uri)) if files is None else files
    spec = _proven(artifact.digest, files).spec
    golden = _manifest(artifact.digest, files)["golden"]
    ready = Policy(files[NETWORK], spec, artifact.digest)
    observations = np.asarray(golden["observations"], dtype=spec.observation_dtype)
    expected = np.asarray(golden["outputs"], dtype=np.float32)
    if not _is_near(ready.outputs(observations), expected):
        if "filter" in golden and _is_near(ready.outputs(np.asarray(golden["filtered"])), expected):
            raise Refused(
                f"The export of policy {artifact.digest[:12]} has lost its observation filter {golden['filter']}: it "
                "answers as it was trained only where that filtered observations before. Export it with the filter in "
                "its network."
            )
        raise Refused(
            f"Policy {artifact.digest[:12]} does not answer its golden vectors: its export is not what was trained."
        )
    return ready


def _is_near(found: Array, expected: Array) -> bool:
    """Say whether outputs [N, D] are what is expected within TOLERANCE, in units of a row's largest number above 1.

    Numbers of that size were summed, and leave their rounding errors where they cancel out.
    """
    largest = np.abs(expected).max(axis=-1, keepdims=True)
    return found.shape == expected.shape and bool(
        (np.abs(found - expected) <= TOLERANCE * np.maximum(1.0, largest)).all()
    )
