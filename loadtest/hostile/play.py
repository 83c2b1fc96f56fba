"""Runs one row: a calm phase, the attack, a pause, and the attack again with a signal; and evaluates it."""

import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loadtest.hostile.good import Good
from loadtest.hostile.row import Row
from loadtest.hostile.server import Server, start_attack

MAX_SLOWDOWN = 2.0  # of the good client's p50, relative to the calm phase
NOISE_S = 0.005  # a p50 this much above the calm one is accepted too
MAX_HEALTHZ_S = 0.2
MAX_CLOSED_S = {False: 15.0, True: 7.0}  # quick: shorter timeouts; the minimum rate of a body is measured over 5 s
MAX_EXIT_S = 5.0
MAX_REST_S = 30.0
REST_MB, REST_RATIO = 60, 0.15  # maximum memory above base after the pause: the greater of the two
MAX_ANSWER_BYTES = 64 << 10  # of an error's text
MAX_ATTACK_S = 60.0  # then the attack is killed


@dataclass
class Report:
    """The measurements of a row; `faults` evaluates them."""

    row: Row
    good: Counter[str]
    calm_ms: float
    attacked_ms: float
    healthz_ms: float
    base_mb: float
    peak_mb: float
    rest_mb: float
    rest_s: float
    outcome: dict[str, Any]
    exit_s: float
    log: str
    skipped: list[str]
    pause_ms: float
    died: int | None  # exit status of a server that ended before the signal
    ended: dict[str, Any]  # outcome of the attack during the signal; {} unless the row evaluates it
    quick: bool

    @property
    def closed_s(self) -> float | None:
        closed = self.outcome["closed_s"]
        if self.outcome["left_open"]:
            return float("inf")
        return max(closed) if closed else None

    @property
    def answer_s(self) -> float | None:
        answers = self.outcome["answers_s"]
        return statistics.median(answers) if answers else None

    def faults(self) -> list[str]:
        """Return the faults as text; an empty list means that the row passes."""
        return [*self._of_good(), *self._of_memory(), *self._of_attackers(), *self._of_end()]

    def _of_good(self) -> Iterator[str]:
        if set(self.good) - {"200"}:
            yield "the good client did not get 200 throughout"
        if not self.row.shares_engine and self.attacked_ms > max(
            MAX_SLOWDOWN * self.calm_ms, self.calm_ms + NOISE_S * 1000
        ):
            yield "the good client was slowed down"
        if self.healthz_ms > MAX_HEALTHZ_S * 1000:
            yield "/healthz was slow"

    def _of_memory(self) -> Iterator[str]:
        if self.peak_mb > self.base_mb + self.row.budget_mb:
            yield f"memory, {self.peak_mb - self.base_mb:.0f} of {self.row.budget_mb:.0f} MB above base"
        if self.rest_mb > self.base_mb + max(REST_MB, self.base_mb * REST_RATIO):
            yield "memory was not released"

    def _of_attackers(self) -> Iterator[str]:
        row, statuses, largest = self.row, self.outcome["statuses"], self.outcome["largest_answer"]
        if self.closed_s is not None and self.closed_s > MAX_CLOSED_S[self.quick]:
            yield f"attackers' connections are kept ({self.outcome['left_open']} still open)"
        if wrong := [status for status in statuses if not re.fullmatch(row.statuses, status)]:
            yield f"attackers got {', '.join(sorted(wrong))}"
        if row.answer_s and self.answer_s and self.answer_s > row.answer_s:
            yield f"the refusal took {self.answer_s:.2f} s"
        if largest > MAX_ANSWER_BYTES and not re.fullmatch(row.statuses, "200"):
            yield f"an answer of {largest} bytes"

    def _of_end(self) -> Iterator[str]:
        row, ended = self.row, self.ended.get("statuses")
        if self.died is not None:
            yield f"the server ended with status {self.died}: {self.log.splitlines()[-1:]}"
        if self.exit_s > MAX_EXIT_S:
            yield f"{row.end} to exit"
        if row.end != "SIGTERM" and set(ended or ()) != {"200"}:
            yield f"{row.end}: those in flight got {ended}"
        if "Traceback" in self.log:
            yield "a traceback in the log"
        if row.log and not re.search(row.log, self.log):
            yield f"the log has no {row.log!r}"


def play(row: Row, *, quick: bool) -> Report:
    """Run the row. Raises RuntimeError if the server does not start or the attack cannot be run."""
    with Server(row, quick=quick) as server:
        with Good(server.port, keys=row.keys) as good:
            time.sleep(1.0)
            calm_from = time.monotonic()
            time.sleep(1.0 if quick else 3.0)
            calm_to, base_mb = time.monotonic(), server.resident_mb()
            server.reset_peak()
            attack = _finished(row, server, quick=quick)
            peak_mb = server.peak_mb()
        rest_mb, rest_s = _rest(server, base_mb)
        died = server.process.poll()
        exit_s, ended = _end(row, server, quick=quick)
        outcome = attack["outcome"]
        begin, end = attack["started"] + row.good_from_s, attack["ended"]
        attacked = good.between("/v1/predict", begin, end)
        return Report(
            row=row,
            good=Counter(each.status for each in attacked),
            calm_ms=_median_ms(good.between("/v1/predict", calm_from, calm_to)),
            attacked_ms=_median_ms(attacked),
            healthz_ms=max((each.seconds * 1000 for each in good.between("/healthz", begin, end)), default=0.0),
            base_mb=base_mb,
            peak_mb=max(peak_mb, base_mb),
            rest_mb=rest_mb,
            rest_s=rest_s,
            outcome=outcome,
            exit_s=exit_s,
            log=server.log,
            skipped=server.skipped,
            pause_ms=good.pause_s * 1000,
            died=died,
            ended=ended,
            quick=quick,
        )


def _median_ms(seen: list[Any]) -> float:
    return statistics.median(each.seconds for each in seen) * 1000 if seen else 0.0


def _finished(row: Row, server: Server, *, quick: bool) -> dict[str, Any]:
    attack = start_attack(server, quick=quick, once=quick)
    try:
        text, _ = attack.communicate(timeout=MAX_ATTACK_S)
    except Exception as error:
        raise RuntimeError(f"{row.name}: the attack did not end: {error!r}") from error
    finally:
        attack.kill()
    last: dict[str, Any] = json.loads(text.splitlines()[-1])
    if "outcome" not in last:
        raise RuntimeError(f"{row.name}: the attack broke off")
    return last


def _rest(server: Server, base_mb: float) -> tuple[float, float]:
    """Return the resident MB and the seconds until they were back near base; wait at most MAX_REST_S."""
    started = time.monotonic()
    while True:
        now_mb, seconds = server.resident_mb(), time.monotonic() - started
        if now_mb <= base_mb + max(REST_MB, base_mb * REST_RATIO) or seconds > MAX_REST_S:
            return now_mb, seconds
        time.sleep(0.25)


def _end(row: Row, server: Server, *, quick: bool) -> tuple[float, dict[str, Any]]:
    """Send the signal during the attack; return the seconds until the exit, and the outcome if the row evaluates it."""
    attack = start_attack(server, quick=quick, once=True)
    assert attack.stdout
    attack.stdout.readline()
    time.sleep(min(row.end_after_s, 0.5) if quick else row.end_after_s)
    seconds = server.end(row.end)
    if row.end == "SIGTERM":
        attack.kill()
        attack.wait()
        return seconds, {}
    text, _ = attack.communicate(timeout=MAX_ATTACK_S)
    return seconds, json.loads(text.splitlines()[-1])["outcome"]
