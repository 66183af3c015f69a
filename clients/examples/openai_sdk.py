"""The plain openai SDK against a bough server: python openai_sdk.py [BASE_URL]."""

from __future__ import annotations

import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

QUESTION = (
    "Tom has 48 pins. Tom sells 3 boxes of 9 pins. He buys 16 pins. "
    "How many pins does Tom have now?"
)


def main(base_url: str = "http://127.0.0.1:8000") -> None:
    client = OpenAI(base_url=f"{base_url}/v1", api_key="unused")
    model = client.models.list().data[0].id
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]

    # One object in the body chooses the strategy, its parameters and its budget.
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        seed=7,
        extra_body={
            "bough": {
                "strategy": "self_consistency",
                "params": {"width": 8},
                "budget": {"max_tokens": 4000},
                "return": {"candidates": 3},
            }
        },
    )
    report = (answer.model_extra or {})["bough"]
    print(answer.choices[0].message.content)
    print(report["resolved"], report["stop_reason"], report["spent"])
    for candidate in report["candidates"]:
        print("-", candidate["score"], candidate["content"].splitlines()[-1:])

    # The model's suffix works where a body cannot be changed.
    plain = client.chat.completions.create(model=f"{model}:single", messages=messages, seed=7)
    print(plain.choices[0].message.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
