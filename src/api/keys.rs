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
        money::UsdMicros,
        scope::{Scope, Scopes},
    },
    flow::{
        self,
        keys::{self, GRACE_DEFAULT, GRACE_MAX, Made},
        list,
    },
    pack::FieldError,
    store::{NewKey, NewLimits},
    wire::json::whole,
};

/// `POST /v1/keys`
pub async fn create(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<KeysManage>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let trace_id = ids(&request).trace_id;
    // What it does not say it has of the key that asks.
    let like = NewKey {
        tenant_id: caller.0.tenant_id,
        label: String::new(),
        scopes: caller.0.scopes.clone(),
        expires_at: caller.0.key_expires_at,
        limits: caller.0.key_limits.clone().map_or(NewLimits::Unlimited, NewLimits::Shared),
    };
    let key = new_key(json_object(&request, &body.0)?, like)?;
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
    let grace = grace(&request, &body)?;
    let Ok(key_id) = key_id.parse() else { return Err(no_such_key()) };
    let cx = app.cx.clone();
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

/// Reads the place of a key in a list.
pub(super) fn key_place(bytes: &[u8]) -> Option<(DateTime<Utc>, KeyId)> {
    let (micros, key_id) = bytes.split_first_chunk::<8>()?;
    let created_at = DateTime::from_timestamp_micros(i64::from_be_bytes(*micros))?;
    Some((created_at, KeyId(Uuid::from_slice(key_id).ok()?)))
}

/// Shows what became of a wish for a key.
pub(super) fn show_made(made: Made) -> Result<HttpResponse, Problem> {
    match made {
        Made::Key(record, secret) => {
            let body = shape::NewKey { record: (&*record).into(), key: secret.reveal().to_owned() };
            Ok(HttpResponse::build(StatusCode::CREATED).json(body))
        }
        Made::BeyondCaller => Err(Problem::new(
            Kind::InsufficientScope,
            "A key hands out no more rights than it has, and for no longer than it works itself; one that has \
             limits shares them with the keys that it makes, which have no others.",
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

/// What a key that is not there and one that is not the caller's both get.
pub(super) fn no_such_key() -> Problem {
    Problem::new(Kind::NotFound, "There is no such key that works and has no successor.")
}

/// Reads how long a key that is rotated works on.
pub(super) fn grace(request: &HttpRequest, body: &Body) -> Result<Duration, Problem> {
    let mut members = if body.0.is_empty() { Map::new() } else { json_object(request, &body.0)? };
    let mut errors = Vec::new();
    let grace = match members.remove("grace_sec") {
        None => GRACE_DEFAULT,
        Some(value) => {
            let secs = whole(&value).and_then(|secs| u64::try_from(secs).ok());
            let grace = secs.map(Duration::from_secs).filter(|grace| *grace <= GRACE_MAX);
            if grace.is_none() {
                wrong(&mut errors, "grace_sec", &keys::grace_rule());
            }
            grace.unwrap_or_default()
        }
    };
    refuse_others(&mut errors, &members, "grace_sec is");
    if errors.is_empty() { Ok(grace) } else { Err(Problem::fields(Kind::InvalidRequest, errors)) }
}

/// Reads the body of a new key. What it does not say it has of `like`.
pub(super) fn new_key(mut members: Map<String, Value>, like: NewKey) -> Result<NewKey, Problem> {
    let mut errors = Vec::new();
    let label = match members.remove("label") {
        None => like.label,
        Some(Value::String(label)) if keys::is_label(&label) => label,
        Some(_) => {
            wrong(&mut errors, "label", &keys::label_rule());
            String::new()
        }
    };
    let scopes = match members.remove("scopes") {
        None => like.scopes,
        Some(value) => scopes(&value).unwrap_or_else(|| {
            let names: Vec<_> = Scope::ALL.iter().map(|scope| scope.name()).collect();
            wrong(&mut errors, "scopes", &format!("must be a list of at least one of {}", names.join(", ")));
            Scopes::Only(Vec::new())
        }),
    };
    let expires_at = match members.remove("expires_at") {
        None | Some(Value::Null) => like.expires_at,
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
    let limits = new_limits(&mut members, &mut errors, like.limits);
    refuse_others(
        &mut errors,
        &members,
        "label, scopes, expires_at, max_spend_usd, runs_per_minute and polls_per_minute are",
    );
    if errors.is_empty() {
        Ok(NewKey { tenant_id: like.tenant_id, label, scopes, expires_at, limits })
    } else {
        Err(Problem::fields(Kind::InvalidRequest, errors))
    }
}

/// Reads the limits of a new key; without any it has those of `like`.
fn new_limits(members: &mut Map<String, Value>, errors: &mut Vec<FieldError>, like: NewLimits) -> NewLimits {
    let mut per_minute = |name: &str| match members.remove(name) {
        None | Some(Value::Null) => 0,
        Some(value) => {
            let count = whole(&value).and_then(|count| i32::try_from(count).ok()).filter(|count| *count > 0);
            if count.is_none() {
                wrong(errors, name, "must be a whole number of at least 1; leave it out for no limit");
            }
            count.unwrap_or(0)
        }
    };
    let (runs_per_minute, polls_per_minute) = (per_minute("runs_per_minute"), per_minute("polls_per_minute"));
    let spend_max = match members.remove("max_spend_usd") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let amount: Option<UsdMicros> = value.as_str().and_then(|text| text.parse().ok());
            let amount = amount.filter(|amount| !amount.is_zero());
            if amount.is_none() {
                let right = "must be US dollars above 0 with at most 4 decimals, such as \"2.00\"";
                wrong(errors, "max_spend_usd", right);
            }
            amount
        }
    };
    if runs_per_minute > 0 || polls_per_minute > 0 || spend_max.is_some() {
        NewLimits::Own { runs_per_minute, polls_per_minute, spend_max }
    } else {
        like
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

/// Names every member that is left as one that nobody knows.
pub(super) fn refuse_others(errors: &mut Vec<FieldError>, members: &Map<String, Value>, known: &str) {
    for name in members.keys() {
        wrong(
            errors,
            &name.replace('~', "~0").replace('/', "~1"),
            &format!("is not a field of this request: {known}"),
        );
    }
}

/// Says that a member is wrong.
pub(super) fn wrong(errors: &mut Vec<FieldError>, name: &str, right: &str) {
    errors.push(FieldError { pointer: format!("/{name}"), detail: right.to_owned() });
}
