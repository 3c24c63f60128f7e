//! `/v1/keys`: a tenant's keys, managed with one of them.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::StatusCode,
    web::{self, Data},
};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    App,
    context::ids,
    extract::{Body, Caller, KeysManage, json_object},
    page::List,
    problem::{Kind, Problem},
    query::Query,
    shape,
};
use crate::{
    domain::{
        id::KeyId,
        scope::{Scope, Scopes},
    },
    flow::{
        self,
        keys::{self, Made},
        list,
    },
    pack::FieldError,
    store::NewKey,
    wire::json::whole,
};

const LABEL_CHARS_MAX: usize = 200;
/// How long a rotated key works on unless the request says.
const GRACE_SECS_DEFAULT: u64 = 24 * 3_600;
const GRACE_SECS_MAX: u64 = 30 * 24 * 3_600;

/// `POST /v1/keys`
pub async fn create(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<KeysManage>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let trace_id = ids(&request).trace_id;
    let key = new_key(json_object(&request, &body.0)?, &caller)?;
    let cx = app.cx.clone();
    let made = app.detached.run(async move { keys::create(&cx, &caller.0, key).await }).await;
    let made =
        made.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    show_made(made)
}

/// `POST /v1/keys/{key_id}/rotate`
pub async fn rotate(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<KeysManage>,
    key_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let trace_id = ids(&request).trace_id;
    let mut members = if body.0.is_empty() { Map::new() } else { json_object(&request, &body.0)? };
    let mut errors = Vec::new();
    let grace_secs = match members.remove("grace_sec") {
        None => Some(GRACE_SECS_DEFAULT),
        Some(value) => {
            whole(&value).and_then(|secs| u64::try_from(secs).ok()).filter(|secs| *secs <= GRACE_SECS_MAX)
        }
    };
    if grace_secs.is_none() {
        wrong(
            &mut errors,
            "grace_sec",
            &format!("must be a whole number of seconds from 0 to {GRACE_SECS_MAX}"),
        );
    }
    refuse_others(&mut errors, &members, "grace_sec is");
    let Some(grace_secs) = grace_secs.filter(|_| errors.is_empty()) else {
        return Err(Problem::fields(Kind::InvalidRequest, errors));
    };
    let Ok(key_id) = key_id.parse() else { return Err(no_such_key()) };
    let (cx, grace) = (app.cx.clone(), Duration::from_secs(grace_secs));
    let made = app.detached.run(async move { keys::rotate(&cx, &caller.0, key_id, grace).await }).await;
    let made =
        made.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    show_made(made)
}

/// `DELETE /v1/keys/{key_id}`
pub async fn revoke(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<KeysManage>,
    key_id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let trace_id = ids(&request).trace_id;
    let Ok(key_id) = key_id.parse() else { return Err(no_such_key()) };
    let cx = app.cx.clone();
    let revoked = app.detached.run(async move { keys::revoke(&cx, &caller.0, key_id).await }).await;
    let revoked =
        revoked.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    if revoked { Ok(HttpResponse::NoContent().finish()) } else { Err(no_such_key()) }
}

/// `GET /v1/keys`
pub async fn list(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<KeysManage>,
) -> Result<HttpResponse, Problem> {
    let trace_id = ids(&request).trace_id;
    let tenant_id = caller.0.tenant_id;
    let query = Query::of(&request, &["limit", "cursor"]);
    let list = List::of(&app, &request, tenant_id, query, "keys", ()).await?;
    let (after, limit) = (list.after(key_place)?, list.limit);
    let cx = app.cx.clone();
    let page = app.detached.run(async move { list::keys(&cx, tenant_id, after, limit).await }).await;
    let page =
        page.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    let next = page.rows.last().filter(|_| page.more).map(|key| {
        [key.created_at.timestamp_micros().to_be_bytes().as_slice(), key.key_id.0.as_bytes()].concat()
    });
    Ok(list.answer(&app, &request, page.rows.iter().map(shape::Key::from).collect(), next.as_deref()))
}

