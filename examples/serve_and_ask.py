"""python -m examples.serve_and_ask: a reward server, and a trainer that asks it for a group.

The server is `grm serve` on a free port of this machine (needs the extra `serve`); docs/serving.md
has its doors, docs/serving.md#adapters what TRL, verl, OpenRLHF and NeMo put in the place of `ask`.
"""

import json
import subprocess
import sys

import httpx

COMMAND = [sys.executable, "-m", "grm_jax", "serve", "--model=tiny", "--port=0"]


def main():
    server = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
    try:
        log = (json.loads(line) for line in server.stderr)
        said = {line["event"]: line for line in (next(log), next(log))}  # listening, ready
        with httpx.Client(base_url=said["listening"]["url"], timeout=600) as client:
            reply = client.post(
                "/v1/judge",
                json={
                    "conversation": "Reverse the list: 1.fox 2.ant 3.hen",
                    "responses": ["1.hen 2.ant 3.fox", "1.hen 2.fox 3.ant", "1.fox"],
                    "k": 8,
                    "seed": 0,
                    "deadline_s": 60,
                },
                headers={"Idempotency-Key": "step-1-prompt-7"},  # asked again, it is not drawn anew
            )
            verdict = reply.raise_for_status().json()
            print("scores:", verdict["scores"], "best:", verdict["best"])
            print("failures by name:", verdict["failures"], "weights:", verdict["weights"][:12])
            assert verdict["best"] == 0  # null, never a number, where nothing could be scored
            for line in client.get("/metrics").text.splitlines():
                if line.startswith("grm_samples_total"):
                    print(line)
    finally:
        server.terminate()  # it answers what is under way, then ends
        server.wait(60)


if __name__ == "__main__":
    main()
