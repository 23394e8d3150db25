"""The unmodified `openai` client, started where the cluster's DNS names mean something.

python ask.py URL MODEL <questions.json      the key in BATON_API_KEY; prints the answers as JSON
"""

from __future__ import annotations

import json
import os
import sys

import openai


def main() -> None:
    url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ["BATON_API_KEY"], max_retries=0, timeout=60)
    answers = []
    for question in json.load(sys.stdin):
        made = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=48, temperature=0
        )
        usage = made.usage
        assert usage is not None
        answers.append({"text": made.choices[0].message.content, "prompt_tokens": usage.prompt_tokens})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
