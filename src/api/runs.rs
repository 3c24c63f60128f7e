//! `/v1/runs`: parse, call one flow, show what it said.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{StatusCode, header},
    web::{self, Data},
};
use chrono::DateTime;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    App,
    context::{Ids, ids},
    extract::{Body, Caller, RunsBuy, RunsRead, RunsWrite, idempotency_key, json_object, no_body},
    page::List,
    prefer,
    problem::{Kind, Problem},
    query::Query,
    quota, shape,
};
use crate::{
    domain::{
        id::{RunId, TenantId},
        idempotency::PayloadHash,
        money::{BadAmount, UsdMicros},
        run::{Run, RunState},
        scope::Scope,
    },
    flow::{
        self,
        cancel::Cancel,
        list,
        read::{self, Found, Link},
        submit::{self, Accepted, NotAccepted, Order, Refusal},
        wait,
    },
    pack::FieldError,
    store::{RunFilter, RunPlace},
    wire::json::whole,
};

/// When to look at a new run again, in seconds.
const POLL_AFTER_SECS: &str = "1";
const METADATA_ENTRIES_MAX: usize = 50;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
const PACK_TYPE_CHARS_MAX: usize = 64;

/// `POST /v1/runs`
pub async fn submit(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<RunsBuy>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let ids = ids(&request);
    let key = idempotency_key(&request)?;
    let members = json_object(&request, &body.0)?;
    let order = order(members, key, &ids)?;
    let (cx, buyer) = (app.cx.clone(), caller.0.clone());
    let accepted = app.detached.run(async move { submit::submit(&cx, &buyer, order).await }).await;
    let accepted = accepted.map_err(NotAccepted::from).flatten();
    let (run, replayed) = match accepted {
        Ok(Accepted::New(run, quotas)) => {
            quota::left(&request, quotas);
            (run, false)
        }
        Ok(Accepted::Replayed(run)) => {
            // It bought nothing: it is a look at a run.
            quota::count(&app, &request, &caller.0).await?;
            (run, true)
        }
        Err(error) => {
            if let NotAccepted::Refused(Refusal::RateLimited(reached)) = &error {
                quota::left(&request, vec![*reached]);
            }
            return Err(Problem::of_submit(error, ids.trace_id));
        }
    };
    let waited = match prefer::wait(&request) {
        // It is accepted, whatever becomes of the wait.
        Some(wait) => wait_for_end(&app, &ids, run.tenant_id, run.run_id, wait).await.ok(),
        None => None,
    };
    let (run, applied) = waited.unwrap_or((run, None));
    let mut response = if applied.is_some() && run.is_terminal() {
        HttpResponse::Ok()
    } else {
        let mut response = HttpResponse::Accepted();
        response.insert_header((header::RETRY_AFTER, POLL_AFTER_SECS));
        response
    };
    response.insert_header((header::LOCATION, format!("/v1/runs/{}", run.run_id)));
    if replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
    prefer::applied(&mut response, applied);
    // The run is accepted whether or not a link can be made now. A key that may only buy is shown none.
    let link = match caller.0.scopes.allow(Scope::RunsRead) {
        true => link(&app, &ids, &run).await.unwrap_or_default(),
        false => None,
    };
    Ok(show(response, &run, link.as_ref()))
}

/// `GET /v1/runs`
pub async fn list(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<RunsRead>,
) -> Result<HttpResponse, Problem> {
    const FIELDS: [&str; 6] = ["status", "pack_type", "created_after", "created_before", "limit", "cursor"];
    let ids = ids(&request);
    let tenant_id = caller.0.tenant_id;
    let mut query = Query::of(&request, &FIELDS);
    let filter = RunFilter {
        status: query.word("status", &RunState::STATUSES),
        pack_type: query.pack_type("pack_type"),
        created_after: query.time("created_after"),
        created_before: query.time("created_before"),
    };
    let list = List::of(&app, &request, tenant_id, query, "runs", &filter).await?;
    let (after, limit) = (list.after(run_place)?, list.limit);
    let cx = app.cx.clone();
    let page = app.detached.run(async move { list::runs(&cx, tenant_id, &filter, after, limit).await }).await;
    let page =
        page.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, ids.trace_id))?;
    let next = page.rows.last().filter(|_| page.more).map(|(run, _)| {
        let micros = run.created_at.timestamp_micros().to_be_bytes();
        [micros.as_slice(), run.run_id.0.as_bytes()].concat()
    });
    let data = page.rows.iter().map(|(run, link)| shape::Run::of(run, link.as_ref())).collect();
    Ok(list.answer(&app, &request, data, next.as_deref()))
}

