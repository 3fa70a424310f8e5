"""Processes that train one model together: what must be the same on all of them is compared.

Compared through the store of their process group, not by a collective. Collectives that do not
match wait for the group's timeout or end a process, and that is what is to be told here.
"""

from __future__ import annotations

import hashlib
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch.distributed as dist

from orthotrain.errors import ConfigError, OrthotrainError, OrthotrainWarning
from orthotrain.methods._compat import store_of

# Every message has this size: a digest of all facts, and the text of some of them.
_DIGEST_BYTES: Final = 32
_TEXT_BYTES: Final = 4096
_LINE: Final = 200  # characters; of a longer line its start and a digest
_FAILED: Final = bytes(_DIGEST_BYTES)
# The verdict on texts that are equal, of facts that are not.
_FURTHER_ON: Final = "processes that train together must agree, and what they have differs"
_CUT: Final = " ... (cut here; the process's own log has all) ... "

_SECONDS_BEFORE_WARNING: Final = 30.0
# The first process tells the others who is missing, before they themselves stop waiting.
_PATIENCE_OF_FIRST: Final = 0.9

_REMEDY: Final = (
    "Give all processes the same; where they train models of their own, name those that train "
    "one together: attach(..., process_group=...)"
)

# How many comparisons a group has made. All its processes count alike.
_counts: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()


