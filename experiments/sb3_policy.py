"""A policy of Stable-Baselines3 for CartPole, as an ONNX file that the gate judges and Serve serves.

    pip install 'flywheel-rl[sb3]'
    python -m experiments.sb3_policy --out policy.onnx

Trains for some seconds and prints the commands that judge and serve the file. Nothing here imports flywheel: any
program that writes such a file (float32[N, 4] observations in, float32[N, 2] logits out) does as well. The spec beside
it asks for the likeliest action, as SB3's `predict(deterministic=True)` gives it.

The gate refuses many such policies: of seeds 1 to 4 none failed in 100 simulations, and three left the track where an
edge case begins (cart_off_centre or cart_rolling_out). Seed 1 passed with the likeliest action, and mostly did not with
actions drawn from its distribution; it is the one in tests/data.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

NUM_STEPS = 20_480


class Logits(torch.nn.Module):
    """The part of an SB3 policy that maps observations to what actions are chosen from."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.flatten, self.extractor, self.net = policy.features_extractor, policy.mlp_extractor, policy.action_net

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return logits float32[N, A] of a discrete policy, means float32[N, A] of a Box one."""
        found: torch.Tensor = self.net(self.extractor.forward_actor(self.flatten(observations)))
        return found


def export(policy: ActorCriticPolicy, path: Path) -> None:
    """Write the acting part of a policy as one ONNX file whose first axis is free."""
    example = torch.zeros(2, *policy.observation_space.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter takes a hundred times as long
        torch.onnx.export(
            Logits(policy).eval(),
            (example,),
            str(path),
            input_names=["observations"],
            output_names=["outputs"],
            dynamic_axes={"observations": {0: "N"}, "outputs": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )


def train(num_steps: int, seed: int) -> PPO:
    """Return PPO trained on CartPole-v1."""
    model = PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=256,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=1e-3,
        ent_coef=0.0,
        seed=seed,
        device="cpu",
    )
    return model.learn(num_steps)


def main() -> None:
    """Train, export, and say how to go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("policy.onnx"), help="the file to write")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="environment steps to train for")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    export(train(given.steps, given.seed).policy, given.out)
    spec = given.out.with_suffix(".json")
    spec.write_text(json.dumps({"rule": {"greedy": True}}) + "\n")
    print(f"{given.out}: {given.out.stat().st_size:,} bytes. Judge it, put it into service and serve it with:")
    print(f"  flywheel gate {given.out} --task cartpole --spec {spec}")
    print(f"  flywheel policies add {given.out} --task cartpole --spec {spec} --run-dir runs/sb3")
    print("  flywheel serve --task cartpole --run-dir runs/sb3")


if __name__ == "__main__":
    main()
