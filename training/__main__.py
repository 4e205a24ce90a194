"""`python -m training CONFIG.toml`: runs one job in this process, under torchrun, or as a driver on Ray."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from training.errors import ConfigError, TrainingError
from training.jobs.job_status import RESUME_ME


def main(arguments: list[str] | None = None) -> int:
    """Run a job and return the exit status: 0 complete, 75 resume me, 1 failed."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("config", type=Path, help="TOML file of one job")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="e.g. joint.seed=1"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what the output folder holds")
    parser.add_argument("--jobs", type=Path, help="where jobs are listed; default is the platform's home")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        from training.jobs.job_run import JobText, run_job
        from training.jobs.job_store import LocalJobs

        try:
            text = asked.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{asked.config} cannot be read: {error}") from error
        outcome = run_job(
            JobText(text, tuple(asked.overrides)),
            LocalJobs(asked.jobs),
            resume=asked.resume,
            where=str(asked.config),
        )
    except TrainingError as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    print(f"{outcome.state}: {outcome.message}", file=sys.stderr)
    return 0 if outcome.state == "succeeded" else RESUME_ME


if __name__ == "__main__":
    sys.exit(main())
