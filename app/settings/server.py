"""What holds for the whole server: where it listens, who may use it, and the limits of requests."""

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


_KEY = re.compile(r"[!-~]{16,}")  # printable ASCII: what a header can carry
_HOST = re.compile(r"[a-z0-9.-]+(:\d+)?")
_NAME = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]")
Listed = Annotated[tuple[str, ...], BeforeValidator(_split), PlainSerializer(",".join)]


class ServerSettings(BaseModel):
    """Frozen and validated; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines_dir: Path = Field(ENGINES_DIR, description="where built engines are kept")
    build_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="most that a build may hold; nine tenths of this machine's or container's memory if unset",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="cores to use; all that the process may, if unset")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    protocols: Listed = Field(
        PROTOCOLS, description=f"the ones that are served, of {', '.join(PROTOCOLS)}, with commas between them"
    )
    api_keys: Listed = Field((), repr=False, description="KEY,...: one of them must be shown; nobody is asked if unset")
    allow_anonymous: bool = Field(False, description="no key is asked for although HOST is not this machine's alone")
    allow_urls: Listed = Field((), description="HOST or HOST:PORT,...: where images may be fetched from; none if unset")
    cors_origins: Listed = Field(
        (), description="ORIGIN,...: whose pages may ask from a browser, such as https://example.com; none if unset"
    )
    allow_hosts: Listed = Field(
        (),
        description="HOST,...: further names in the Host header, without a port, that a server without keys on a "
        "loopback address answers to",
    )
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="port for the gRPC of KServe, such as 8001; closed if unset"
    )
    max_pending: int = Field(256, ge=1, description="requests in flight; more are refused with 503")
    deadline_ms: float = Field(
        30_000, gt=0, le=3_600_000, description="longest time of a request; its X-Deadline-Ms can only shorten it"
    )
    max_body_bytes: int = Field(20 * 1024 * 1024, ge=1, description="of one request")
    max_tensor_bytes: int = Field(
        96 * 1024 * 1024, ge=1, description="of one KServe request: sixteen images of 640x640 in FP32"
    )
    max_json_bytes: int = Field(8 * 1024 * 1024, ge=1, description="of the JSON or urlencoded form in one request")
    max_pixels: int = Field(50_000_000, ge=1, description="of one image")
    max_side: int = Field(65_535, ge=1, description="of one image, px")
    max_files: int = Field(64, ge=1, description="of one request")
    max_inflight_bytes: int | None = Field(
        None,
        ge=1,
        description="of all requests at a time: bodies, inflated bodies, messages, answers; an eighth of the memory, "
        "128 MiB to 1 GiB, if unset",
    )
    max_inflight_pixels: int | None = Field(
        None,
        ge=1,
        description="of all images at a time; one for each 32 bytes of memory, 64 to 512 million, if unset",
    )
    max_connections: int = Field(
        1024, ge=1, description="HTTP connections at a time; fewer where the process may not open so many files"
    )
    max_connections_per_peer: int = Field(512, ge=1, description="HTTP connections at a time from one address")
    max_head_bytes: int = Field(32 * 1024, ge=1024, description="of a request's line and headers")
    head_timeout_ms: float = Field(
        10_000, gt=0, le=3_600_000, description="from the connection, or a request's first byte, to its whole head"
    )
    keep_alive_ms: float = Field(10_000, gt=0, le=3_600_000, description="how long an idle connection stays open")
    send_timeout_ms: float = Field(
        10_000, gt=0, le=3_600_000, description="after which a client that takes nothing of its answer is cut off"
    )
    min_bytes_per_s: int = Field(
        1024,
        ge=0,
        description="least rate of a body, seen over 5 s, and of taking an answer, seen over SEND_TIMEOUT_MS; 0 = none",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error: the least that is logged"
    )
    log_format: Literal["text", "json"] = Field("text", description="text or json, of the log's lines")
    access_log: bool = Field(False, description="one line a request")

    @field_validator("protocols")
    @classmethod
    def _known(cls, protocols: tuple[str, ...]) -> tuple[str, ...]:
        if not protocols or not set(protocols) <= set(PROTOCOLS):
            raise ValueError(f"give some of {', '.join(PROTOCOLS)}, with commas between them")
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
                "give host names in lower case, with a port if it is not the usual one: no scheme, no path"
            )
        return hosts

    @field_validator("allow_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_NAME.fullmatch, hosts)):
            raise ValueError("give host names or addresses in lower case, without scheme, port and path")
        return hosts

    def require_keys(self) -> None:
        """Raises SettingsError where others than this machine could ask, and neither keys nor anonymity are given."""
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise SettingsError(
                f"HOST={self.host} lets others in: give API_KEYS, one for each client, or ALLOW_ANONYMOUS=1"
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that a request's Host header may hold; None = any.

        A page on the internet whose name resolves to 127.0.0.1 (DNS rebinding) could otherwise use a server that asks
        no key and trusts in being reached from this machine only.
        """
        if self.api_keys or not _is_loopback(self.host):
            return None
        return frozenset({"localhost", "127.0.0.1", "[::1]", self.host, f"[{self.host}]", *self.allow_hosts})


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
