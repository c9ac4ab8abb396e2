"""What a program needs to act by itself: leases to begin episodes with, and the proven policies that they name."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from flywheel.client.http import Client
from flywheel.client.refusal import RejectedError, check_process, process
from flywheel.errors import FlywheelError, Refused, UsageError
from flywheel.policy import MANIFEST, NETWORK, Policy, bundled
from flywheel.verdicts import admit, decode

KEY, POLICIES, _VERDICT = "key.json", "policies", "verdict.json"
_KEPT = 8
"""Policies kept, in memory and on the disk: those that leases name, and former ones while there is room."""
_MOST_LEASES = 1024
"""Leases that one request may ask for."""
MAX_BODY = 8 * 2**20
"""Bytes of one request at most, until a server says it."""
_GONE = frozenset({404, 410})
"""Answers that say that a policy is not to be had, or no longer."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to act in one episode: which policy does, and how it draws, as the server's step 0 would fix it."""

    episode: str
    digest: str
    draw_key: int
    given_at: float
    seal: str


class Supply:
    """Keeps leases and policies; one thread calls `renew`, any may call `take`."""

    def __init__(self, client: Client, directory: Path, public_key: str | None, num_leases: int) -> None:
        """Begin with the key that is pinned in the directory, if there is one.

        `public_key` (hex) is the one that verdicts have to be signed with; None pins the server's own at first use.
        Raises UsageError when another one is pinned.
        """
        self._client, self._directory, self._num_leases = client, directory, num_leases
        if not 1 <= num_leases <= _MOST_LEASES:
            raise UsageError(f"From 1 to {_MOST_LEASES:,} leases can be held, not {num_leases}.")
        self._given = public_key
        self._pinned = self._read_key()
        self._policies: OrderedDict[str, Policy] = OrderedDict()
        self._leases: deque[Lease] = deque()
        self._present: Any = None
        self._may_answer: set[str] | None = None
        self.max_body = MAX_BODY
        """Bytes of one request at most, as the server said last."""
        self._mutex, self._process = threading.Lock(), process()

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def digests(self) -> set[str]:
        """The policies that leases name."""
        with self._mutex:
            return {lease.digest for lease in self._leases}

    @property
    def is_low(self) -> bool:
        """True once half of the leases are used up."""
        return len(self._leases) <= self._num_leases // 2

    def take(self) -> tuple[Lease, Policy] | None:
        """Return a lease, which nobody else gets, and its policy; None when none is left."""
        check_process(self._process)
        with self._mutex:
            if not self._leases:
                return None
            lease = self._leases.popleft()
            return lease, self._policies[lease.digest]

    def is_condemned(self, digest: str) -> bool:
        """Say whether a policy may not answer any more, as far as it is known."""
        return self._may_answer is not None and digest not in self._may_answer

    def renew(self) -> None:
        """Look who answers now; take leases, and the policies that they name, where that changed or few are left.

        Leases of policies that may not answer any more are given up, as are all others once new ones of the present
        policies are there. Raises FlywheelError: what can't be reached, had or proven; what is there stays.
        """
        status = self._client.policy()
        present = [status[name] for name in ("digest", "challenger", "share", "control", "control_share", "admissible")]
        with self._mutex:
            self._may_answer = {*status["admissible"], status["digest"]}
            self._leases = deque(lease for lease in self._leases if not self.is_condemned(lease.digest))
        is_new = present != self._present
        if not is_new and not self.is_low:
            return
        if self._pinned is None:
            self._pin()
        num = self._num_leases - (0 if is_new else len(self._leases))
        answer = self._ask("POST", "/v1/leases", {"num": num})
        fresh, self.max_body = msgspec.convert(answer["leases"], list[Lease]), answer["max_body"]
        proven = self._hold(lease.digest for lease in fresh)
        with self._mutex:
            if is_new:
                self._leases.clear()
            self._leases.extend(lease for lease in fresh if lease.digest in proven)
            self._trim()
        self._present = present

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._client.run(self._client.calls.request(method, path, body, packed=True))

    # The key

    def _read_key(self) -> dict[str, str] | None:
        path = self._directory / KEY
        if not path.exists():
            return None
        pinned: dict[str, str] = json.loads(path.read_bytes())
        if self._given not in (None, pinned["public"]):
            raise UsageError(
                f"The public key that was given is not the one pinned in {path}: give another directory, or remove "
                "that file if you trust the new key."
            )
        return pinned

    def _pin(self) -> None:
        found = self._ask("GET", "/v1/key")
        if self._given not in (None, found["public"]):
            raise Refused(
                f"{self._client.url} signs verdicts with another key than the one that was given: its policies are not "
                "taken."
            )
        _write(self._directory / KEY, json.dumps(found).encode())
        self._pinned = found

    # Policies

    def _hold(self, digests: Iterable[str]) -> set[str]:
        """Return which of these policies are proven and ready; raise FlywheelError when none is."""
        wanted, troubles = dict.fromkeys(digests), list[FlywheelError]()
        for digest in wanted:
            try:
                if digest not in self._policies:
                    self._policies[digest] = self._proven(digest)
                self._policies.move_to_end(digest)
            except (Refused, RejectedError) as error:
                if isinstance(error, RejectedError) and error.status not in _GONE:
                    raise
                log.error("Policy %s does not act here: %s", digest[:12], error)
                troubles.append(error)
        if troubles and len(troubles) == len(wanted):
            raise troubles[0]
        return wanted.keys() & self._policies.keys()

    def _proven(self, digest: str) -> Policy:
        """Return a policy from the disk, or else the server, once its files and its verdict are proven."""
        directory = self._directory / POLICIES / digest
        if directory.exists():
            try:
                files = {name: (directory / name).read_bytes() for name in (MANIFEST, NETWORK)}
                return self._admitted(digest, files, (directory / _VERDICT).read_text())
            except (OSError, Refused) as error:
                log.warning("Policy %s in %s is fetched again: %s", digest[:12], directory, error)
                shutil.rmtree(directory)
        answer = self._ask("GET", f"/v1/policies/{digest}")
        files = {name: content for name, content in answer["files"].items() if name in (MANIFEST, NETWORK)}
        policy = self._admitted(digest, files, answer["verdict"])
        temporary = directory.with_name(f".{digest[:12]}-{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        for name, content in {**files, _VERDICT: answer["verdict"].encode()}.items():
            _write(temporary / name, content)
        temporary.rename(directory)
        return policy

    def _admitted(self, digest: str, files: dict[str, bytes], verdict: str) -> Policy:
        assert self._pinned is not None
        public = bytes.fromhex(self._pinned["public"])
        try:
            return admit(bundled(digest, files), decode(verdict), self._pinned["task"], public)
        except Refused as error:
            raise Refused(f"{error} (What counts is the key and the task in {self._directory / KEY}.)") from error
        except (ValueError, msgspec.ValidationError) as error:
            raise Refused(f"The verdict on policy {digest[:12]} can't be read: {error}.") from error

    def _trim(self) -> None:
        """Forget the policies that no lease names, the oldest first, as far as they are too many."""
        named = {lease.digest for lease in self._leases}
        for digest in [digest for digest in self._policies if digest not in named]:
            if len(self._policies) > _KEPT:
                del self._policies[digest]
        found = sorted((self._directory / POLICIES).glob("*"), key=lambda path: path.stat().st_mtime_ns)
        spare = [path for path in found if path.name not in self._policies]
        for path in spare[: max(0, len(found) - _KEPT)]:
            shutil.rmtree(path)


def _write(path: Path, content: bytes) -> None:
    """Write a file durably, whole or not at all."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
