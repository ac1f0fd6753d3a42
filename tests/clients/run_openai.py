"""Asks the server with OpenAI's client: a text as a whole and in pieces, a verdict, too much.

python run_openai.py: prints what the client gave, as a line of JSON.
"""

import json
import os

import openai

TASK = "Reverse the list: 1.fox 2.ant 3.hen"
RESPONSES = ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant"]


def main() -> None:
    client = openai.OpenAI(base_url=os.environ["GRM_SERVER"] + "/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data
    body = {"conversation": TASK, "responses": RESPONSES, "k": 1}
    verdict = client.post("/judge", body=body, cast_to=object)
    # the prompt of that judgment, as the tiny judge was trained on it
    texts = [RESPONSES[i] for i in verdict["judgments"][0]["order"]]
    prompt = f"[Judge from 1 to 10]\n[User] {TASK}\n"
    prompt += "".join(f"[Response {i}] {text}\n" for i, text in enumerate(texts, 1))
    asked = {"model": model.id, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    whole = client.chat.completions.create(**asked)
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices
    ]
    asked["messages"][0]["content"] = prompt * 40
    try:
        client.chat.completions.create(**asked)
        refused = None
    except openai.BadRequestError as error:
        refused = error.code
    found = {
        "task": TASK,
        "responses": RESPONSES,
        "model": model.id,
        "whole": whole.choices[0].message.content,
        "pieces": len(pieces),
        "streamed": "".join(pieces),
        "weights": whole.system_fingerprint,
        "verdict": verdict,
        "refused": refused,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
