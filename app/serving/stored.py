"""Finds engines that were built elsewhere, for a server without the packages for building."""

import logging

from app.errors import BackendUnavailable, GateFailed
from app.progress import Progress, Report
from app.serving.spec import BuildRequest, BuildSpec, local_weights, resolve
from app.store import store
from app.store.manifest import Manifest, StoredEngine

log = logging.getLogger("yolopard.stored")


class StoredEngines:
    """Finds an engine in the store. Ignores how it was calibrated and evaluated."""

    def __init__(self, request: BuildRequest) -> None:
        self._request = request

    def run(self, report: Report) -> StoredEngine:
        """Return the engine. Raises BackendUnavailable if the store has none, GateFailed, or another SetupError."""
        report(Progress.at("weights", self._request.name))
        missing = BackendUnavailable(
            "an engine has to be built, and this installation only serves: build it with `yolopard build` where "
            "yolopard[build] is installed, and copy the engines folder here"
        )
        path = local_weights(self._request)
        if path is None:
            raise missing
        spec = resolve(self._request, path)
        for precision in spec.precisions:
            found = store.match(spec.engines, spec.fingerprint(precision))
            if found is None:
                raise missing
            if accepted(spec, found.manifest):
                return found
        raise refused(spec)

    def cancel(self) -> None:
        """Do nothing: `run` takes no time."""


def accepted(spec: BuildSpec, manifest: Manifest) -> bool:
    """Return True if the engine may be served. Logs the gate's shortcomings and doubts."""
    precision = manifest.fingerprint.precision
    shortcomings = manifest.gate.shortcomings(precision, spec.limits)
    if shortcomings:
        log.warning("%s %s is refused by the accuracy gate: %s", spec.name, precision, "; ".join(shortcomings))
    elif problem := manifest.gate.nothing_found():
        log.warning("%s %s: %s", spec.name, precision, problem)
    elif manifest.gate.figures:
        for doubt in manifest.gate.figures.doubts(precision, spec.limits):
            log.warning("%s %s passes the accuracy gate, but %s", spec.name, precision, doubt)
    return not shortcomings


def refused(spec: BuildSpec) -> GateFailed:
    """Return the error for a build whose precisions were all refused."""
    return GateFailed(
        f"{spec.name}: no precision of the engine gives the boxes of {spec.reference} (the log lines above say by "
        f"how much). No engine was kept; the accuracy reports are in {spec.engines}"
    )
