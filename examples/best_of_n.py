"""The best of 16 answers, and what the reward model thinks of each: `python examples/best_of_n.py`."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("TRIMTAB_URL", "http://127.0.0.1:8000/v1"), api_key="none")

answer = client.chat.completions.create(
    model="trimtab-demo",
    messages=[{"role": "user", "content": "Tom has 7 apples and buys 5 more. How many is that?"}],
    extra_body={
        "alignment": {
            "strategy": "best_of_n",
            "weights": {"helpfulness": 1.0},
            "params": {"n": 16},
            "return": ["candidates", "rewards"],
        }
    },
)
alignment = answer.model_extra["alignment"]
[chosen] = alignment["choices"]
for candidate in sorted(chosen["candidates"], key=lambda candidate: -candidate["value"]):
    print(f"{candidate['value']:+.2f}  {candidate['rewards']}  {candidate['text']}")
print(f"\nchosen: {answer.choices[0].message.content}")
print(f"drawn: {alignment['sampled_tokens']} tokens, read by the reward: {alignment['scored_tokens']}")
