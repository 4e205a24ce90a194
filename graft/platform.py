"""The composition root: starts the actors, joins them, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from graft.backend import Ingested, Part, PlatformStatus
from graft.config import REPOSITORY, GraftConfig
from graft.current_release import CurrentRelease, unswitched
from graft.errors import ConfigError, NotInPlace, StartError
from graft.folders import document_files
from graft.generators import GENERATOR, placement, start_generators
from graft.gpu_split import split_of_cluster
from graft.graph_model import actor_text_model
from graft.part_metrics import metrics_of, unavailable
from graft.pinned_retriever import PinnedRetriever
from graft.releases import Release
from graft.running import only_platform
from graft.stages import OnStage, Stage, stage
from graft.tracing import export_spans, otel_environment
from retrieval.extraction.files import read_file
from retrieval.types import DEFAULT_TENANT, DocumentState

if TYPE_CHECKING:
    from agents.pipeline import Pipeline
    from retrieval.actor import ActorRetrieval
    from retrieval.ingestion.bulk import BulkProgress, SourceFile
    from retrieval.sharding.routed_graph import RoutedGraph
    from retrieval.types import Metadata
    from serving import ActorGenerator, RoutedGenerator

NAMESPACE = "graft"
"""Ray namespace of every actor of ours."""
SAMPLE_LIBRARY = "samples"
"""Name of the library that holds the bundled documents."""
ALL_PARTS = ("retrieval", "generator")
PART_TIMEOUT_S = 5.0
"""How long `status` waits for one part to answer."""
SAMPLE_TIMEOUT_S = 600.0


def _silent(_: Stage) -> None:
    """Report nothing."""


class Platform:
    """A `Backend` of actors in a local or given Ray; made by `start`."""

    def __init__(self, config: GraftConfig, closing: AsyncExitStack, url: str | None) -> None:
        self.config = config
        self._sized = config
        """The same with the GPU divided among its parts; see `gpu_split`."""
        self._closing = closing
        self._url = url
        self._retrieval: ActorRetrieval | None = None
        self._generator: ActorGenerator | RoutedGenerator | None = None
        self._pipelines: dict[str, Pipeline] = {}
        self._ingesting = asyncio.Lock()
        self.release: str | None = None
        """Id of the release that answers; None without a generator."""

    @classmethod
    async def start(
        cls,
        config: GraftConfig,
        *,
        on_stage: OnStage | None = None,
        parts: Iterable[str] | None = None,
        url: str | None = None,
    ) -> Self:
        """Start the platform and return it once it answers.

        Args:
            config: Everything that can be configured.
            on_stage: Called with every stage as it begins and ends.
            parts: Only these of `retrieval`, `generator`; None for all.
            url: Address it will be served at; shown by `status`.

        Raises:
            StartError: It cannot start here; what had been started is stopped again.
        """
        wanted = set(ALL_PARTS if parts is None else parts)
        if unknown := wanted - set(ALL_PARTS):
            raise ConfigError(f"unknown part {min(unknown)!r}; the parts are {', '.join(ALL_PARTS)}")
        report = on_stage or _silent
        async with AsyncExitStack() as stack:
            stack.enter_context(only_platform(config.home))
            if traced := otel_environment():
                flush = await asyncio.to_thread(export_spans, traced, "server")
                stack.push_async_callback(asyncio.to_thread, flush)
            platform = cls(config, stack, url)
            await platform._start_ray(report, stack)
            starts = []
            if "retrieval" in wanted:
                starts.append(platform._start_retrieval(report, stack))
            if "generator" in wanted:
                starts.append(platform._start_generator(report, stack))
            await _all(starts)
            if wanted == set(ALL_PARTS):
                await platform._open_pipelines(stack)
            platform._closing = stack.pop_all()
            return platform

    async def _start_ray(self, report: OnStage, stack: AsyncExitStack) -> None:
        settings = self.config.ray
        # Read by Ray when it is imported: no usage reports.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        what = f"attaching to {settings.address}" if settings.address else "starting a local Ray"
        with stage(report, "ray", what) as done:
            if await asyncio.to_thread(self._init_ray):
                stack.push_async_callback(asyncio.to_thread, self._shutdown_ray)
                done.message = f"attached to {settings.address}" if settings.address else "local Ray is up"
            else:
                done.message = "using the Ray this process is attached to"
            if split := await asyncio.to_thread(split_of_cluster, self.config):
                self._sized = split.applied(self.config)
                done.message += f"; GPU of {split}"

    def _init_ray(self) -> bool:
        import ray

        if ray.is_initialized():
            return False
        settings = self.config.ray
        local = (
            {}
            if settings.address
            else {
                "num_cpus": settings.num_cpus,
                "include_dashboard": False,
                "object_store_memory": settings.object_store_bytes,
            }
        )
        try:
            ray.init(
                address=settings.address or "local",
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **local,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise StartError(f"Ray cannot start: {error}") from error
        return True

    @staticmethod
    def _shutdown_ray() -> None:
        import ray

        ray.shutdown()

    async def _start_retrieval(self, report: OnStage, stack: AsyncExitStack) -> None:
        from retrieval.actor import ActorEmbedder, ActorRetrieval

        config = self._sized.retrieval
        with stage(report, "retrieval", "loading the embedder and opening the index") as done:
            options = {"num_cpus": 0, "resources": placement("graft_index")}
            self._retrieval = ActorRetrieval.start(
                self.config.home / "index",
                config,
                namespace=NAMESPACE,
                num_threads=config.embed_threads or os.cpu_count() or 1,
                embedder_options=options,
                shard_options=options,
                text_model=actor_text_model(self.config.serving.model, GENERATOR, NAMESPACE),
            )
            stack.push_async_callback(self._retrieval.aclose)
            await self._retrieval.ready()
            embedder = await ActorEmbedder(self._retrieval.embedder, config).info()
            done.message = f"embedder {embedder.model_id} ({embedder.dim} dimensions), index open"
        if self.config.sample_library:
            await self._ingest_samples(report)

    async def _ingest_samples(self, report: OnStage) -> None:
        """Add the bundled documents; unchanged ones cost one hash each."""
        folder = REPOSITORY / "sample_library" / "documents"
        retrieval = self._retrieval
        if retrieval is None or not folder.is_dir():
            return
        paths = document_files(folder)
        with stage(report, "library", f"reading the sample library, {len(paths)} documents") as done:
            added = [
                await retrieval.add(
                    path.name,
                    read_file(path, self.max_document_bytes),
                    library=SAMPLE_LIBRARY,
                    tenant=DEFAULT_TENANT,
                )
                for path in paths
            ]
            documents = await retrieval.wait_ready(
                [document.document_id for document in added],
                timeout_s=SAMPLE_TIMEOUT_S,
                tenant=DEFAULT_TENANT,
            )
            ready = sum(document.state is DocumentState.READY for document in documents)
            done.message = f"{ready} of {len(added)} sample documents are ready"

    async def _start_generator(self, report: OnStage, stack: AsyncExitStack) -> None:
        num_replicas = self.config.serving.num_replicas
        with stage(report, "generator", f"loading {self.config.serving.model} into vLLM") as done:
            self._generator = await start_generators(self._sized.serving, NAMESPACE, stack)
            info = await self._generator.info()
            replicas = f", {num_replicas} replicas" if num_replicas > 1 else ""
            done.message = f"{info.model_id} answers, context of {info.max_model_len:,} tokens{replicas}"

    async def _open_pipelines(self, stack: AsyncExitStack) -> None:
        from agents.checkpoints import open_threads
        from agents.graphs import GRAPHS
        from agents.pipeline import Pipeline

        threads = await stack.enter_async_context(
            open_threads(self.config.home / "threads.sqlite", ttl_s=self.config.agents.thread_ttl_s)
        )
        info = await self.generator.info()
        self._pipelines = {
            name: Pipeline(
                name,
                retriever=self.retriever,
                generator=self.generator,
                threads=threads,
                config=self.config.agents,
            )
            for name in GRAPHS
        }
        current = CurrentRelease(
            self.config.home / "releases",
            self.retriever,
            unswitched(info, self.config.hash),
            self._answer_as,
        )
        await current.refresh()
        self.retriever.on_switch = current.catch_up
        following = asyncio.create_task(current.follow(), name="follow-release")
        stack.push_async_callback(_end, following)

    def _answer_as(self, release: Release) -> None:
        """Have runs that begin from now on name a release, and search its index version."""
        self.release = release.id
        retriever = PinnedRetriever(self.retriever, release.index_version)
        for pipeline in self._pipelines.values():
            pipeline.answer_as(release.id, retriever)

    @property
    def max_document_bytes(self) -> int:
        """Return the largest file that is accepted."""
        return self.config.retrieval.max_document_bytes

    @property
    def bulk_files(self) -> int:
        """Return from how many files `ingest_files` is worth it."""
        return self.config.retrieval.bulk_files

    async def ingest_files(
        self,
        files: Sequence[SourceFile],
        *,
        library: str,
        tenant: str,
        metadata: Metadata | None,
        on_progress: Callable[[BulkProgress], None] | None = None,
    ) -> Ingested:
        """Ingest files of this machine through Ray Data; see `BulkBackend.ingest_files`.

        One call at a time: each may fill `retrieval.bulk_memory_bytes`.
        """
        # Importing Ray Data takes seconds, in which nobody else would be answered.
        bulk = await asyncio.to_thread(import_module, "retrieval.ingestion.bulk_ingest")
        config = self.config.retrieval
        async with self._ingesting:
            version = await bulk.bulk_version(self.retriever, config)
            if version is None:
                raise NotInPlace(
                    f"the index version that answers was not made by {config.embedder!r}; "
                    "many at a time are read once the new version answers"
                )
            result = await bulk.bulk_ingest(
                self.retriever,
                config,
                version,
                files,
                library=library,
                tenant=tenant,
                metadata=metadata,
                on_progress=on_progress,
            )
        documents = await self.store.wait_ready(result.document_ids, timeout_s=math.inf, tenant=tenant)
        return Ingested(tuple(documents), result.refused)

    @property
    def retriever(self) -> ActorRetrieval:
        """Return the searcher, which is also the document store."""
        if self._retrieval is None:
            raise StartError("this platform was started without retrieval; start it with all parts")
        return self._retrieval

    @property
    def store(self) -> ActorRetrieval:
        """Return the document store."""
        return self.retriever

    @property
    def index(self) -> ActorRetrieval:
        """Return the operations on the index."""
        return self.retriever

    @property
    def graph(self) -> RoutedGraph:
        """Return the graph of entities."""
        return self.retriever.graph

    @property
    def generator(self) -> ActorGenerator | RoutedGenerator:
        """Return the language model."""
        if self._generator is None:
            raise StartError("this platform was started without a generator; start it with all parts")
        return self._generator

    def graphs(self) -> tuple[str, ...]:
        """Return the names of the graphs that can be run."""
        return tuple(self._pipelines)

    def pipeline(self, graph: str) -> Pipeline:
        """Return the runner of a graph.

        Raises:
            UnknownGraph: No graph of that name; the message lists those there are.
        """
        from agents.errors import UnknownGraph

        if graph not in self._pipelines:
            raise UnknownGraph(
                f"no graph {graph!r}; this platform has: {', '.join(self._pipelines) or 'none'}"
            )
        return self._pipelines[graph]

    async def status(self) -> PlatformStatus:
        """Return what runs; a part that does not answer in time is `failed`."""
        parts = await asyncio.gather(self._retrieval_part(), self._generator_part())
        return PlatformStatus(
            version("graft"),
            self.release,
            tuple(parts),
            self.graphs(),
            self.max_document_bytes,
            self._url,
            None if self._retrieval is None else self.bulk_files,
        )

    async def _retrieval_part(self) -> Part:
        if self._retrieval is None:
            return Part("retrieval", "off", "not started")
        try:
            async with asyncio.timeout(PART_TIMEOUT_S):
                libraries = await self._retrieval.libraries()
        except (TimeoutError, *unavailable()) as error:
            return Part("retrieval", "failed", str(error) or f"no answer within {PART_TIMEOUT_S:.0f} s")
        chunks = sum(library.num_chunks for library in libraries)
        documents = sum(library.num_ready for library in libraries)
        return Part("retrieval", "ready", f"{documents} documents, {chunks} chunks")

    async def _generator_part(self) -> Part:
        from serving import RoutedGenerator

        if self._generator is None:
            return Part("generator", "off", "not started")
        try:
            async with asyncio.timeout(PART_TIMEOUT_S):
                stats = await self._generator.stats()
        except (TimeoutError, *unavailable()) as error:
            return Part("generator", "failed", str(error) or f"no answer within {PART_TIMEOUT_S:.0f} s")
        detail = f"{stats.num_running} running, {stats.num_waiting} waiting"
        if isinstance(self._generator, RoutedGenerator):
            detail = f"{self._generator.num_up} of {len(self._generator.replicas)} replicas, {detail}"
        return Part("generator", "ready", detail)

    async def metrics(self) -> str:
        """Return the metrics of every part as Prometheus text; one that does not answer is shown as down."""
        return await metrics_of({"retrieval": self._retrieval, "generator": self._generator}, PART_TIMEOUT_S)

    async def aclose(self) -> None:
        """Stop every actor and the local Ray; a given Ray cluster keeps running."""
        await self._closing.aclose()


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _all(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run the starts side by side; the first error ends the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
