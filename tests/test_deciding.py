"""`flywheel canary`: what it shows of a challenger, and that a person's word reaches whoever holds the directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from flywheel import archive, cli, deciding, told
from flywheel.config import Config, DeployConfig
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.registry import open_readonly
from flywheel.deploy.shown import shown
from flywheel.errors import Refused, UsageError
from flywheel.run import exit_code
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.deploy.conftest import NOW, World
from tests.deploy.test_canary import outcome

CONFIG = DeployConfig(shadow_decisions=10, settle_s=0.0, approve="person", split_error=1e-300)
RAMP = Ramp(CONFIG)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory whose second policy is in the shadow of the first."""
    with archive.opened(tmp_path / "run", Config(task="cartpole", deploy=CONFIG), "cartpole", task_digest(cartpole)):
        world = World(tmp_path / "run")
        world.served(1.0)
        world.registry.challenge(world.judged(2.0, valid_until=1e12).digest, RAMP, NOW)
        world.registry.close()
    return tmp_path / "run"


def move(run_dir: Path, how: Callable[[Canary], Canary]) -> Canary:
    """Let the challenger be further on its way."""
    with closing(World(run_dir).registry) as registry:
        present = registry.canary()
        assert present is not None
        moved = how(present)
        registry.keep_canary(moved)
    return moved


