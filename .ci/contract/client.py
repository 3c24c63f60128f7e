"""A buyer's program on the client that openapi-python-client makes of the document: submits, waits, lists,
cancels, downloads, and is refused as it should be."""

import hashlib
import json
import os
import time
import uuid

import httpx
from dpp_client import AuthenticatedClient
from dpp_client.api.account import get_budget, get_usage, list_ledger
from dpp_client.api.health import get_readiness
from dpp_client.api.keys import create_key, list_keys, revoke_key
from dpp_client.api.packs import get_pack, list_packs
from dpp_client.api.runs import cancel_run, get_run, get_run_result, list_runs, submit_run
from dpp_client.models import CreateKey, CreateKeyScopesItem, Problem, RunMoneyState, RunStatus, SubmitRun

WAIT_SECS_MAX = 60
DECISION = {
    "criteria": [{"name": "price", "weight": 2, "direction": "minimize"}, {"name": "speed", "weight": 1}],
    "options": [{"name": "A", "scores": {"price": 10, "speed": 3}}, {"name": "B", "scores": {"price": 14, "speed": 9}}],
}

url = os.environ["CONTRACT_URL"]
client = AuthenticatedClient(base_url=url, token=os.environ["CONTRACT_KEY"], raise_on_unexpected_status=True)


def order(max_cost_usd="1.00", **more):
    body = {"pack_type": "decision", "inputs": DECISION, "max_cost_usd": max_cost_usd, "metadata": {"by": "client.py"}}
    return SubmitRun.from_dict({**body, **more})


def ended(run_id):
    deadline = time.monotonic() + WAIT_SECS_MAX
    while True:
        answer = get_run.sync_detailed(run_id, client=client, prefer="wait=5")
        assert answer.headers["Preference-Applied"] == "wait=5", answer
        if answer.parsed.status not in (RunStatus.QUEUED, RunStatus.PROCESSING):
            return answer.parsed
        assert time.monotonic() < deadline, f"{run_id} did not end in time"


# What is there to buy?
assert get_readiness.sync(client=client).status == "ok"
assert "decision" in [pack.pack_type for pack in list_packs.sync(client=client).data]
assert get_pack.sync("decision", client=client).input_schema["type"] == "object"
before = get_budget.sync(client=client)

# Submit, twice under one key; wait; download.
key = str(uuid.uuid4())
accepted = submit_run.sync_detailed(client=client, body=order(), idempotency_key=key)
assert accepted.status_code == 202 and accepted.parsed.reserved_cost_usd == "1.0000", accepted
run_id = accepted.parsed.run_id
again = submit_run.sync_detailed(client=client, body=order(), idempotency_key=key)
assert again.headers["Idempotent-Replayed"] == "true" and again.parsed.run_id == run_id, again
run = ended(run_id)
assert run.status == RunStatus.COMPLETED and run.money_state == RunMoneyState.SETTLED, run
assert run.metadata.to_dict() == {"by": "client.py"}, run
result = httpx.get(run.result_url)
assert hashlib.sha256(result.content).hexdigest() == run.result_sha256
envelope = json.loads(result.content)
assert envelope["cost"]["used_usd"] == run.actual_cost_usd and envelope["run_id"] == str(run_id), envelope
redirect = get_run_result.sync_detailed(run_id, client=client)
assert redirect.status_code == 303 and httpx.get(redirect.headers["Location"]).content == result.content

# Cancel: one that has ended cannot be; one that has not pays nothing, or has begun and stops.
refused = cancel_run.sync_detailed(run_id, client=client)
assert refused.status_code == 409 and refused.parsed.type_.endswith("/errors/run-not-cancellable"), refused
waiting = submit_run.sync(client=client, body=order(), idempotency_key=str(uuid.uuid4()))
cancelled = cancel_run.sync_detailed(waiting.run_id, client=client)
assert cancelled.status_code in (200, 202, 409), cancelled
assert ended(waiting.run_id).status in (RunStatus.CANCELLED, RunStatus.COMPLETED)

# List, page by page.
seen, cursor = [], None
while True:
    page = list_runs.sync(client=client, limit=1, **({"cursor": cursor} if cursor else {}))
    seen += [run.run_id for run in page.data]
    cursor = page.next_cursor
    if cursor is None:
        break
assert seen[:2] == [waiting.run_id, run_id], seen

# The books.
after = get_budget.sync(client=client)
assert after.deposited_usd == before.deposited_usd and after.held_usd == "0.0000", after
assert get_usage.sync(client=client).total.runs >= 2
assert list_ledger.sync(client=client, limit=5).data[0].kind in ("charge", "release")

# A key for somebody else, who may look and not buy; and none that is over.
made = create_key.sync(client=client, body=CreateKey(label="reader", scopes=[CreateKeyScopesItem.RUNSREAD]))
reader = AuthenticatedClient(base_url=url, token=made.key, raise_on_unexpected_status=True)
assert get_run.sync(run_id, client=reader).run_id == run_id
poor = submit_run.sync(client=reader, body=order(), idempotency_key=str(uuid.uuid4()))
assert isinstance(poor, Problem) and poor.type_.endswith("/errors/insufficient-scope"), poor
assert made.key_id in [key.key_id for key in list_keys.sync(client=client, limit=100).data]
assert revoke_key.sync_detailed(made.key_id, client=client).status_code == 204

# Submit and wait in one, with a key that is worth five cents and no more.
made = create_key.sync(client=client, body=CreateKey(label="sub-agent", max_spend_usd="0.05"))
agent = AuthenticatedClient(base_url=url, token=made.key, raise_on_unexpected_status=True)
waited = submit_run.sync_detailed(client=agent, body=order("0.05"), idempotency_key=str(uuid.uuid4()), prefer="wait=30")
assert waited.status_code == 200 and waited.parsed.status == RunStatus.COMPLETED, waited
limited = submit_run.sync(client=agent, body=order("0.05"), idempotency_key=str(uuid.uuid4()))
assert limited.type_.endswith("/errors/spend-limit-exceeded") and limited.limit_of == "key", limited

# Refusals say what is wrong.
broke = submit_run.sync(client=client, body=order(max_cost_usd="9999"), idempotency_key=str(uuid.uuid4()))
assert broke.type_.endswith("/errors/budget-exceeded") and broke.requested_usd == "9999.0000", broke
wrong = submit_run.sync(client=client, body=order(timebox_sec=0), idempotency_key=str(uuid.uuid4()))
assert wrong.errors[0].pointer == "/timebox_sec", wrong
assert get_run.sync_detailed(uuid.uuid4(), client=client).status_code == 404

print("the generated client bought, waited, listed, cancelled and downloaded")
