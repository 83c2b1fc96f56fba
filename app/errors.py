"""All errors as one tree. Each class has one HTTP status and one code.

::

    YolopardError                  500 internal
    ├── RequestError               the client can correct it
    │   ├── EmptyBody              400 empty_body
    │   ├── MalformedBody          400 malformed_body
    │   ├── Unauthorized           401 unauthorized
    │   ├── UrlNotAllowed          403 url_not_allowed
    │   ├── NotFound               404 not_found
    │   ├── MethodNotAllowed       405 method_not_allowed
    │   ├── BodyTooLarge           413 body_too_large
    │   ├── TooManyFiles           413 too_many_files
    │   ├── TooManyPixels          413 too_many_pixels
    │   ├── UnsupportedImage       415 unsupported_image
    │   ├── UndecodableImage       422 undecodable_image
    │   ├── UrlFailed              422 url_failed
    │   └── BadParameter           422 bad_parameter
    ├── ServiceError               a fault or limit of the server; the same request may work later
    │   ├── NotReady               503 not_ready
    │   ├── Overloaded             503 overloaded
    │   ├── Stopping               503 stopping
    │   ├── OutOfMemory            503 out_of_memory
    │   ├── DeadlineExceeded       504 deadline_exceeded
    │   ├── InferenceFailed        500 inference_failed
    │   ├── WorkStuck              500 work_stuck
    │   └── Unsupported            501 unsupported
    └── SetupError                 start-up only, never over HTTP: ends the process with one line
        ├── SettingsError          a setting is wrong
        ├── BackendUnavailable     the wheel or the device is missing
        ├── WeightsError           the weights cannot be loaded or converted to a serving graph
        ├── StoreError             the engines folder cannot be read or written
        ├── BuildFailed            the build process died, or the engine's compiler failed
        ├── EngineFailed           the device refused something that a loaded engine needs
        ├── EngineStale            a stored engine cannot be loaded here any more: build it again
        ├── GateFailed             no precision of the engine reproduces the boxes of the reference
        └── BenchFailed            no server to measure, or nothing to measure it with
"""

from typing import ClassVar


class YolopardError(Exception):
    """The message is for the user: it says what is wrong and what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"


class RequestError(YolopardError):
    status, code = 400, "bad_request"


class EmptyBody(RequestError):
    code = "empty_body"


class MalformedBody(RequestError):
    code = "malformed_body"


class Unauthorized(RequestError):
    status, code = 401, "unauthorized"


class UrlNotAllowed(RequestError):
    status, code = 403, "url_not_allowed"


class NotFound(RequestError):
    status, code = 404, "not_found"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"
    allowed = ""  # methods, as the header Allow lists them


class BodyTooLarge(RequestError):
    status, code = 413, "body_too_large"


class TooManyFiles(RequestError):
    status, code = 413, "too_many_files"


class TooManyPixels(RequestError):
    status, code = 413, "too_many_pixels"


class UnsupportedImage(RequestError):
    status, code = 415, "unsupported_image"


class UndecodableImage(RequestError):
    status, code = 422, "undecodable_image"


class UrlFailed(RequestError):
    status, code = 422, "url_failed"


class BadParameter(RequestError):
    status, code = 422, "bad_parameter"


class ServiceError(YolopardError):
    status, code = 503, "unavailable"


class NotReady(ServiceError):
    code = "not_ready"


class Overloaded(ServiceError):
    code = "overloaded"


class Stopping(ServiceError):
    code = "stopping"


class OutOfMemory(ServiceError):
    code = "out_of_memory"


class DeadlineExceeded(ServiceError):
    status, code = 504, "deadline_exceeded"


class InferenceFailed(ServiceError):
    status, code = 500, "inference_failed"


class WorkStuck(ServiceError):
    status, code = 500, "work_stuck"


class Unsupported(ServiceError):
    status, code = 501, "unsupported"


class SetupError(YolopardError):
    code = "setup"


class SettingsError(SetupError):
    pass


class BackendUnavailable(SetupError):
    code = "backend_unavailable"


class WeightsError(SetupError):
    pass


class StoreError(SetupError):
    pass


class BuildFailed(SetupError):
    code = "build_failed"


class EngineFailed(SetupError):
    code = "engine_failed"


class EngineStale(SetupError):
    code = "engine_stale"


class GateFailed(SetupError):
    code = "gate_failed"


class BenchFailed(SetupError):
    code = "bench_failed"


def forget(error: BaseException | None) -> None:
    """Drop the tracebacks of the error and of its causes, once it has been answered or logged.

    Their frames hold the request's bytes, and one holds the future that holds the error: a reference cycle that only
    the garbage collector breaks, much later.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
