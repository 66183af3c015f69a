"""The branches of a run: python search_tree.py [BASE_URL]."""

from __future__ import annotations

import sys

from bough_client import Bough, RunTree

QUESTION = "Ned has 467 pins. Ned loses 15 pins. He sells 62 of them. How many pins has Ned now?"


def draw(tree: RunTree, parent: int | None = None, indent: str = "") -> None:
    """Print the branches under `parent`, each with its state and score."""
    for node in tree.nodes:
        if node.parent == parent:
            score = "" if node.score is None else f" {node.score:.3f}"
            print(f"{indent}[{node.state}{score}] {node.text.strip()}")
            draw(tree, node.id, indent + "  ")


def main(base_url: str = "http://127.0.0.1:8000") -> None:
    client = Bough(f"{base_url}/v1")
    for strategy in client.strategies():
        print(f"{strategy.name}: {strategy.description}")
    answer = client.complete(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": QUESTION}],
        seed=7,
        bough={"strategy": "best_of_n", "params": {"width": 4}},
    )
    draw(client.run_tree(answer.bough.run_id))
    for event in client.run_events(answer.bough.run_id):
        print(event.number, event.kind, event.data)


if __name__ == "__main__":
    main(*sys.argv[1:])
