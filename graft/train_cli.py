"""`graft train` and `graft jobs ...`: training jobs of this machine and of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli_platform import AsJson, Overrides, print_json, print_table

if TYPE_CHECKING:
    from training.jobs import Jobs, JobStatus

jobs_app = typer.Typer(help="List, watch, stop and resume training jobs.", no_args_is_help=True)
Address = Annotated[
    str | None,
    typer.Option(help="Job server of a Ray cluster, as http://HEAD:8265; without it, jobs of this machine."),
]
JobName = Annotated[str, typer.Argument(help="Name of the job, which is that of its output folder.")]


def train(
    config: Annotated[Path, typer.Argument(help="TOML file of one job.")],
    address: Address = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it ends or Ctrl-C.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only measure this machine and say what a joint job takes.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Start a training job in the background; it goes on when this command ends."""
    if estimate:
        from training.jobs.estimate_here import estimate_here

        typer.echo(estimate_here(config, overrides or ()))
        return
    jobs = _jobs(address)
    status = jobs.submit(config, overrides or ())
    typer.echo(f"job {status.name!r} is {status.state} in {status.out}")
    if watch:
        _watch(jobs, status, address)
    else:
        where = f" --address {address}" if address else ""
        typer.echo(f"follow it with: graft jobs logs {status.name} --follow{where}")


@jobs_app.command("list")
def list_(address: Address = None, as_json: AsJson = False) -> None:
    """List jobs, newest first."""
    _show(_jobs(address).list(), as_json)


@jobs_app.command()
def status(name: JobName, address: Address = None, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    found = _jobs(address).status(name)
    _show([found], as_json)
    if found.message and not as_json:
        typer.echo(found.message)


@jobs_app.command()
def logs(
    name: JobName,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends or Ctrl-C.")] = False,
) -> None:
    """Print what a job printed."""
    try:
        for piece in _jobs(address).logs(name, follow=follow):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        typer.echo("stopped watching; the job goes on", err=True)


@jobs_app.command()
def stop(name: JobName, address: Address = None) -> None:
    """Ask a job to save a checkpoint and end; `graft jobs resume` goes on from there."""
    found = _jobs(address).stop(name)
    typer.echo(f"job {name!r} is {found.state}; it saves at the end of its step, then stops")


@jobs_app.command()
def resume(name: JobName, address: Address = None) -> None:
    """Start a stopped, failed or dead job again from its newest checkpoint."""
    found = _jobs(address).resume(name)
    typer.echo(f"job {found.name!r} is {found.state} in {found.out}")


@jobs_app.command()
def report(folder: Annotated[Path, typer.Argument(help="Output folder of a job.")]) -> None:
    """Write report.html into a job's folder, whatever state it is in, and print its path."""
    from training.errors import JobError
    from training.jobs import write_report
    from training.jobs.job_folder import JobFolder

    if JobFolder(folder).record() is None:
        raise JobError(f"'{folder}' holds no job; give the output folder of one")
    typer.echo(str(write_report(folder)))


def _jobs(address: str | None) -> Jobs:
    from training.jobs import ClusterJobs, LocalJobs

    return ClusterJobs(address) if address else LocalJobs()


def _watch(jobs: Jobs, started: JobStatus, address: str | None) -> None:
    """Follow a job: by its figures where its folder is here, by its output where it is not."""
    try:
        if address is None:
            _follow_figures(jobs, started)
        else:
            for piece in jobs.logs(started.name, follow=True):
                typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        typer.echo("stopped watching; the job goes on", err=True)
        return
    ended = jobs.status(started.name)
    typer.echo(f"job {ended.name!r} {ended.state}: {ended.message}")
    if ended.state != "succeeded":
        raise typer.Exit(1)


def _follow_figures(jobs: Jobs, started: JobStatus) -> None:
    import time

    from training.jobs.job_status import ENDED
    from training.jobs.progress import Progress, following

    with Progress(started.name, started.num_steps) as progress, following(Path(started.out), progress):
        while jobs.status(started.name).state not in ENDED:
            time.sleep(0.5)


def _show(found: list[JobStatus], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [
        (one.name, one.kind, one.state, _steps(one), one.started_at, one.out)
        for one in found
    ]  # fmt: skip
    print_table(("job", "kind", "state", "step", "started", "folder"), rows)


def _steps(status: JobStatus) -> str:
    done = "?" if status.step is None else f"{status.step:,}"
    return f"{done}/{status.num_steps:,}" if status.num_steps else ""
