"""Engines that were built elsewhere: all that a server without the packages for building can serve."""

import logging

from app.errors import BackendUnavailable, GateFailed
from app.progress import Progress, Report
from app.serving.spec import BuildRequest, BuildSpec, local_weights, resolve
from app.store import store
from app.store.manifest import Manifest, StoredEngine

log = logging.getLogger("yolopard.stored")


class StoredEngines:
    """Finds an engine in the store, however it was calibrated and evaluated."""

    def __init__(self, order: BuildRequest) -> None:
        self._order = order

    def run(self, report: Report) -> StoredEngine:
        """Raises a SetupError, BackendUnavailable if the engine is not there."""
        report(Progress.at("weights", self._order.name))
        missing = BackendUnavailable(
            "an engine has to be built, and this installation only serves: build it with `yolopard build` where "
            "yolopard[build] is installed, and bring the engines folder here"
        )
        path = local_weights(self._order)
        if path is None:
            raise missing
        spec = resolve(self._order, path)
        for precision in spec.precisions:
            found = store.match(spec.engines, spec.fingerprint(precision))
            if found is None:
                raise missing
            if accepted(spec, found.manifest):
                return found
        raise refused(spec)

    def cancel(self) -> None:
        """It takes no time."""


def accepted(spec: BuildSpec, manifest: Manifest) -> bool:
    """Whether the engine may be served; one line in the log if not."""
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
    """Of every precision."""
    return GateFailed(
        f"{spec.name}: no precision of the engine gives the boxes of {spec.reference} (the lines above say by how "
        f"much). None was kept; {spec.engines} holds the figures"
    )
