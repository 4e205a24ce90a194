"""Public names of the package are functions and classes, whatever was imported before."""

from __future__ import annotations

from types import ModuleType

import training.losses
import training.losses.named_loss
import training.losses.utility


def test_no_public_name_is_hidden_by_a_file_of_that_name():
    for name in training.losses.__all__:
        assert not isinstance(getattr(training.losses, name), ModuleType), name
