"""Asks /compare as NeMo Gym's genrm_compare is asked, and reads the reply with its own source.

python run_nemo_gym.py: prints both, as a line of JSON. NeMo Gym wants a later Python than this
project, so that its source files run here without it: the two models of the request and the reply,
what takes the text out of a response, and what makes rewards of comparisons.
"""

import ast
import json
import os
import pathlib
import typing
from importlib.metadata import distribution
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError
from resources_servers.genrm_compare.utils import aggregate_scores, extract_output_text

TASK = "Reverse the list: 1.fox 2.ant 3.hen"
RESPONSES = ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant", "1.fox 2.hen 3.ant"]


def models() -> tuple[type[BaseModel], type[BaseModel]]:
    """The classes of genrm_compare/app.py that say what /compare takes and gives."""
    names = ["GenRMCompareRequest", "GenRMCompareResponse"]
    path = pathlib.Path(distribution("nemo_gym").locate_file("resources_servers/genrm_compare"))
    tree = ast.parse((path / "app.py").read_text())
    classes = [node for node in tree.body if getattr(node, "name", None) in names]
    space = vars(typing) | {"BaseModel": BaseModel}
    exec(compile(ast.Module(classes, []), "app.py", "exec"), space)
    return tuple(space[name] for name in names)


def response(text: str) -> dict:
    """A response as a policy's server gives it: reasoning, then the answer."""
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Let me see."}]}
    answer = {"type": "message", "role": "assistant",
              "content": [{"type": "output_text", "text": text}]}  # fmt: skip
    return {"id": "resp", "output": [thought, answer]}


def main() -> None:
    request, reply = models()
    found: dict[str, Any] = {"task": TASK, "responses": RESPONSES}
    history = [{"role": "user", "content": TASK}]
    for name, texts in (("judged", RESPONSES), ("failed", [text * 20 for text in RESPONSES])):
        objects = [response(text) for text in texts]
        assert [extract_output_text(one) for one in objects] == texts
        asked = request(conversation_history=history, response_objs=objects)
        url = os.environ["GRM_SERVER"] + "/compare"
        body = httpx.post(url, json=asked.model_dump(), timeout=600).raise_for_status().json()
        try:
            read = reply.model_validate(body)
        except ValidationError as error:
            found[name] = {"rewards": body["rewards"], "failures": body["failures"],
                           "refused": [one["loc"][0] for one in error.errors()]}  # fmt: skip
            continue
        pairs = read.comparison_results
        its_own, *_ = aggregate_scores(
            [(pair["score_1"], pair["score_2"], pair["ranking"]) for pair in pairs],
            [(pair["response_i"], pair["response_j"], pair["judge_idx"]) for pair in pairs],
            objects,
            aggregator_method="simple_tiebreaker",
            default_score=3.0,
            reasoning_bonus=0.0,
            answer_bonus=0.0,
            top_percentile=0.2,
            group_reasoning_length_penalty_coeff=0.0,
            group_answer_length_penalty_coeff=0.0,
        )
        found[name] = {"rewards": read.rewards, "pairs": len(pairs), "its_own": its_own}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
