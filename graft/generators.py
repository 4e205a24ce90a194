"""The language model's actors of a platform: one, or several behind one router."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from graft.gpu_split import num_gpus
from graft.tracing import export_spans, otel_environment
from serving.config import ServingConfig, usable_cores

if TYPE_CHECKING:
    from serving import ActorGenerator, RoutedGenerator

GENERATOR = "generator-0"
"""Name of the generator's actor, the first one's where there are several."""


async def start_generators(
    config: ServingConfig, namespace: str, stack: AsyncExitStack
) -> ActorGenerator | RoutedGenerator:
    """Return the language model once it can answer, from so many actors as `config.num_replicas` says.

    Args:
        config: Settings of each.
        namespace: Ray namespace of the actors, which are named `generator-0` and so on.
        stack: Stops them when it is closed.

    Raises:
        ModelUnusable: The model cannot be served; the message says why.
        GeneratorUnavailable: An actor died, and Ray starts it no more.
    """
    first = _start(config, GENERATOR, namespace, stack)
    await first.ready()
    if config.num_replicas == 1:
        return first
    # The others find its caches warm, and the cores free.
    names = [f"generator-{number}" for number in range(1, config.num_replicas)]
    others = [_start(config, name, namespace, stack) for name in names]
    await asyncio.gather(*(other.ready() for other in others))
    from serving import RoutedGenerator

    return RoutedGenerator([first, *others])


def _start(config: ServingConfig, name: str, namespace: str, stack: AsyncExitStack) -> ActorGenerator:
    from serving import start_generator

    traced = otel_environment()
    generator = start_generator(
        _threaded(config),
        name=name,
        namespace=namespace,
        num_cpus=0,
        num_gpus=num_gpus(),
        resources=placement("graft_generator"),
        setup=partial(export_spans, traced, "generator") if traced else None,
    )
    stack.push_async_callback(generator.stop)
    return generator


def _threaded(config: ServingConfig) -> ServingConfig:
    """Return the settings with the cores of a single machine divided among its generators."""
    import ray

    if config.num_replicas == 1 or config.num_threads is not None or len(ray.nodes()) > 1:
        return config
    return replace(config, num_threads=max(usable_cores() // config.num_replicas, 1))


def placement(label: str) -> dict[str, float] | None:
    """Return the resource that puts an actor on the nodes meant for it, where the cluster names any."""
    import ray

    return {label: 0.01} if label in ray.cluster_resources() else None