def test_a_control_group_is_shown_beside_the_champion(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(run_dir)
    with closing(world.registry) as registry:
        second, third = last(run_dir).challenger, world.judged(3.0, valid_until=1e12).digest
        registry.promote(third, NOW + 9, 0.1)
        registry.rollback(NOW + 10)
        fourth = world.judged(4.0, valid_until=1e12).digest
        registry.promote(fourth, NOW + 11, 0.1)
        first = registry.previous()
    assert first not in (None, second, third, fourth)
    assert deciding.canary(run_dir=run_dir) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"policy {str(first)[:8]} keeps 10% of new episodes since 1970-01-01 00:16:51 UTC, as the control" in text
    assert f"of policy {fourth[:8]}" in text


def last(run_dir: Path) -> Canary:
    """Return the canary as it is kept."""
    with closing(open_readonly(run_dir)) as registry:
        found = registry.canary()
    assert found is not None
    return found


def lifted(canary: Canary) -> Canary:
    """Return it with its first share, and some outcomes of both arms."""
    canary = RAMP.shadowed(canary, 10, 8, NOW + 5)
    arms = (canary.champion, canary.challenger)
    return RAMP.hear(canary, [outcome(NOW + 6 + t, arms[t % 5 == 0], failed=t % 20 == 1) for t in range(60)], NOW + 90)


def proven(canary: Canary) -> Canary:
    """Return it as good as it has to be."""
    canary = RAMP.shadowed(canary, 10, 8, NOW + 5)
    arms = (canary.champion, canary.challenger)
    canary = RAMP.hear(canary, [outcome(NOW + 6 + t, arms[t % 2]) for t in range(600)], NOW + 2000)
    assert canary.is_proven and not canary.is_over
    return canary


def call(run_dir: Path, *words: str) -> int:
    return cli.call([*words, f"--run-dir={run_dir}"])


def state(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what `flywheel policies list` says of the states, oldest first."""
    capsys.readouterr()
    assert call(run_dir, "policies", "list") == 0
    return [line[32:52].strip() for line in capsys.readouterr().out.splitlines()[1:]]


def test_the_way_of_a_challenger_is_shown(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert state(run_dir, capsys) == ["in service", "challenger, shadow"]
    assert call(run_dir, "canary") == 0
    text = capsys.readouterr().out
    assert "is in the shadow since 1970-01-01 00:16:40 UTC, beside policy" in text
    assert (
        "  next      1% of new episodes after 10 decisions in the shadow; if nothing is certain by 1970-01-02" in text
    )
    canary = move(run_dir, lifted)
    assert state(run_dir, capsys) == ["in service", f"challenger, {canary.share:.0%}"]
    assert call(run_dir, "canary") == 0
    first, shadow, outcomes, worse, good, uneven, next_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"policy {canary.challenger[:8]} has {canary.share:.0%} of new episodes since 1970-01-01")
    assert shadow.endswith("8 of 10 decisions were the champion's")
    assert outcomes.endswith("0 of 12 (0.0%) failed, 0 lost; the champion's 3 of 48 (6.2%), 0 lost")
    assert worse.endswith("that it fails oftener than the champion; at 20 it is rolled back")
    assert good.endswith("that it fails less than 2 points oftener; at 200 it may be approved")
    assert uneven.endswith("that one arm's episodes are lost oftener than the other's; at 100 it is stopped")
    assert next_.startswith("  next      10% of new episodes after 20 of its episodes; if nothing is certain by ")


def test_what_became_of_earlier_ones_is_shown_with_the_reason(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = move(run_dir, lambda canary: RAMP.broke(canary, "it crashed", NOW + 1)).challenger
    world = World(run_dir)
    with closing(world.registry) as registry:
        registry.challenge(world.judged(3.0).digest, RAMP, NOW + 2)
    second = move(run_dir, lambda canary: RAMP.tick(canary, NOW + 1e6)).challenger
    assert state(run_dir, capsys) == ["in service", "rolled back", "timed out"]
    assert call(run_dir, "canary") == 0
    none, newer, older = capsys.readouterr().out.splitlines()
    assert none == "No challenger is on its way."
    assert newer.startswith(f"policy {second[:8]} timed out 1970-01-12") and "nothing was certain after" in newer
    assert older == f"policy {first[:8]} rolled back 1970-01-01 00:16:41 UTC: it crashed"


def test_lines_are_as_short_as_a_terminal(run_dir: Path) -> None:
    found = [shown(lifted(last(run_dir)), CONFIG)]
    lines = told.challenges(found, 40).splitlines()
    assert max(map(len, lines)) <= 40 and " ".join(" ".join(lines).split()) == " ".join(
        told.challenges(found, 10_000).split()
    )


def test_a_challenger_is_frozen_and_dropped_where_nobody_holds_the_directory(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    move(run_dir, lifted)
    who = last(run_dir).challenger[:8]
    assert call(run_dir, "canary", "freeze", "--reason", "it hums") == 0
    assert capsys.readouterr().out == f"policy {who} is frozen: it hums.\n"
    assert last(run_dir).state == "frozen" and state(run_dir, capsys) == ["in service", "frozen"]
    assert call(run_dir, "canary") == 0
    assert "is frozen since" in (text := capsys.readouterr().out) and "  frozen    because it hums\n" in text
    assert call(run_dir, "canary", "drop", who, "--reason", "it hums louder") == 0
    assert last(run_dir).state == "rolled_back" and state(run_dir, capsys) == ["in service", "rolled back"]
    with closing(open_readonly(run_dir)) as registry:
        assert registry.reasons()[last(run_dir).challenger][0] == "it hums louder"


def test_who_holds_the_wheel_freezes_the_challenger_too(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    move(run_dir, lifted)
    assert call(run_dir, "decide", "--hold", "it smells") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"policy {last(run_dir).challenger[:8]} is frozen: it smells."]
    assert last(run_dir).state == "frozen" and archive.held(run_dir) == "it smells"
    assert call(run_dir, "decide", "--hold", "it still does") == 0, "it is frozen already"
    assert last(run_dir).reason == "it smells"


def test_where_nobody_can_freeze_the_challenger_the_wheel_is_held_all_the_same(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    move(run_dir, lifted)
    with archive.opened(run_dir, Config(task="cartpole", deploy=CONFIG), "cartpole", task_digest(cartpole)):
        assert exit_code(lambda: call(run_dir, "decide", "--hold", "it smells")) == 1
    assert "may still be tried and promoted: Another process turns the wheel" in capsys.readouterr().err
    assert archive.held(run_dir) == "it smells"


def test_a_proven_challenger_is_approved(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Refused, match="can't be approved before"):
        call(run_dir, "canary", "approve", "--reason", "I like it")
    canary = move(run_dir, proven)
    assert call(run_dir, "canary") == 0
    assert "next      a person's approval promotes it" in capsys.readouterr().out
    assert call(run_dir, "canary", "approve", "--reason", "it is calm") == 0
    assert "is promoted: it was approved: it is calm.\n" in capsys.readouterr().out
    assert state(run_dir, capsys) == ["former", "in service"]
    with closing(open_readonly(run_dir)) as registry:
        assert registry.champion() == canary.challenger


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["drop", "--reason", " "], 2, "for a reason, which is kept"),
        (["drop", "0123", "--reason", "no"], 1, "is on its way by now, and not 0123"),
        (["drp", "--reason", "no"], 2, "Did you mean 'canary drop'"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_changes_nothing(
    words: list[str], code: int, said: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = last(run_dir)
    assert exit_code(lambda: call(run_dir, "canary", *words)) == code
    assert said in capsys.readouterr().err and last(run_dir) == before


def test_a_word_goes_to_whoever_is_up(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor's body and the way to it, without Ray between them."""
    from flywheel import attach, cluster
    from flywheel.deploy.on_ray import RegistryActor

    actor = RegistryActor(str(run_dir), task_digest(cartpole), config=CONFIG)
    attached = SimpleNamespace(registry=actor, observer=None, store=None, close=lambda: None)
    monkeypatch.setattr(attach, "attach", lambda run_dir: attached)
    monkeypatch.setattr(cluster, "ask", lambda method, *arguments: method(*arguments))
    archive.write_living(run_dir, "127.0.0.1:1", "wheel", "/")
    assert call(run_dir, "canary", "drop", "--reason", "it hums") == 0
    found = actor.canary()
    assert found is not None and (found.state, found.reason) == ("rolled_back", "it hums")
    with pytest.raises(Refused, match="No challenger is on its way"):
        call(run_dir, "canary", "freeze", "--reason", "it hums")
    actor._registry.close()


def test_a_run_without_a_registry_or_of_before_challengers_has_none(
    tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="no run directory"):
        call(tmp_path / "none", "canary")
    with closing(World(tmp_path / "old").registry) as registry:
        registry._db.execute("DROP TABLE canaries")
    (tmp_path / "old" / archive.CONFIG).write_bytes((run_dir / archive.CONFIG).read_bytes())
    assert call(tmp_path / "old", "canary") == 0
    assert capsys.readouterr().out == "No challenger is on its way.\n"


def test_each_state_has_a_word(run_dir: Path) -> None:
    canary = last(run_dir)
    words = {told.place(dataclasses.replace(canary, state=each)) for each in ("frozen", "timed_out", "stopped")}  # type: ignore[arg-type]
    assert words == {"frozen", "timed out", "stopped"}
