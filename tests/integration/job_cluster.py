"""A small Ray cluster with a job server and token authentication, until standard input ends."""

from __future__ import annotations

import sys

import ray


def main(port: int, folder: str) -> None:
    """Start it, say so, and wait."""
    ray.init(
        num_cpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        object_store_memory=80 * 2**20,
        _temp_dir=folder,
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
