"""Settings of the whole server: addresses, access, limits and logging."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from app.errors import SettingsError
from app.settings.places import ENGINES_DIR

PROTOCOLS = ("v1", "kserve", "platform", "deepstack", "roboflow")


def _split(value: Any) -> Any:
    return tuple(filter(None, (each.strip() for each in value.split(",")))) if isinstance(value, str) else value


_KEY = re.compile(r"[!-~]{16,}")  # printable ASCII, which is valid in a header
_HOST = re.compile(r"[a-z0-9.-]+(:\d+)?")
_NAME = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]")
Listed = Annotated[tuple[str, ...], BeforeValidator(_split), PlainSerializer(",".join)]


class ServerSettings(BaseModel):
    """Frozen and validated; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines_dir: Path = Field(ENGINES_DIR, description="folder of the built engines")
    build_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="maximum memory of a build; if unset, nine tenths of this machine's or container's memory",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="number of cores to use; if unset, all available")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    protocols: Listed = Field(
        PROTOCOLS, description=f"protocols to serve, of {', '.join(PROTOCOLS)}, separated by commas"
    )
    api_keys: Listed = Field((), repr=False, description="KEY,...: every request needs one of them; none if unset")
    allow_anonymous: bool = Field(False, description="require no key although other machines can reach HOST")
    allow_urls: Listed = Field((), description="HOST or HOST:PORT,...: hosts to fetch images from; none if unset")
    cors_origins: Listed = Field(
        (), description="ORIGIN,...: sites whose pages may send requests, such as https://example.com; none if unset"
    )
    allow_hosts: Listed = Field(
        (),
        description="HOST,...: further names, without a port, that the Host header may have if the server has no keys "
        "and listens on a loopback address",
    )
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="port for KServe over gRPC, such as 8001; if unset, no gRPC"
    )
    max_pending: int = Field(256, ge=1, description="number of requests in flight; more are refused with 503")
    deadline_ms: float = Field(
        30_000, gt=0, le=3_600_000, description="maximum time of a request; the header X-Deadline-Ms can shorten it"
    )
    max_body_bytes: int = Field(20 * 1024 * 1024, ge=1, description="size of one request's body")
    max_tensor_bytes: int = Field(
        96 * 1024 * 1024, ge=1, description="size of one KServe request; sixteen images of 640x640 in FP32 fit"
    )
    max_json_bytes: int = Field(8 * 1024 * 1024, ge=1, description="size of the JSON or urlencoded form in one request")
    max_pixels: int = Field(50_000_000, ge=1, description="pixels of one image")
    max_side: int = Field(65_535, ge=1, description="height and width of one image, px")
    max_files: int = Field(64, ge=1, description="number of files in one request")
    max_inflight_bytes: int | None = Field(
        None,
        ge=1,
        description="bytes of all requests in flight: bodies, inflated bodies, messages, responses; if unset, an "
        "eighth of the memory, 128 MiB to 1 GiB",
    )
    max_inflight_pixels: int | None = Field(
        None,
        ge=1,
        description="pixels of all images in flight; if unset, one per 32 bytes of memory, 64 to 512 million",
    )
    max_connections: int = Field(
        1024, ge=1, description="number of HTTP connections; fewer if the process may not open as many files"
    )
    max_connections_per_peer: int = Field(512, ge=1, description="number of HTTP connections from one address")
    max_head_bytes: int = Field(32 * 1024, ge=1024, description="size of a request's line and headers")
    head_timeout_ms: float = Field(
        10_000, gt=0, le=3_600_000, description="time from the connection, or a request's first byte, to its whole head"
    )
    keep_alive_ms: float = Field(10_000, gt=0, le=3_600_000, description="time until an idle connection is closed")
    send_timeout_ms: float = Field(
        10_000, gt=0, le=3_600_000, description="time until a client that does not read its response is disconnected"
    )
    min_bytes_per_s: int = Field(
        1024,
        ge=0,
        description="minimum rate of a body over 5 s, and of reading a response over SEND_TIMEOUT_MS; 0 = none",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error: the minimum level that is logged"
    )
    log_format: Literal["text", "json"] = Field("text", description="text or json: format of the log")
    access_log: bool = Field(False, description="log one line per request")

    @field_validator("protocols")
    @classmethod
    def _known(cls, protocols: tuple[str, ...]) -> tuple[str, ...]:
        if not protocols or not set(protocols) <= set(PROTOCOLS):
            raise ValueError(f"give some of {', '.join(PROTOCOLS)}, separated by commas")
        return protocols

    @field_validator("api_keys")
    @classmethod
    def _hard_to_guess(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_KEY.fullmatch, keys)):
            raise ValueError("a key is 16 or more printable ASCII characters without spaces and commas")
        return keys

    @field_validator("allow_urls")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_HOST.fullmatch, hosts)):
            raise ValueError(
                "give host names in lower case, with a port if it is not the default one: no scheme, no path"
            )
        return hosts

    @field_validator("allow_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_NAME.fullmatch, hosts)):
            raise ValueError("give host names or addresses in lower case, without scheme, port or path")
        return hosts

    def require_keys(self) -> None:
        """Raise SettingsError if other machines can reach HOST and neither API_KEYS nor ALLOW_ANONYMOUS is set."""
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise SettingsError(
                f"HOST={self.host} is open to other machines: give API_KEYS, one for each client, or ALLOW_ANONYMOUS=1"
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that are allowed in the Host header; None = any.

        Otherwise a web page whose host name resolves to 127.0.0.1 (DNS rebinding) could use a server that requires no
        key because only this machine can reach it.
        """
        if self.api_keys or not _is_loopback(self.host):
            return None
        return frozenset({"localhost", "127.0.0.1", "[::1]", self.host, f"[{self.host}]", *self.allow_hosts})


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
