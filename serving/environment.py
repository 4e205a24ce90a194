"""Environment variables an engine process needs before its first import of torch."""

from __future__ import annotations

import os

from serving.config import ServingConfig


def engine_environment(config: ServingConfig) -> dict[str, str]:
    """Return the variables to start an engine process with, e.g. as a Ray actor's `env_vars`.

    They must stand before torch is loaded. What the user has set for offline use and logging is kept.
    """
    return {
        # Idle OpenMP threads that spin starve every other process of the machine: with another busy
        # process on one of two cores, decoding falls from 71 to 5 tokens/s.
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": str(config.engine_threads),
        # The default binds every engine on a machine to the same cores and leaves one idle.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # On a CPU the engine runs inside the actor: one process, half the start time and memory.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
