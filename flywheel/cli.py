"""The `flywheel` command: the whole wheel, and each room alone. Only the command that is called is imported."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flywheel import __version__, deciding, estimating, judging, keeping, reasons, travel, why
from flywheel.config import DeployConfig, PageConfig
from flywheel.console import fold, folded, width
from flywheel.errors import unknown
from flywheel.moments import WIDTH, column
from flywheel.run import exit_code, settings
from flywheel.run import main as run_main
from flywheel.tokens import Scope

if TYPE_CHECKING:
    from flywheel.owner import Owner


def policies_add(
    policy: Path,
    /,
    task: str,
    run_dir: Path,
    spec: Path | None = None,
    seed: int | None = None,
    at_once: bool = False,
) -> int:
    """Put a policy that was trained anywhere into service, if the gate and production let it pass.

    It becomes an artifact named by its digest, is judged against the policy in service, and the signed verdict is
    recorded, whatever it is. The first one is put into service; a later one that passed is tried beside the one that
    is, from the shadow to full, which `flywheel canary` shows. A wheel, or `flywheel serve`, that is up in the run
    directory does so from then on.

    Args:
        policy: an ONNX file, as for `flywheel gate`
        task: a built-in task, or module:attribute of your own
        run_dir: directory of the run; made if it isn't there
        spec: a JSON file, as for `flywheel gate`
        seed: root of all seeds of this verdict; a fresh one by default
        at_once: put it into service without trying it beside the present one
    """
    from flywheel import foreign, owner, told
    from flywheel.console import width
    from flywheel.task import spec_of
    from flywheel.tasks import load

    found = load(task)
    changes = None if spec is None else foreign.read_changes(spec)
    network = foreign.load(policy, spec_of(found), changes)
    with owner.opened(found, task, run_dir, settings(words=["--task", task])) as writer:
        artifact, verdict = owner.submit(writer, found, network, run_dir, seed)
        print(told.checks(verdict, f"policy {artifact.digest[:8]} (version {artifact.version})", width()))
        _bring(writer, artifact.digest, run_dir, at_once)
    return 0


def _bring(writer: Owner, digest: str, run_dir: Path, at_once: bool) -> None:
    """Put a policy into service, or let it be tried beside the one that is, and say so."""
    from flywheel import told

    champion, before = writer.registry.champion(), writer.registry.canary()
    if at_once or champion in (None, digest):
        print(f"policy {writer.promote(digest).digest[:8]} is in service.")
    else:
        print(told.tried(writer.challenge(digest), run_dir))
    if before is not None and not before.is_over and digest not in (champion, before.challenger):
        print(f"policy {before.challenger[:8]}, which was tried until now, made room.")


def policies_list(run_dir: Path) -> int:
    """List the policies of a run directory with their verdicts: which is in service, and which challenges it.

    Args:
        run_dir: directory of the run
    """
    from flywheel import told
    from flywheel.deploy.registry import open_readonly

    with contextlib.closing(open_readonly(run_dir)) as registry:
        champion, former, condemned = registry.champion(), registry.admissible(), registry.condemned()
        challenger = registry.aliases().get("@challenger")
        tried = {canary.challenger: told.place(canary) for canary in registry.canaries()}
        control = registry.control()
        print(f"{'version':<8} {'policy':<9} {'verdict':<13} {'state':<19} made by")
        for artifact in registry.artifacts():
            verdict, digest = registry.verdict(artifact.digest), artifact.digest
            state = tried.get(digest, "-")
            if digest != challenger and state != "rolled back":
                state = "condemned" if digest in condemned else "former" if digest in former else state
            state = told.control(control) if control is not None and digest == control.policy else state
            state = "in service" if digest == champion else state
            print(
                f"{artifact.version:<8} {digest[:8]:<9} {verdict.outcome if verdict else '-':<13} {state:<19} "
                f"{artifact.trained_on.get('strategy', '-')}"
            )
    return 0


def policies_at(when: str, /, run_dir: Path) -> int:
    """Say which policy answered at a time, and which was tried beside it.

    Args:
        when: UTC epoch seconds, or a date and a time such as 2026-11-26T03:00:00 (UTC, unless it names another zone)
        run_dir: directory of the run
    """
    from flywheel import told
    from flywheel.deploy.registry import open_readonly

    with contextlib.closing(open_readonly(run_dir)) as registry:
        print(told.served(registry.served(told.seconds(when))))
    return 0


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve the run directory's policy and watch production, without any training, until Ctrl-C or SIGTERM.

    Options count before flywheel.toml, and that before the configuration which the run directory had so far.
    """

    task: str
    """a built-in task, or module:attribute of your own"""
    run_dir: Path
    """directory of the run; made if it isn't there, and then `flywheel policies add` fills it"""
    deploy: DeployConfig = dataclasses.field(default_factory=lambda: settings().deploy)

    def __call__(self) -> int:
        """Serve until interrupted."""
        from flywheel.console import Narrator
        from flywheel.owner import configuration
        from flywheel.preflight import check
        from flywheel.serve import serve
        from flywheel.tasks import load

        found, words = load(self.task), ["--task", self.task]
        config = settings(kept=configuration(self.run_dir, self.task, settings(words=words)))
        usual = settings().deploy
        given = {f.name: getattr(self.deploy, f.name) for f in dataclasses.fields(usual)}
        given = {name: value for name, value in given.items() if value != getattr(usual, name)}
        deploy = dataclasses.replace(config.deploy, **given)
        config = dataclasses.replace(config, task=self.task, run_dir=str(self.run_dir), address="", deploy=deploy)
        check(config)
        with Narrator() as say:
            serve(found, config, self.run_dir.resolve(), say)
        return 0


