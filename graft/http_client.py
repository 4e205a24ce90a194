"""Calls to a running platform over HTTP, with its errors turned back into ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from graft.errors import NotRunning
from graft.wire import error_from_json


class HttpClient:
    """Calls the platform and turns its errors into ours."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        """Use an open client whose base URL is the platform's."""
        self.client = client

    async def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Return the answer to one request.

        Raises:
            NotRunning: Nothing answers.
            Exception: What the platform raised, as the class it was raised as.
        """
        try:
            response = await self.client.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise NotRunning(f"the platform at {self.client.base_url} does not answer: {error}") from error
        _check(response)
        return response

    async def events(self, path: str, body: Any) -> AsyncIterator[Any]:
        """Yield the JSON of every server-sent event; closing the iterator closes the connection."""
        async for line in self.lines("POST", path, json=body):
            if line.startswith("data: "):
                yield _checked(json.loads(line[6:]))

    async def objects(self, path: str, **kwargs: Any) -> AsyncIterator[Any]:
        """Yield the JSON of every line of an answer; closing the iterator closes the connection."""
        async for line in self.lines("GET", path, **kwargs):
            if line:
                yield _checked(json.loads(line))

    async def lines(self, method: str, path: str, **kwargs: Any) -> AsyncIterator[str]:
        """Yield the lines of an answer as they arrive."""
        try:
            async with self.client.stream(method, path, **kwargs) as response:
                if response.is_error:
                    await response.aread()
                    _check(response)
                async for line in response.aiter_lines():
                    yield line
        except httpx.TransportError as error:
            raise NotRunning(f"the platform at {self.client.base_url} stopped answering: {error}") from error


def _checked(data: Any) -> Any:
    """Return an item of a stream; raise the error it may be instead."""
    if isinstance(data, dict) and "error" in data and "type" not in data:
        raise error_from_json(data, 500)
    return data


def _check(response: httpx.Response) -> None:
    if response.is_error:
        try:
            body = response.json()
        except json.JSONDecodeError:
            body = None
        raise error_from_json(body, response.status_code)
