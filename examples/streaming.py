"""An answer as it is decoded, and what it took: `python examples/streaming.py`."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("TRIMTAB_URL", "http://127.0.0.1:8000/v1"), api_key="none")

chunks = client.chat.completions.create(
    model="trimtab-demo",
    messages=[{"role": "user", "content": "How do I clean a copper pan?"}],
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"alignment": {"weights": {"helpfulness": 1.0}}},
)
for chunk in chunks:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if "alignment" in (chunk.model_extra or {}):
        print(f"\n{chunk.model_extra['alignment']}")
