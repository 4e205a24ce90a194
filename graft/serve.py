"""`graft up`: the platform, its server, and an orderly end: on Ctrl-C at once, on SIGTERM after a drain."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING

from graft.access import Access
from graft.drain import Drain
from graft.errors import StartError
from graft.running import find_running, remove_record, write_record
from graft.stages import OnStage, Stage, stage

if TYPE_CHECKING:
    from graft.config import GraftConfig
    from graft.sdk import AsyncGraft


class EndSignals:
    """What signals ask for: Ctrl-C, or a second signal, an end at once; SIGTERM, one after a drain."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set once the platform is to end."""
        self.at_once = asyncio.Event()
        """Set once nothing is to be waited for."""

    def on_signal(self, number: int) -> None:
        """Take note of a signal."""
        if number == signal.SIGINT or self.asked.is_set():
            self.at_once.set()
        self.asked.set()


def serve(config: GraftConfig, *, on_stage: OnStage) -> None:
    """Serve until the process is told to stop; everything started is stopped before this returns.

    Raises:
        StartError: Another platform uses the home folder, the port is taken, or a part cannot start.
    """
    running = find_running(config.home)
    if running is not None:
        on_stage(Stage("server", f"already running at {running.url} (process {running.pid})", 0.0))
        return
    access = Access.from_environment(config.server.host)
    with _listen(config.server.host, config.server.port) as listener:
        asyncio.run(_serve(config, access, listener, on_stage))


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow starts."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StartError(
            f"port {port} on {host} cannot be used ({error.strerror}); stop the program that listens there, "
            "or choose another with --set server.port=7861"
        ) from error
    return listener


async def _serve(config: GraftConfig, access: Access, listener: socket.socket, report: OnStage) -> None:
    from graft.sdk import AsyncGraft

    end = EndSignals()
    loop = asyncio.get_running_loop()

    def own_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end.on_signal, number)

    def on_stage(at: Stage) -> None:
        if at.name == "ray":
            own_signals()  # Ray puts a handler of its own on SIGTERM when it starts.
        report(at)

    own_signals()
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    starting = asyncio.create_task(AsyncGraft.up(config, on_stage=on_stage, url=url))
    stopping = asyncio.create_task(end.asked.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        on_stage(Stage("stopping", "interrupted while starting"))
        starting.cancel()
        await asyncio.wait({starting})
        return
    graft = starting.result()
    try:
        await _run_server(config, access, graft, listener, url, end, on_stage)
    finally:
        remove_record(config.home)
        stopping.cancel()
        with stage(on_stage, "stopping", "stopping every part") as done:
            await graft.aclose()
            done.message = "every part is stopped"


async def _run_server(
    config: GraftConfig,
    access: Access,
    graft: AsyncGraft,
    listener: socket.socket,
    url: str,
    end: EndSignals,
    on_stage: OnStage,
) -> None:
    from graft.http_server import HttpServer
    from graft.server import create_app, mount_ui

    drain = Drain()
    with stage(on_stage, "server", "building the chat page and the API") as done:
        app = create_app(graft, access, config.server, drain)
        app = mount_ui(app, graft, access, config.server, drain)
        server = HttpServer(app)
        serving = asyncio.create_task(server.serve([listener]))
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if serving.done():
            serving.result()
            raise StartError("the HTTP server ended while starting; see the messages above")
        write_record(config.home, url, config.server.drain_s)
        done.message = f"chat and API at {url}"
    on_stage(Stage("ready", f"open {url} - Ctrl-C stops it", 0.0))
    await end.asked.wait()
    if drain.num_under_way and not end.at_once.is_set():
        limit_s = config.server.drain_s
        waiting = f"waiting up to {limit_s:g} s for {drain.num_under_way} under way"
        with stage(on_stage, "draining", waiting) as done:
            left = await drain.run(limit_s, end.at_once)
            done.message = f"{left} under way are cut off" if left else "all that was under way has ended"
    server.should_exit = True
    await serving
