"""Text as it is decided: python streaming.py [BASE_URL].

No text is ever taken back, so a strategy that may still change its mind sends none yet.
"""

from __future__ import annotations

import sys

from bough_client import Bough, BoughReply

QUESTION = (
    "Eva has 16 stamps. Eva finds 60 more stamps. She shares all stamps among 4 people and keeps "
    "one share. How many stamps does Eva have in the end?"
)


def main(base_url: str = "http://127.0.0.1:8000") -> None:
    client = Bough(f"{base_url}/v1")
    model = client.models.list().data[0].id
    report = None
    for chunk in client.stream(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        seed=7,
        bough={"strategy": "best_of_n", "params": {"width": 8}},
    ):
        print(chunk.text, end="", flush=True)
        if isinstance(chunk.bough, BoughReply):
            report = chunk.bough
    print()
    if report is not None:
        print(report.resolved, report.stop_reason, report.score, report.spent)


if __name__ == "__main__":
    main(*sys.argv[1:])
