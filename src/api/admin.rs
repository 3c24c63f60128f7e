//! `/v1/admin`: what operators' programs, such as a billing system, do with tenants, their deposits, keys and
//! plans. Each handler takes an [`Admin`], parses, calls the flow that the command line calls too, and shows.

use std::{
    collections::BTreeMap,
    future::{Future, Ready, ready},
    sync::Arc,
};

use actix_web::{
    FromRequest, HttpRequest, HttpResponse, HttpResponseBuilder,
    dev::Payload,
    http::header,
    web::{self, Data},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    App,
    context::ids,
    extract::{Body, app, bearer, idempotency_key, json_object, no_body},
    keys::{grace, key_place, new_key, no_such_key, refuse_others, show_made, wrong},
    page::List,
    problem::{Kind, Problem},
    query::Query,
    shape,
};
use crate::{
    domain::{
        id::TenantId,
        idempotency::IdempotencyKey,
        money::{BadAmount, UsdMicros},
        scope::Scopes,
    },
    flow::{
        Ctx, deposit, keys,
        operator::{Operator, Refused},
        plans::{self, Limits},
        tenants::{self, Created, PLAN_DEFAULT},
    },
    pack::FieldError,
    store::{NewKey, NewLimits},
    wire::json::whole,
};

/// Whoever holds the admin token, in one request.
pub struct Admin(Operator);

impl FromRequest for Admin {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let opens = app(request).map(|app| {
            let token = app.admin.as_ref();
            token.zip(bearer(request)).is_some_and(|(token, offered)| token.opens(offered))
        });
        ready(opens.and_then(|opens| {
            // The text that a wrong API key gets.
            if opens { Ok(Self(Operator::Api(ids(request).trace_id))) } else { Err(Problem::unauthorized()) }
        }))
    }
}

/// `POST /v1/admin/tenants`
pub async fn create_tenant(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let key = key(&request, "the tenant, such as your customer's id")?;
    let mut fields = Fields::of(&request, &body)?;
    let name = fields.text("name", None);
    let plan = fields.text("plan", Some(PLAN_DEFAULT));
    fields.end("name and plan are")?;
    let created = changed(&app, &request, |cx| async move {
        tenants::create(&cx.store, admin.0, &name, &plan, Some(&key)).await
    });
    let (tenant, replayed) = match created.await? {
        Created::New(tenant) => (tenant, false),
        Created::Replayed(tenant) => (tenant, true),
    };
    let location = format!("/v1/admin/tenants/{}", tenant.tenant_id);
    Ok(made(replayed).insert_header((header::LOCATION, location)).json(shape::Tenant::from(tenant)))
}

/// `GET /v1/admin/tenants`
pub async fn tenants(app: Data<App>, request: HttpRequest, _: Admin) -> Result<HttpResponse, Problem> {
    let query = Query::of(&request, &["limit", "cursor"]);
    let list = List::of(&app, &request, OPERATORS, query, "tenants", ()).await?;
    let after = list.after(|place| Some(TenantId(Uuid::from_slice(place).ok()?)))?;
    let limit = list.limit;
    let page =
        asked(&app, &request, |cx| async move { Ok(tenants::list(&cx.store, after, limit).await?) }).await?;
    let next = page.rows.last().filter(|_| page.more).map(|tenant| *tenant.tenant_id.0.as_bytes());
    let data = page.rows.into_iter().map(shape::Tenant::from).collect();
    Ok(list.answer(&app, &request, data, next.as_ref().map(<[u8; 16]>::as_slice)))
}

/// `GET /v1/admin/tenants/{tenant_id}`
pub async fn tenant(
    app: Data<App>,
    request: HttpRequest,
    _: Admin,
    tenant_id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let tenant_id = tenant_of(&tenant_id)?;
    let tenant = asked(&app, &request, |cx| async move { tenants::find(&cx.store, tenant_id).await }).await?;
    Ok(HttpResponse::Ok().json(shape::TenantBudget::from(tenant)))
}

/// `POST /v1/admin/tenants/{tenant_id}/suspend`
pub async fn suspend(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    tenant_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    no_body(&body)?;
    set_suspended(&app, &request, admin, &tenant_id, true).await
}

/// `POST /v1/admin/tenants/{tenant_id}/resume`
pub async fn resume(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    tenant_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    no_body(&body)?;
    set_suspended(&app, &request, admin, &tenant_id, false).await
}