fn run_place(bytes: &[u8]) -> Option<RunPlace> {
    let (micros, run_id) = bytes.split_first_chunk::<8>()?;
    Some(RunPlace {
        created_at: DateTime::from_timestamp_micros(i64::from_be_bytes(*micros))?,
        run_id: RunId(Uuid::from_slice(run_id).ok()?),
    })
}

/// `GET /v1/runs/{run_id}`
pub async fn get(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<RunsRead>,
    run_id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let ids = ids(&request);
    let tenant_id = caller.0.tenant_id;
    let (run, applied) = match (prefer::wait(&request), run_id.parse()) {
        (Some(wait), Ok(run_id)) => wait_for_end(&app, &ids, tenant_id, run_id, wait).await?,
        _ => (find(&app, &ids, tenant_id, &run_id).await?, None),
    };
    let link = link(&app, &ids, &run).await?;
    let mut response = HttpResponse::Ok();
    prefer::applied(&mut response, applied);
    Ok(show(response, &run, link.as_ref()))
}

/// `GET /v1/runs/{run_id}/result`
pub async fn result(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<RunsRead>,
    run_id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let ids = ids(&request);
    let run = find(&app, &ids, caller.0.tenant_id, &run_id).await?;
    match link(&app, &ids, &run).await? {
        Some(link) => Ok(HttpResponse::build(StatusCode::SEE_OTHER)
            .insert_header((header::LOCATION, link.url))
            .finish()),
        None => Err(Problem::new(
            Kind::RunNotCompleted,
            format!("The run is {}; only a COMPLETED run has a result.", run.state.status()),
        )),
    }
}

/// `POST /v1/runs/{run_id}/cancel`
pub async fn cancel(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<RunsWrite>,
    run_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    no_body(&body)?;
    let ids = ids(&request);
    let Ok(run_id) = run_id.parse() else { return Err(Problem::no_such_run()) };
    let (cx, tenant_id) = (app.cx.clone(), caller.0.tenant_id);
    let cancelled = app.detached.run(async move { flow::cancel::cancel(&cx, tenant_id, run_id).await }).await;
    let cancelled = cancelled
        .map_err(flow::Error::from)
        .flatten()
        .map_err(|error| Problem::of_flow(error, ids.trace_id))?;
    match cancelled {
        Cancel::Done(run) => Ok(show(HttpResponse::Ok(), &run, None)),
        Cancel::Requested(run) => {
            let mut response = HttpResponse::Accepted();
            response.insert_header((header::RETRY_AFTER, POLL_AFTER_SECS));
            Ok(show(response, &run, None))
        }
        Cancel::NotCancellable(run) => {
            let why = match run.state {
                RunState::AuditRequired { .. } => {
                    "The run waits for an operator, who will end it.".to_owned()
                }
                _ => format!(
                    "The run is {}; only one that has not ended can be cancelled.",
                    run.state.status()
                ),
            };
            Err(Problem::new(Kind::RunNotCancellable, why))
        }
        Cancel::Gone => Err(Problem::new(Kind::RunExpired, "The run is past its retention.")),
        Cancel::Absent => Err(Problem::no_such_run()),
    }
}

async fn find(app: &Data<App>, ids: &Ids, tenant_id: TenantId, run_id: &str) -> Result<Run, Problem> {
    let Ok(run_id) = run_id.parse() else { return Err(Problem::no_such_run()) };
    let cx = app.cx.clone();
    let found = app.detached.run(async move { read::find(&cx, tenant_id, run_id).await }).await;
    let found =
        found.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, ids.trace_id))?;
    here(found)
}

/// The run when it has ended or the time is up, and the preference if it was followed. It is this handler that
/// waits, not a flow: a client that hangs up ends it.
async fn wait_for_end(
    app: &App,
    ids: &Ids,
    tenant_id: TenantId,
    run_id: RunId,
    wait: Duration,
) -> Result<(Run, Option<Duration>), Problem> {
    let waited = wait::for_end(&app.cx, &app.detached, tenant_id, run_id, wait).await;
    let waited = waited.map_err(|error| Problem::of_flow(error, ids.trace_id))?;
    Ok((here(waited.found)?, waited.in_full.then_some(wait)))
}

fn here(found: Found) -> Result<Run, Problem> {
    match found {
        Found::Here(run) => Ok(*run),
        Found::Gone => Err(Problem::new(Kind::RunExpired, "The run is past its retention.")),
        Found::Absent => Err(Problem::no_such_run()),
    }
}

