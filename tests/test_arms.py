"""Each outcome of champion and control is counted once: before the alarm's evidence begins, since then, or nowhere."""

from __future__ import annotations

from flywheel.arms import Arms, Count, compare, count
from flywheel.outcomes import Outcome
from flywheel.records import End

NEW, OLD = "new", "old"


def outcome(at: float, digest: str, failed: bool = False, lost: bool = False) -> Outcome:
    """Return an episode that began at a time and is over."""
    end: End = "lost" if lost else "terminated" if failed else "truncated"
    return Outcome(
        started_at=at, id=f"e{at:g}", digest=digest, end=end, failed=failed, total=1.0, num_steps=1, ended_at=at + 1
    )


def arms(*outcomes: Outcome, since: str = "", until: float = 100.0) -> Arms:
    """Return the arms of a release at 10 that every replica knows from 12 on."""
    return compare(
        NEW, OLD, outcomes, share=0.1, begun_at=10.0, counted_from=12.0, since_episode=since, until=until,
        loss=lambda o: 0.25 + 0.75 * o.failed,
    )  # fmt: skip


def test_an_outcome_counts_on_its_side_of_where_the_evidence_begins() -> None:
    found = arms(
        outcome(20, NEW, failed=True), outcome(5, OLD), outcome(13, NEW), outcome(14, OLD), outcome(21, OLD),
        outcome(6, OLD, failed=True), outcome(22, NEW, lost=True), outcome(23, "another", failed=True), since="e20",
    )  # fmt: skip
    assert found.since == 20.0
    assert found.former == Count(num=2, num_failed=1, loss=1.25)
    assert found.before == (Count(num=1, loss=0.25), Count(num=1, loss=0.25))
    assert found.after == (Count(num=1, num_failed=1, loss=1.0, num_lost=1), Count(num=1, loss=0.25))
    assert found.beside == (Count(num=2, num_failed=1, loss=1.25, num_lost=1), Count(num=2, loss=0.5))
    assert found.usual == Count(num=3, num_failed=1, loss=1.5)


def test_what_began_while_replicas_were_told_or_after_the_control_ended_counts_for_neither() -> None:
    found = arms(outcome(11, OLD), outcome(11.5, NEW), outcome(40, OLD), outcome(50, OLD), outcome(51, NEW), until=50.0)
    assert found.beside == (Count(), Count(num=1, loss=0.25)) and found.former == Count()


def test_evidence_that_began_before_both_were_side_by_side_leaves_nothing_before_it() -> None:
    for since in ("e11", "an episode that nobody has"):
        found = arms(outcome(11, NEW, failed=True), outcome(13, NEW), outcome(14, OLD), since=since)
        assert found.before == (Count(), Count()) and [side.num for side in found.after] == [1, 1]


def test_without_another_loss_failures_are_it() -> None:
    assert count([outcome(1, NEW, failed=True), outcome(2, NEW)]) == Count(num=2, num_failed=1, loss=1.0)
