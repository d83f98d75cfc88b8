"""Preference weights from three choices, then an answer under them: `python examples/infer_weights.py`."""

import os

import httpx
from openai import OpenAI

url = os.environ.get("TRIMTAB_URL", "http://127.0.0.1:8000/v1")
question = [{"role": "user", "content": "How do I clean a copper pan?"}]
short, long = (
    "Rub it with lemon and salt.",
    "I am so glad that you ask! What a nice pan. First, rub it with half a lemon.",
)

response = httpx.post(
    f"{url}/alignment/infer",
    json={
        "comparisons": [
            {"messages": question, "chosen": short, "rejected": long},
            {"messages": question, "chosen": "Use vinegar.", "rejected": "It could be a good idea to try vinegar."},
            {"messages": question, "chosen": short, "rejected": "Pans are made of many materials, copper among them."},
        ],
        "candidates": [{"messages": question, "responses": [short, long, "Use vinegar."]}],
    },
    timeout=60,
)
inferred = response.raise_for_status().json()
for objective, weight in inferred["weights"].items():
    low, high = inferred["interval"][objective]
    print(f"{objective}: {weight:+.2f}, with 95 % probability between {low:+.2f} and {high:+.2f}")
print(f"the pair to ask about next: {inferred['ask']['responses']}")

answer = OpenAI(base_url=url, api_key="none").chat.completions.create(
    model="trimtab-demo", messages=question, extra_body={"alignment": {"weights": inferred["weights"]}}
)
print(answer.choices[0].message.content)