async fn link(app: &Data<App>, ids: &Ids, run: &Run) -> Result<Option<Link>, Problem> {
    if run.result().is_none() {
        return Ok(None);
    }
    let (cx, run) = (app.cx.clone(), run.clone());
    app.detached
        .run(async move { read::link(&cx, &run).await })
        .await
        .map_err(flow::Error::from)
        .flatten()
        .map_err(|error| Problem::of_flow(error, ids.trace_id))
}

fn show(mut response: HttpResponseBuilder, run: &Run, link: Option<&Link>) -> HttpResponse {
    response
        .insert_header(("X-DPP-Cost-Reserved", run.reserved.to_string()))
        .insert_header(("X-DPP-Cost-Minimum-Fee", run.minimum_fee.to_string()));
    if let Some(charge) = run.state.charge() {
        response.insert_header(("X-DPP-Cost-Actual", charge.to_string()));
    }
    response.json(shape::Run::of(run, link))
}

/// Reads a submit's body; every field that is wrong is named.
fn order(
    mut members: Map<String, Value>,
    idempotency_key: crate::domain::idempotency::IdempotencyKey,
    ids: &Ids,
) -> Result<Order, Problem> {
    let payload = PayloadHash::of(&Value::Object(members.clone()));
    let mut errors = Vec::new();
    let mut wrong = |pointer: &str, detail: &str| {
        errors.push(FieldError { pointer: pointer.to_owned(), detail: detail.to_owned() });
    };
    let pack_type = match members.remove("pack_type") {
        Some(Value::String(text)) if (1..=PACK_TYPE_CHARS_MAX).contains(&text.chars().count()) => text,
        Some(_) => {
            wrong("/pack_type", "must be the name of a pack, such as \"decision\"");
            String::new()
        }
        None => {
            wrong("/pack_type", "is required: the name of a pack, such as \"decision\"");
            String::new()
        }
    };
    let inputs = match members.remove("inputs") {
        Some(inputs @ Value::Object(_)) => inputs,
        Some(_) => {
            wrong("/inputs", "must be an object");
            Value::Null
        }
        None => {
            wrong("/inputs", "is required: an object");
            Value::Null
        }
    };
    let max_cost = members.remove("max_cost_usd");
    let timebox_secs = match members.remove("timebox_sec") {
        None => None,
        Some(value) => match whole(&value) {
            Some(secs) if secs > 0 => Some(secs),
            _ => {
                wrong(
                    "/timebox_sec",
                    "must be a whole number of seconds, at least 1; leave it out for the plan's default",
                );
                None
            }
        },
    };
    let metadata = match members.remove("metadata") {
        None => Value::Object(Map::new()),
        Some(value) => {
            if let Err(detail) = judge_metadata(&value) {
                wrong("/metadata", detail);
            }
            value
        }
    };
    if max_cost.is_none() {
        wrong("/max_cost_usd", "is required: US dollars as a string, such as \"5.00\"");
    }
    for name in members.keys() {
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        wrong(
            &pointer,
            "is not a field of this request: pack_type, inputs, max_cost_usd, timebox_sec and metadata are",
        );
    }
    if !errors.is_empty() {
        return Err(Problem::fields(Kind::InvalidRequest, errors));
    }
    let max_cost = amount(max_cost.as_ref())?;
    Ok(Order {
        pack_type,
        inputs,
        max_cost,
        timebox_secs,
        metadata,
        idempotency_key,
        payload,
        trace_id: ids.trace_id,
    })
}

fn amount(value: Option<&Value>) -> Result<UsdMicros, Problem> {
    let parsed = match value {
        Some(Value::String(text)) => text.parse(),
        _ => Err(BadAmount::Malformed),
    };
    parsed.map_err(|bad| {
        let error = FieldError { pointer: "/max_cost_usd".to_owned(), detail: bad.to_string() };
        Problem::fields(Kind::InvalidAmount, vec![error])
    })
}

fn judge_metadata(value: &Value) -> Result<(), &'static str> {
    const RIGHT: &str =
        "must be an object of at most 50 strings, with names of 1 to 64 characters and values of up to 512";
    let Value::Object(entries) = value else { return Err(RIGHT) };
    let sound = entries.len() <= METADATA_ENTRIES_MAX
        && entries.iter().all(|(name, value)| {
            (1..=METADATA_KEY_CHARS_MAX).contains(&name.chars().count())
                && value.as_str().is_some_and(|text| text.chars().count() <= METADATA_VALUE_CHARS_MAX)
        });
    if sound { Ok(()) } else { Err(RIGHT) }
}