async fn set_suspended(
    app: &App,
    request: &HttpRequest,
    admin: Admin,
    tenant_id: &str,
    suspended: bool,
) -> Result<HttpResponse, Problem> {
    Query::none(request)?;
    let tenant_id = tenant_of(tenant_id)?;
    let tenant = changed(app, request, |cx| async move {
        tenants::set_suspended(&cx.store, admin.0, tenant_id, suspended).await
    });
    Ok(HttpResponse::Ok().json(shape::Tenant::from(tenant.await?)))
}

/// `PUT /v1/admin/tenants/{tenant_id}/plan`
pub async fn assign_plan(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    tenant_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let mut fields = Fields::of(&request, &body)?;
    let plan = fields.text("plan", None);
    fields.end("plan is")?;
    let tenant_id = tenant_of(&tenant_id)?;
    let tenant = changed(&app, &request, |cx| async move {
        tenants::assign_plan(&cx.store, admin.0, tenant_id, &plan).await
    });
    Ok(HttpResponse::Ok().json(shape::Tenant::from(tenant.await?)))
}

/// `POST /v1/admin/tenants/{tenant_id}/deposits`
pub async fn deposit(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    tenant_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let reference = key(&request, "the deposit, such as the payment's id: it is the deposit's reference")?;
    let mut fields = Fields::of(&request, &body)?;
    let amount = fields.take("amount_usd");
    fields.end("amount_usd is")?;
    let amount = match amount {
        Some(amount) => read_amount(&amount).map_err(|bad| bad.to_string()),
        None => Err("is required: US dollars as a string, such as \"5.00\"".to_owned()),
    };
    let amount = amount.map_err(amount_problem)?;
    let tenant_id = tenant_of(&tenant_id)?;
    let text = reference.as_str().to_owned();
    let deposited = changed(&app, &request, |cx| async move {
        deposit::by_operator(&cx, admin.0, tenant_id, amount, reference.as_str()).await
    });
    let deposited = deposited.await?;
    Ok(made(deposited.replayed).json(shape::Deposit {
        tenant_id: tenant_id.0,
        reference: text,
        amount_usd: deposited.amount.into(),
        created_at: deposited.at,
    }))
}

/// `POST /v1/admin/tenants/{tenant_id}/keys`
pub async fn create_key(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    tenant_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let members = if body.0.is_empty() { Map::new() } else { json_object(&request, &body.0)? };
    let tenant_id = tenant_of(&tenant_id)?;
    let like = NewKey {
        tenant_id,
        label: String::new(),
        scopes: Scopes::All,
        expires_at: None,
        limits: NewLimits::default(),
    };
    let key = new_key(members, like)?;
    let made =
        changed(&app, &request, |cx| async move { keys::create_by_operator(&cx.store, admin.0, key).await });
    show_made(made.await?)
}

/// `GET /v1/admin/tenants/{tenant_id}/keys`
pub async fn keys(
    app: Data<App>,
    request: HttpRequest,
    _: Admin,
    tenant_id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let tenant_id = tenant_of(&tenant_id)?;
    let query = Query::of(&request, &["limit", "cursor"]);
    let list = List::of(&app, &request, OPERATORS, query, "keys", tenant_id).await?;
    let (after, limit) = (list.after(key_place)?, list.limit);
    let page =
        asked(&app, &request, |cx| async move { tenants::keys(&cx, tenant_id, after, limit).await }).await?;
    let next = page.rows.last().filter(|_| page.more).map(|key| {
        [key.created_at.timestamp_micros().to_be_bytes().as_slice(), key.key_id.0.as_bytes()].concat()
    });
    Ok(list.answer(&app, &request, page.rows.iter().map(shape::Key::from).collect(), next.as_deref()))
}

/// `POST /v1/admin/keys/{key_id}/rotate`
pub async fn rotate_key(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    key_id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let grace = grace(&request, &body)?;
    let Ok(key_id) = key_id.parse() else { return Err(no_such_key()) };
    let made = changed(&app, &request, |cx| async move {
        keys::rotate_by_operator(&cx.store, admin.0, key_id, grace).await
    });
    show_made(made.await?)
}

