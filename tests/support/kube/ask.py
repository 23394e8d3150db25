"""The unmodified `openai` client, four requests at once, started where the cluster's DNS names mean something.

python ask.py URL MODEL <questions.json      the key in BATON_API_KEY; prints the answers as JSON
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

AT_ONCE = 4


def main() -> None:
    url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ["BATON_API_KEY"], max_retries=0, timeout=60)

    def answer(question: str) -> dict[str, object]:
        made = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=48, temperature=0
        )
        assert made.usage is not None
        return {"text": made.choices[0].message.content, "prompt_tokens": made.usage.prompt_tokens}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        print(json.dumps(list(pool.map(answer, json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
