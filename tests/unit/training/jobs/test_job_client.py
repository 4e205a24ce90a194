"""What the front of a cluster's jobs does about the server's moods, without a cluster."""

from __future__ import annotations

import pytest

from training.jobs import client

NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later.."


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times that were waited, on a clock that only waiting moves."""
    times: list[float] = []
    monkeypatch.setattr(client.time, "sleep", times.append)
    monkeypatch.setattr(client.time, "monotonic", lambda: sum(times))
    return times


def test_a_submission_waits_for_the_agent_of_a_new_cluster(slept: list[float]):
    answers = [RuntimeError(NO_AGENT), RuntimeError(NO_AGENT), "job-1"]

    def submit() -> str:
        answer = answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    assert client._once_there_is_an_agent(submit) == "job-1"
    assert len(slept) == 2


@pytest.mark.parametrize(
    ("message", "said", "waits"),
    [
        (NO_AGENT, r"no agent .* took the job for 60 s.*--dashboard-agent-listen-port=0", True),
        ("no such runtime environment", "^no such runtime environment$", False),
    ],
)
def test_a_refusal_stays_one(slept: list[float], message: str, said: str, waits: bool):
    def submit() -> str:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=said):
        client._once_there_is_an_agent(submit)
    assert (sum(slept) > client._AGENT_WAIT_S) == waits
    assert waits or not slept