class Processes:
    """The processes of a group; one process alone agrees with itself.

    Args:
        group: ``None`` where there is nobody to agree with.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        # Weak: nothing of ours keeps a group beyond ``destroy_process_group``.
        self._group = None if group is None else weakref.ref(group)
        self._told: Exception | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        group = None if self._group is None else self._group()
        return 1 if group is None or store_of(group) is None else dist.get_world_size(group)

    @property
    def is_first(self) -> bool:
        """Whether this is the first one, which writes what all would write alike."""
        group = None if self._group is None else self._group()
        return group is None or store_of(group) is None or dist.get_rank(group) == 0

    def require_same(
        self,
        moment: str,
        facts: Sequence[str],
        *,
        error: type[OrthotrainError] = ConfigError,
        remedy: str = _REMEDY,
    ) -> None:
        """Raise the same error on all processes unless all give the same facts.

        Every process of the group has to call it, in the same order.

        Args:
            moment: Who asks, for the message.
            facts: Lines of text, the most telling first.
            error: Type of the error.
            remedy: What to do where facts differ.

        Raises:
            OrthotrainError: Of the given type: facts differ, a process failed before it could
                compare, or did not come before the timeout of the group.
        """
        text = "\n".join(facts)
        lines = "\n".join(map(_short, text.split("\n"))).encode()
        while (fault := self._exchange(moment, _message(text, lines), remedy)) == _FURTHER_ON:
            # What was equal needs no second look, but for a last line that was cut.
            lines = lines[lines.rfind(b"\n", 0, _TEXT_BYTES) + 1 or len(lines) :]
            if not lines:
                break
        if fault:
            self._told = error(f"{moment}: {fault}")
            raise self._told

    @contextmanager
    def told_of_failure(self, moment: str) -> Iterator[None]:
        """Tell the other processes of an error inside; they would wait for this one."""
        try:
            yield
        except BaseException as error:  # Ctrl-C, too
            if error is not self._told:
                text = f"{type(error).__name__}: {error}"
                self._exchange(moment, _FAILED + _fitted(text), wait=False)
            raise

    def _exchange(self, moment: str, message: bytes, remedy: str = "", *, wait: bool = True) -> str:
        """What is wrong, in the same words on every process; empty where nothing is."""
        group = None if self._group is None else self._group()
        store = None if group is None else store_of(group)
        if group is None or store is None:
            return ""
        ranks = dist.get_process_group_ranks(group)
        count = _counts[group] = _counts.get(group, 0) + 1
        exchange = _Exchange(moment, store, ranks, f"orthotrain/{count}", remedy)
        try:
            return exchange.verdict(message, dist.get_rank(group), wait=wait)
        except RuntimeError as error:  # what torch's stores raise where their server is gone
            return f"other processes do not answer ({error}); look for the one that ended first"


class _Exchange:
    """One comparison: the first process reads what all have and writes the verdict."""

    def __init__(
        self, moment: str, store: dist.Store, ranks: Sequence[int], name: str, remedy: str
    ) -> None:
        self._moment, self._store, self._ranks, self._name = moment, store, ranks, name
        self._remedy = remedy
        self._patience = store.timeout.total_seconds()

    def _key(self, position: int) -> str:
        return f"{self._name}/{position}"

    def verdict(self, message: bytes, position: int, *, wait: bool) -> str:
        """Give a message, take the verdict; without ``wait``, the message alone."""
        key = f"{self._name}/verdict"
        if position == 0:
            verdict = self._judged(message) if wait else self._difference(message, message, 0)
            self._store.set(key, _fitted(verdict))
            return verdict
        self._store.set(self._key(position), message)
        if not wait:
            return ""
        if self._missing({key: 0}, self._patience):
            return self._too_late([0])
        verdict = _text(self._store.get(key))
        # The last one leaves nothing behind: a later group may count from one again.
        if self._store.add(f"{self._name}/read", 1) == len(self._ranks) - 1:
            self._store.delete_key(key)
            self._store.delete_key(f"{self._name}/read")
        return verdict

    def _judged(self, ours: bytes) -> str:
        keys = {self._key(position): position for position in range(1, len(self._ranks))}
        if missing := self._missing(keys, _PATIENCE_OF_FIRST * self._patience):
            return self._too_late(missing)
        messages = [ours, *(self._store.get(key) for key in keys)]
        for key in keys:
            self._store.delete_key(key)
        others = [i for i, m in enumerate(messages) if m[:_DIGEST_BYTES] != ours[:_DIGEST_BYTES]]
        if not others:
            return ""
        failed = [i for i in others if messages[i].startswith(_FAILED)]
        seen = [i for i in others if messages[i][_DIGEST_BYTES:] != ours[_DIGEST_BYTES:]]
        chosen = (failed or seen or others)[0]
        return self._difference(ours, messages[chosen], chosen, others)

    def _difference(
        self, ours: bytes, theirs: bytes, position: int, others: Sequence[int] = ()
    ) -> str:
        rank = self._ranks[position]
        text = _text(theirs[_DIGEST_BYTES:])
        if theirs.startswith(_FAILED):
            return f"process {rank} failed with {text}"
        if theirs[_DIGEST_BYTES:] == ours[_DIGEST_BYTES:]:
            return _FURTHER_ON
        facts, their_facts = _text(ours[_DIGEST_BYTES:]).splitlines(), text.splitlines()
        here = [fact for fact in facts if fact not in their_facts]
        there = [fact for fact in their_facts if fact not in facts]
        more = f" ({len(others)} of {len(self._ranks)} differ from it)" if len(others) > 1 else ""
        if here or there:
            what = f"process {self._ranks[0]} has {_some(here)}, process {rank} has {_some(there)}"
        else:
            pairs = zip(facts, their_facts, strict=False)
            first = next((a for a, b in pairs if a != b), facts[-1])
            what = f"processes {self._ranks[0]} and {rank} differ in an order, from {first} on"
        return f"processes that train together must agree, and {what}{more}. {self._remedy}"

    def _too_late(self, positions: Sequence[int]) -> str:
        return (
            f"{self._named(positions)} did not come within the group's timeout of "
            f"{self._patience:g} s. Do the same on every process; where they train models of "
            "their own, name those that train one together: attach(..., process_group=...)"
        )

    def _named(self, positions: Sequence[int]) -> str:
        named = ", ".join(str(self._ranks[i]) for i in positions[:5])
        more = f" and {len(positions) - 5} more" if len(positions) > 5 else ""
        return f"process{'es' if len(positions) > 1 else ''} {named}{more}"

    def _missing(self, keys: Mapping[str, int], patience: float) -> list[int]:
        """Whose keys did not come in time. A blocking wait would lock the store for others."""
        started, pause, warned = time.monotonic(), 0.001, False
        while not self._store.check(list(keys)):
            waited = time.monotonic() - started
            if waited > patience or (waited > _SECONDS_BEFORE_WARNING and not warned):
                missing = [i for key, i in keys.items() if not self._store.check([key])]
                if waited > patience:
                    return missing
                warned = True
                warnings.warn(
                    f"{self._moment}: waiting for {self._named(missing)} since {waited:.0f} s; "
                    "every process has to do the same",
                    OrthotrainWarning,
                    stacklevel=2,
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return []


def _message(facts: str, shown: bytes) -> bytes:
    return hashlib.sha256(facts.encode()).digest() + shown[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")


def _fitted(text: str) -> bytes:
    """Text of the size of a message, without its middle where it is longer: advice comes last."""
    given, cut = text.encode(), _CUT.encode()
    if len(given) > _TEXT_BYTES:
        half = (_TEXT_BYTES - len(cut)) // 2
        given = given[:half] + cut + given[-half:]
    return given.ljust(_TEXT_BYTES, b"\0")


def _short(line: str) -> str:
    if len(line) <= _LINE:
        return line
    return f"{line[:_LINE]}... (SHA-256 {hashlib.sha256(line.encode()).hexdigest()[:16]})"


def _text(message: bytes) -> str:
    return message.rstrip(b"\0").decode(errors="ignore")


def _some(facts: Sequence[str]) -> str:
    more = f" and {len(facts) - 3} more lines" if len(facts) > 3 else ""
    return "; ".join(facts[:3]) + more if facts else "not"
