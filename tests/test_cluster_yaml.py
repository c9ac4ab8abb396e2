"""cluster.yaml: Ray's own validator takes it, and it says what Flywheel needs of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flywheel.config import Config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """cluster.yaml as `ray up` reads it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    return dict(config)


def test_ray_refuses_a_word_it_does_not_know() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    wrong = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | {"head_node_typo": "head"}
    with pytest.raises(ValidationError):
        validate_config(prepare_config(wrong))


def test_workers_simulate_and_the_head_keeps_the_state(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] == "head"
    assert types["worker"]["resources"][Config().sim_resource] > 0
    assert Config().sim_resource not in types["head"]["resources"]
    disks = [disk["Ebs"] for disk in types["head"]["node_config"]["BlockDeviceMappings"]]
    assert [disk.get("DeleteOnTermination", True) for disk in disks] == [True, False]
    assert "/runs:/runs" in " ".join(prepared["docker"]["run_options"])


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_has_token_and_serves_environment_before_ray_starts(prepared: dict[str, Any], commands: str) -> None:
    start = prepared[commands][-1]
    before, _, after = start.partition("ray start")
    assert "RAY_AUTH_MODE=token" in before and "OMP_NUM_THREADS=1" in before
    assert "python -m flywheel.deploy.environment" in before
    if "--head" in after:
        assert "--dashboard-host=127.0.0.1" in after


def test_the_image_is_of_our_ray_and_python(prepared: dict[str, Any]) -> None:
    import ray

    assert prepared["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-cpu"
    pin = f"ray[rllib,serve]=={ray.__version__.rpartition('.')[0]}.*"
    assert pin in (ROOT / "pyproject.toml").read_text()
