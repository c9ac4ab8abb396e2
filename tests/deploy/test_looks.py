"""A share counts from when every replica that lives was seen to act by it."""

from __future__ import annotations

from flywheel.deploy.looks import LIVE_S, PATIENCE_S, Looks


def looked(*seen: tuple[str, float | None, float]) -> Looks:
    looks = Looks()
    for replica, changed_at, now in seen:
        looks.saw(replica, changed_at, now)
    return looks


def test_a_share_counts_from_the_look_of_the_last_replica_that_learnt_of_it() -> None:
    looks = looked(("a", 0.0, 1.0), ("b", 0.0, 1.0), ("a", 10.0, 11.0))
    assert looks.known_from(10.0, 12.0) is None
    looks.saw("a", 10.0, 13.0)
    looks.saw("b", 10.0, 17.0)
    assert looks.known_from(10.0, 18.0) == 17.0, "as soon as the late one said so"
    looks.saw("b", 10.0, 18.0)
    assert looks.known_from(10.0, 19.0) == 17.0, "saying it again moves nothing"
    assert looks.known_from(20.0, 20.5) is None


def test_a_replica_that_is_gone_is_not_waited_for_nor_one_that_never_can_follow() -> None:
    gone = looked(("a", 0.0, 1.0), ("b", 0.0, 1.0), ("a", 10.0, 11.0))
    assert gone.known_from(10.0, 1.0 + LIVE_S) == 11.0
    stuck = looked(("a", 0.0, 1.0))
    for now in range(2, 100):
        stuck.saw("a", 0.0, float(now))
    assert stuck.known_from(50.0, 99.0) is None
    assert stuck.known_from(10.0, 99.0) == 10.0 + PATIENCE_S


def test_what_was_in_force_before_the_first_look_counts_and_so_does_a_replica_without_a_policy() -> None:
    assert Looks().known_from(10.0, 11.0) == 10.0
    looks = looked(("a", None, 20.0), ("", 5.0, 21.0))
    assert looks.known_from(10.0, 22.0) == 10.0, "a registry that came back asks nobody about what was"
    assert looks.known_from(30.0, 31.0) == 30.0, "it answers nobody yet, and will know when it does"
    looks.saw("a", 30.0, 32.0)
    assert looks.known_from(30.0, 33.0) == 32.0