@dataclasses.dataclass(frozen=True)
class Page:
    """Show a run directory as a web page, finished or alive, without Ray, until Ctrl-C or SIGTERM."""

    run_dir: Path
    """directory of the run"""
    page: Annotated[PageConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=lambda: settings().page)

    def __call__(self) -> int:
        """Answer browsers until interrupted."""
        from flywheel.config import Config
        from flywheel.preflight import check as check_config
        from flywheel.watch import watch

        check_config(Config(page=self.page))
        watch(self.run_dir, self.page)
        return 0


def _writer(run_dir: Path, task: str) -> AbstractContextManager[Owner]:
    """Return whoever writes the registry of a run directory, of its own task where `task` is empty."""
    from flywheel import owner

    return owner.writing(run_dir, task)


def rollback(run_dir: Path, task: str = "") -> int:
    """Condemn the policy in service and put the one before it back, for good.

    A wheel, or `flywheel serve`, that is up in the run directory serves it from then on.

    Args:
        run_dir: directory of the run
        task: a built-in task, or module:attribute of your own; the run directory's own by default
    """
    with _writer(run_dir, task) as writer:
        release = writer.rollback()
    print(f"policy {release.digest[:8]} is back in service.")
    return 0


def budget(run_dir: Path, refill: str = "", task: str = "") -> int:
    """Show what is left of the gate's error budget, or fill it for a reason, which is kept.

    Each candidate that is judged spends some, so that trying often can't wear the gate down. Production fills it by
    itself when it confirms a release.

    Args:
        run_dir: directory of the run
        refill: why it may be filled now; left away, it is only shown
        task: a built-in task, or module:attribute of your own; the run directory's own by default
    """
    from flywheel import archive, told
    from flywheel.deploy.registry import open_readonly
    from flywheel.gate import SafetyGate
    from flywheel.tasks import load

    config = archive.read_config(run_dir)["config"]
    if refill:
        with _writer(run_dir, task) as writer:
            writer.refill(refill)
    with contextlib.closing(open_readonly(run_dir)) as registry:
        gate, tries = SafetyGate(load(task or config.task), config.gate), registry.tries()
        print(told.budget(registry.budget(), tries, gate.allowance(tries), gate.is_spent(tries)))
    return 0


def check(task: str, /) -> int:
    """Try a task of your own: whether seeds reproduce, parameters and states do what they say, spaces survive.

    Args:
        task: a built-in task, or module:attribute of your own
    """
    from flywheel.gate import SafetyGate
    from flywheel.tasks import load
    from flywheel.testing import check_task

    print(check_task(load(task), lambda found, config: SafetyGate(found, config.gate)))
    return 0


def tokens_list(run_dir: Path) -> int:
    """List the tokens of a run directory: what each lets do and since when, never the tokens themselves.

    Args:
        run_dir: directory of the run
    """
    from flywheel.deploy.registry import open_readonly

    with contextlib.closing(open_readonly(run_dir)) as registry:
        found = registry.tokens()
    print(f"{'token':<16} {'scopes':<24} {'requests/s':<10} {'made':<{WIDTH}} revoked (UTC)")
    for token in found:
        made, revoked = (column(at) for at in (token.made_at, token.revoked_at))
        quota = "-" if token.quota is None else f"{token.quota:g}"
        print(f"{token.name:<16} {' '.join(token.scopes):<24} {quota:<10} {made:<{WIDTH}} {revoked}")
    return 0


