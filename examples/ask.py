"""Ask a question and print the answer with its quotes."""

import sys

from graft import Graft


def main(question: str) -> None:
    with Graft.connect() as graft:
        result = graft.pipeline("rag").invoke(question)
        print(result.answer)
        for citation in result.citations:
            page = f", page {citation.page}" if citation.page else ""
            print(f"  [{citation.number}] {citation.document}{page}: {citation.quote}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What does PagedAttention do?")
