"""What schemathesis must know of DPP that the document cannot say.

Half of the submits that should be valid buy something real, and half of what asks for a run asks for one of
those. The key that the tests themselves use is not revoked. And each problem must be one that its operation
names.
"""

import collections
import os
import random
import uuid

import schemathesis

TIMEBOX_SECS_MAX = 3600
OWN_KEY_ID = os.environ["CONTRACT_KEY_ID"]
RUN_IDS = collections.deque(maxlen=20)
DECISION = {
    "criteria": [{"name": "price", "weight": 2, "direction": "minimize"}, {"name": "speed", "weight": 1}],
    "options": [{"name": "A", "scores": {"price": 10, "speed": 3}}, {"name": "B", "scores": {"price": 14, "speed": 9}}],
}


def positive(case):
    return case.meta is not None and case.meta.generation.mode.is_positive


@schemathesis.hook
def before_call(context, case, kwargs):
    if (case.path_parameters or {}).get("key_id") == OWN_KEY_ID:
        case.path_parameters["key_id"] = str(uuid.uuid4())
    if not positive(case):
        return
    if case.query:
        # Only the API makes cursors.
        case.query.pop("cursor", None)
    if RUN_IDS and "run_id" in (case.path_parameters or {}) and random.random() < 0.5:
        case.path_parameters["run_id"] = random.choice(RUN_IDS)
    if case.operation.definition.raw["operationId"] == "submit_run" and isinstance(case.body, dict):
        # How long a run may take depends on the plan.
        if case.body.get("timebox_sec", 0) > TIMEBOX_SECS_MAX:
            case.body["timebox_sec"] = TIMEBOX_SECS_MAX
        if random.random() < 0.5:
            case.body.update(pack_type="decision", inputs=DECISION, max_cost_usd="0.05")
            if random.random() < 0.5:
                case.headers["Idempotency-Key"] = str(uuid.uuid4())


@schemathesis.hook
def after_call(context, case, response):
    if response.status_code == 202:
        RUN_IDS.append(response.json()["run_id"])


@schemathesis.check
def names_its_problems(ctx, response, case):
    if response.status_code < 400 or response.status_code == 405 or case.operation.path == "/readyz":
        return
    assert response.headers["content-type"][0] == "application/problem+json"
    slug = response.json()["type"].rsplit("/", 1)[1]
    document = case.operation.schema.raw_schema
    documented = case.operation.definition.raw["responses"][str(response.status_code)]
    if "$ref" in documented:
        documented = document["components"]["responses"][documented["$ref"].rsplit("/", 1)[1]]
    named = documented["content"]["application/problem+json"]["examples"]
    assert slug in named, f"{slug} is not among {list(named)}"
