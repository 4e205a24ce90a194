"""Use the platform from the official OpenAI client: a model id `graft/<graph>` answers with citations."""

import os
import sys

from openai import OpenAI

from graft.config import default_home
from graft.errors import NotRunning
from graft.running import find_running


def main(question: str) -> None:
    running = find_running(default_home())
    if running is None:
        raise NotRunning("start a platform first: graft up")
    client = OpenAI(base_url=f"{running.url}/v1", api_key=os.environ.get("GRAFT_TOKEN", "none"))
    answer = client.chat.completions.create(
        model="graft/rag", messages=[{"role": "user", "content": question}]
    )
    print(answer.choices[0].message.content)
    for annotation in answer.choices[0].message.annotations or []:
        print("  cites", annotation.url_citation.title)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is a KV cache block in vLLM?")