/// `DELETE /v1/admin/keys/{key_id}`
pub async fn revoke_key(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    key_id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let Ok(key_id) = key_id.parse() else { return Err(no_such_key()) };
    let revoked = changed(&app, &request, |cx| async move {
        Ok(keys::revoke_by_operator(&cx.store, admin.0, key_id).await?)
    });
    if revoked.await?.is_some() { Ok(HttpResponse::NoContent().finish()) } else { Err(no_such_key()) }
}

/// `GET /v1/admin/plans`
pub async fn plans(app: Data<App>, request: HttpRequest, _: Admin) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let data = asked(&app, &request, |cx| async move { Ok(cx.store.plans().await?) }).await?;
    Ok(HttpResponse::Ok().json(shape::All { data: data.into_iter().map(shape::Plan::from).collect() }))
}

/// `GET /v1/admin/plans/{plan}`
pub async fn plan(
    app: Data<App>,
    request: HttpRequest,
    _: Admin,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let plan = asked(&app, &request, |cx| async move { plans::find(&cx.store, &name).await }).await?;
    let plan = plan.ok_or_else(|| Problem::new(Kind::NotFound, "There is no such plan."))?;
    Ok(HttpResponse::Ok().json(shape::Plan::from(plan)))
}

/// `PUT /v1/admin/plans/{plan}`: takes what GET shows.
pub async fn put_plan(
    app: Data<App>,
    request: HttpRequest,
    admin: Admin,
    name: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let mut fields = Fields::of(&request, &body)?;
    if fields.take("plan").is_some_and(|plan| plan != name.as_str()) {
        fields.wrong("plan", "must be the name in the path, or left out");
    }
    let limits = Limits {
        allowed_packs: fields.packs("allowed_packs"),
        run_cost_max: fields.amount("run_cost_max_usd"),
        pack_cost_max: fields.amounts("pack_cost_max_usd"),
        runs_per_minute: fields.count("runs_per_minute"),
        polls_per_minute: fields.count("polls_per_minute"),
        concurrent_runs_max: fields.count("concurrent_runs_max"),
        monthly_spend_max: fields.amount("monthly_spend_max_usd"),
        timebox_secs_max: fields.count("timebox_secs_max"),
        retention_days: fields.count("retention_days"),
    };
    fields.end("those that GET shows are")?;
    let set = changed(&app, &request, |cx| async move {
        plans::put(&cx.store, &cx.packs, admin.0, &name, limits).await
    });
    let set = set.await?;
    let mut response = if set.created { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(response.json(shape::Plan::from(set.plan)))
}

/// Whom lists and cursors of the admin API belong to.
const OPERATORS: &str = "operators";

/// The answer to what was made, now or by the same request before.
fn made(replayed: bool) -> HttpResponseBuilder {
    let mut response = HttpResponse::Created();
    if replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
    response
}

fn tenant_of(text: &str) -> Result<TenantId, Problem> {
    text.parse().ok().ok_or_else(no_such_tenant)
}

fn no_such_tenant() -> Problem {
    Problem::new(Kind::NotFound, "There is no such tenant.")
}

fn amount_problem(detail: String) -> Problem {
    Problem::fields(Kind::InvalidAmount, vec![FieldError { pointer: "/amount_usd".to_owned(), detail }])
}

/// The request's idempotency key, which names `what`.
fn key(request: &HttpRequest, what: &str) -> Result<IdempotencyKey, Problem> {
    idempotency_key(request).map_err(|problem| match problem.kind {
        Kind::KeyRequired => {
            Problem::new(problem.kind, format!("Send a header Idempotency-Key that names {what}."))
        }
        _ => problem,
    })
}

/// Runs a flow that looks.
async fn asked<T, F>(app: &App, request: &HttpRequest, flow: impl FnOnce(Arc<Ctx>) -> F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Refused>> + Send + 'static,
{
    let done = app.detached.run(flow(Arc::clone(&app.cx))).await;
    done.map_err(Refused::from).flatten().map_err(|refused| refusal(refused, request))
}

/// Runs a flow that changes something, and may have done so where it fails.
async fn changed<T, F>(
    app: &App,
    request: &HttpRequest,
    flow: impl FnOnce(Arc<Ctx>) -> F,
) -> Result<T, Problem>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Refused>> + Send + 'static,
{
    asked(app, request, flow).await.map_err(|problem| match problem.kind {
        Kind::Unavailable => Problem::new(
            problem.kind,
            "A dependency of the service is down or slow, and it is not known whether this was done. The same \
             request again does it once; but look at the list of keys before making or rotating one again.",
        ),
        _ => problem,
    })
}

fn refusal(refused: Refused, request: &HttpRequest) -> Problem {
    let said = refused.to_string();
    let sentence =
        || said.chars().take(1).flat_map(char::to_uppercase).chain(said.chars().skip(1)).chain(['.']);
    match refused {
        Refused::Failed(error) => Problem::of_flow(error, ids(request).trace_id),
        // Of a deposit the amount alone can be wrong here: its reference has been read.
        Refused::Fields(errors) if errors.iter().all(|error| error.pointer == "/amount_usd") => {
            Problem::fields(Kind::InvalidAmount, errors)
        }
        Refused::Fields(errors) => Problem::fields(Kind::InvalidRequest, errors),
        Refused::NoTenant => no_such_tenant(),
        Refused::NoPlan(_) => {
            let detail = format!("{said}; GET /v1/admin/plans has them all");
            Problem::fields(Kind::InvalidRequest, vec![FieldError { pointer: "/plan".to_owned(), detail }])
        }
        Refused::KeyReused | Refused::ReferenceReused { .. } => {
            Problem::new(Kind::KeyReused, sentence().collect::<String>())
        }
        Refused::AboveMaximum { .. } => amount_problem(said),
    }
}

/// The members of a request's body in the reading: taken one by one, and [`Fields::end`] says what was wrong.
/// A member that is required and not there is named; a limit that is `null` is one without limit.
struct Fields {
    members: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    fn of(request: &HttpRequest, body: &Body) -> Result<Self, Problem> {
        Ok(Self { members: json_object(request, &body.0)?, errors: Vec::new() })
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name)
    }

    fn wrong(&mut self, name: &str, right: &str) {
        wrong(&mut self.errors, name, right);
    }

    fn required<T: Default>(&mut self, name: &str, right: &str, read: impl Fn(&Value) -> Option<T>) -> T {
        let value = self.take(name);
        let read = value.as_ref().and_then(read);
        if read.is_none() {
            let is = if value.is_none() { "is required, and " } else { "" };
            self.wrong(name, &format!("{is}{right}"));
        }
        read.unwrap_or_default()
    }

    fn text(&mut self, name: &str, default: Option<&str>) -> String {
        match default {
            Some(default) if !self.members.contains_key(name) => default.to_owned(),
            _ => self.required(name, "must be a text", |value| value.as_str().map(str::to_owned)),
        }
    }

    fn count(&mut self, name: &str) -> i64 {
        self.required(name, "must be a whole number", |value| match value {
            Value::Null => Some(0),
            // Beyond what fits is out of every range.
            value => whole(value).or(value.as_u64().map(|_| i64::MAX)),
        })
    }

    fn amount(&mut self, name: &str) -> UsdMicros {
        self.required(
            name,
            &format!("{}; null is without limit", BadAmount::Malformed),
            |value| match value {
                Value::Null => Some(UsdMicros::ZERO),
                value => read_amount(value).ok(),
            },
        )
    }

    fn amounts(&mut self, name: &str) -> BTreeMap<String, UsdMicros> {
        let right = "must be an object of packs and US dollars, such as {\"decision\": \"5.00\"}";
        self.required(name, right, |value| {
            let read = |(pack, cap): (&String, &Value)| Some((pack.clone(), read_amount(cap).ok()?));
            value.as_object()?.iter().map(read).collect()
        })
    }

    /// `None` for all packs.
    fn packs(&mut self, name: &str) -> Option<Vec<String>> {
        self.required(name, "must be a list of packs, or null, which allows all", |value| match value {
            Value::Null => Some(None),
            value => {
                let packs = value.as_array()?.iter().map(|pack| pack.as_str().map(str::to_owned));
                Some(Some(packs.collect::<Option<_>>()?))
            }
        })
    }

    fn end(mut self, known: &str) -> Result<(), Problem> {
        refuse_others(&mut self.errors, &self.members, known);
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::fields(Kind::InvalidRequest, self.errors)) }
    }
}

/// Reads an amount as everywhere: a string.
fn read_amount(value: &Value) -> Result<UsdMicros, BadAmount> {
    value.as_str().ok_or(BadAmount::Malformed)?.parse()
}
