"""The start of the Ray Serve peers. Import it before ray, which reads its environment when imported."""

import os
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too, this keeps Ray's own ports on loopback
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # the line above turns it on: HAProxy, which listens on every address
}

import ray
import ray.serve
from common import HOST, PORT
from ray.serve._private import replica
from ray.serve.schema import LoggingConfig

REPLICA = {"max_ongoing_requests": 64, "ray_actor_options": {"num_cpus": 0.5}}


def stay_on_loopback() -> None:
    """Call it in a replica's `__init__`: otherwise its gRPC port listens on every address."""
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", HOST))


def run(application: Any) -> None:
    """Serve until the process ends."""
    ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    ray.serve.start(http_options={"host": HOST, "port": PORT})
    logging = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray.serve.run(application, route_prefix="/predict", blocking=True, logging_config=logging)
