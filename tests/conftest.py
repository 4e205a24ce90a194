"""One Ray, one engine, one platform and one server for the whole session."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving import ActorGenerator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# OpenMP's threads otherwise spin while they wait: beside one other busy process a tiny training run took ten
# times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts the tests in the background has Ctrl-C ignored, by them and by all they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(os.environ.get("GRAFT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the run where a test hangs on after its time limit, which pytest-timeout raises only once."""
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker else item.config.getini("timeout"))
    last_resort = threading.Timer(2 * limit_s, _end_the_run, [item])
    last_resort.daemon = True
    last_resort.start()
    try:
        return (yield)
    finally:
        last_resort.cancel()


def _end_the_run(item: pytest.Item) -> None:
    item.config.pluginmanager.getplugin("capturemanager").suspend_global_capture(in_=True)
    sys.stdout.flush()
    sys.stderr.write(f"\n{item.nodeid} did not end at twice its time limit\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(sys.stderr)
    os._exit(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Public data sets; tests that need them skip where they are absent."""
    if not DATA.is_dir():
        pytest.skip(f"no data folder at {DATA}; set GRAFT_DATA")
    return DATA


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    import ray

    ray.init(
        num_cpus=16,  # Logical: actors of several fixtures live at once, and Ray Data needs some besides.
        include_dashboard=False,
        namespace="graft",
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("GRAFT_HOME")
    os.environ["GRAFT_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["GRAFT_HOME"]
    else:
        os.environ["GRAFT_HOME"] = before


@pytest.fixture(scope="session")
def platform(ray_session: None, home: Path) -> Iterator[object]:
    """A whole platform with the sample library and a graph of its entities, started through the SDK."""
    from graft import Graft, GraftConfig
    from retrieval.config import RetrievalConfig

    with Graft.up(GraftConfig(home=home, retrieval=RetrievalConfig(graph="rules"))) as graft:
        yield graft


@pytest.fixture(scope="session")
def engine(platform) -> object:
    """The platform's generator: the only engine of the session."""
    return platform.generator


@pytest.fixture(scope="session")
def spare_engine(ray_session: None) -> Iterator[ActorGenerator]:
    """A second engine, which tests may change or break; it takes three adapters and tells of its KV."""
    import ray

    from serving import ServingConfig, start_generator

    config = ServingConfig(max_adapters=3, kv_cache_bytes=64 << 20, num_replicas=2)
    client = start_generator(config, num_cpus=0.5)
    ray.get(client.actor.ready.remote())  # A test's event loop may run already.
    yield client
    ray.get(client.actor.stop.remote())
    ray.kill(client.actor)


@pytest.fixture(scope="session")
def platform_url(platform, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The platform served over HTTP on a free loopback port, and recorded in its home folder."""
    from graft.access import Access
    from graft.config import ServerConfig
    from graft.http_server import HttpServer
    from graft.running import remove_record, write_record
    from graft.server import create_app, mount_ui

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    access = Access()
    settings = ServerConfig(ingest_folders=(tmp_path_factory.getbasetemp(),))
    portal, core = platform._portal, platform._core

    def build() -> HttpServer:
        return HttpServer(mount_ui(create_app(core, access, settings), core, access, settings))

    server = portal.call(build)
    serving = portal.start_task_soon(server.serve, [listener])
    portal.call(asyncio.wait_for, server.listening.wait(), 60)
    write_record(home, url)
    yield url
    remove_record(home)
    server.should_exit = True
    serving.result(timeout=30)