def tokens_add(
    name: str,
    /,
    run_dir: Path,
    scopes: Annotated[tuple[Scope, ...], tyro.conf.arg(name="scope"), tyro.conf.UseAppendAction] = (),
    quota: float | None = None,
    task: str = "",
) -> int:
    """Make a token, and print it: nobody can be told it again, as only its hash is kept.

    Replicas take it from their next look at the registry on, within a second.

    Args:
        name: what it is called: a program, or a person
        run_dir: directory of the run
        scopes: what it lets do: act (decide, end, lease, and all of ingest), ingest (tell spans, late rewards, whole
            episodes), read (look), operate (change, and read)
        quota: requests a second that a replica takes of it; the configuration's deploy.quota by default
        task: a built-in task, or module:attribute of your own; the run directory's own by default
    """
    with _writer(run_dir, task) as writer:
        print(writer.add_token(name, scopes, quota))
    return 0


def tokens_revoke(name: str, /, run_dir: Path, task: str = "") -> int:
    """Let a token open nothing any more, for good; replicas refuse it within a second.

    Args:
        name: what it is called
        run_dir: directory of the run
        task: a built-in task, or module:attribute of your own; the run directory's own by default
    """
    with _writer(run_dir, task) as writer:
        writer.revoke_token(name)
    print(f"token {name} is revoked.")
    return 0


def down(run_dir: Path) -> int:
    """End what a wheel left up on its cluster: replicas, observer, store and registry; its files stay.

    Args:
        run_dir: directory of the run
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported
    from flywheel import attach

    attach.end(run_dir.resolve())
    print(f"Nothing of {run_dir} is up any more; the same --run-dir goes on when it is started again.")
    return 0


COMMANDS: Mapping[str, Callable[..., int | Callable[[], int]]] = {
    "budget": budget,
    "canary": deciding.canary,
    "canary approve": deciding.approve,
    "canary drop": deciding.drop,
    "canary freeze": deciding.freeze,
    "check": check,
    "decide": reasons.decide,
    "diverge": travel.diverge,
    "down": down,
    "episodes": keeping.episodes,
    "estimate": estimating.estimate,
    "fork": travel.fork,
    "gate": judging.Gate,
    "page": Page,
    "policies add": policies_add,
    "policies at": policies_at,
    "policies list": policies_list,
    "rollback": rollback,
    "scenarios drop": travel.scenarios_drop,
    "scenarios list": travel.scenarios_list,
    "serve": Serve,
    "tokens add": tokens_add,
    "tokens list": tokens_list,
    "tokens revoke": tokens_revoke,
    "verify": keeping.verify,
    "why": why.why,
}
"""Commands by the words that call them; `run` has a main of its own."""


def usage() -> str:
    """Return what there is to call."""
    told = {"run": "Turn the wheel: train, gate, serve, observe, analyze, and again."}
    told |= {name: str(function.__doc__).splitlines()[0] for name, function in COMMANDS.items()}
    lines = [f"Flywheel {__version__}: keeps a policy good after it is deployed.", "", "usage: flywheel COMMAND ..."]
    lines += ["", *(fold(f"  {name:<14}  {text}", width(), 18) for name, text in told.items()), ""]
    return "\n".join([*lines, "flywheel COMMAND --help says what a command takes."])


def find(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the name of the command that these words call, and the words that are left for it.

    Raises UsageError with the nearest name when there is none.
    """
    names = ["run", *COMMANDS]
    groups = {name.split()[0] for name in names if " " in name}
    for size in (2, 1):
        name, rest = " ".join(words[:size]), words[size:]
        is_misspelt = name in groups and rest and not rest[0].startswith("-")
        if len(words) >= size and name in names and not is_misspelt:
            return name, rest
    first = [word for word in words if not word.startswith("-")][:2]
    raise unknown("command", " ".join(first if first and first[0] in groups else first[:1]), names)


def call(words: Sequence[str]) -> int:
    """Run the command that these words call, and return its exit code."""
    name, rest = find(words)
    with folded(rest):
        found = tyro.cli(COMMANDS[name], args=rest, prog=f"flywheel {name}")
    return found() if callable(found) else int(found)


def main() -> None:
    """Run a command; exit 0: done (passed), 1: failed (refused), 2: wrong call, 3: undecided, 130: stopped."""
    words = sys.argv[1:]
    sys.path.insert(0, os.getcwd())  # as `python -m` has it: module:attribute is found where one stands
    if words in ([], ["-h"], ["--help"]):
        print(usage())
        sys.exit(0 if words else 2)
    if words == ["--version"]:
        print(__version__)
        sys.exit(0)
    if words[0] == "run":
        run_main(words[1:], prog="flywheel run")
    sys.exit(exit_code(lambda: call(words)))


if __name__ == "__main__":
    main()
