from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of one, as a run that is alone has it."""
    from training.joint.parallel import torchrun_ranks

    with torchrun_ranks():
        yield
