"""One question under different preference weights: `python examples/weights.py`, while `trimtab serve` runs."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("TRIMTAB_URL", "http://127.0.0.1:8000/v1"), api_key="none")

for weights in ({}, {"warmth": 1.0}, {"brevity": 1.0}, {"warmth": 0.5, "brevity": 0.5}):
    answer = client.chat.completions.create(
        model="trimtab-demo",
        messages=[{"role": "user", "content": "How do I clean a copper pan?"}],
        seed=1,
        extra_body={"alignment": {"weights": weights}} if weights else {},
    )
    print(f"{weights or 'the base alone'}: {answer.choices[0].message.content}\n")