fn key_place(bytes: &[u8]) -> Option<(DateTime<Utc>, KeyId)> {
    let (micros, key_id) = bytes.split_first_chunk::<8>()?;
    let created_at = DateTime::from_timestamp_micros(i64::from_be_bytes(*micros))?;
    Some((created_at, KeyId(Uuid::from_slice(key_id).ok()?)))
}

fn show_made(made: Made) -> Result<HttpResponse, Problem> {
    match made {
        Made::Key(record, secret) => {
            let body = shape::NewKey { record: (&*record).into(), key: secret.reveal().to_owned() };
            Ok(HttpResponse::build(StatusCode::CREATED).json(body))
        }
        Made::BeyondCaller => Err(Problem::new(
            Kind::InsufficientScope,
            "A key hands out no more rights than it has, and for no longer than it works itself.",
        )),
        Made::Ended => {
            let mut errors = Vec::new();
            wrong(&mut errors, "expires_at", "must be in the future");
            Err(Problem::fields(Kind::InvalidRequest, errors))
        }
        Made::Absent => Err(no_such_key()),
        Made::CallerGone => Err(Problem::unauthorized()),
    }
}

fn no_such_key() -> Problem {
    Problem::new(Kind::NotFound, "There is no such key that works and has no successor.")
}

/// Reads the body of a new key. What it does not say it has of the key that asks.
fn new_key(mut members: Map<String, Value>, caller: &Caller<KeysManage>) -> Result<NewKey, Problem> {
    let mut errors = Vec::new();
    let label = match members.remove("label") {
        None => String::new(),
        Some(Value::String(label)) if label.chars().count() <= LABEL_CHARS_MAX && !label.contains('\0') => {
            label
        }
        Some(_) => {
            wrong(&mut errors, "label", "must be a text of at most 200 characters");
            String::new()
        }
    };
    let scopes = match members.remove("scopes") {
        None => caller.0.scopes.clone(),
        Some(value) => scopes(&value).unwrap_or_else(|| {
            let names: Vec<_> = Scope::ALL.iter().map(|scope| scope.name()).collect();
            wrong(&mut errors, "scopes", &format!("must be a list of at least one of {}", names.join(", ")));
            Scopes::Only(Vec::new())
        }),
    };
    let expires_at = match members.remove("expires_at") {
        None | Some(Value::Null) => caller.0.key_expires_at,
        Some(value) => {
            let time = value.as_str().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
            if time.is_none() {
                wrong(
                    &mut errors,
                    "expires_at",
                    "must be a time as RFC 3339 writes it, such as 2028-02-29T12:00:00Z",
                );
            }
            time.map(|time| time.with_timezone(&Utc))
        }
    };
    refuse_others(&mut errors, &members, "label, scopes and expires_at are");
    if errors.is_empty() {
        Ok(NewKey { tenant_id: caller.0.tenant_id, label, scopes, expires_at })
    } else {
        Err(Problem::fields(Kind::InvalidRequest, errors))
    }
}

/// Reads a list of rights; each once, whatever the list says.
fn scopes(value: &Value) -> Option<Scopes> {
    let named: Option<Vec<_>> =
        value.as_array()?.iter().map(|name| name.as_str().and_then(Scope::named)).collect();
    let mut named = named.filter(|scopes| !scopes.is_empty())?;
    named.sort();
    named.dedup();
    Some(Scopes::Only(named))
}

fn refuse_others(errors: &mut Vec<FieldError>, members: &Map<String, Value>, known: &str) {
    for name in members.keys() {
        wrong(
            errors,
            &name.replace('~', "~0").replace('/', "~1"),
            &format!("is not a field of this request: {known}"),
        );
    }
}

fn wrong(errors: &mut Vec<FieldError>, name: &str, right: &str) {
    errors.push(FieldError { pointer: format!("/{name}"), detail: right.to_owned() });
}
