//! The OpenAPI 3.1 document: made of [`OPERATIONS`], of the shapes of [`super::shape`] and of the table of
//! problems, so that it says what the code does.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    operations::{Access, Answer, Form, OPERATIONS, Operation},
    problem::{Kind, Problem},
    shape,
};
use crate::{
    domain::{
        limit::{Counted, Of, Quota},
        money::{BadAmount, UsdMicros},
        run::RunState,
        scope::Scope,
    },
    flow::submit::SpendLimit,
    pack::{FieldError, Pack as _, decision::DecisionPack},
};

/// What the document says before its operations.
const INTRODUCTION: &str = include_str!("openapi.md");
/// Where examples are at home.
const EXAMPLE_URL: &str = "https://api.example.com";
const EXAMPLE_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The document.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(assemble);
    &DOCUMENT
}

/// The document as it is served and printed.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));
    &TEXT
}

/// Every shape, by the name that [`OPERATIONS`] calls it.
fn schemas() -> Schemas {
    let mut schemas = Schemas::default();
    schemas.add::<shape::Run>("Run");
    schemas.add::<shape::Page<shape::Run>>("RunPage");
    schemas.add::<shape::SubmitRun>("SubmitRun");
    schemas.add::<shape::Pack<'_>>("Pack");
    schemas.add::<shape::All<shape::Pack<'_>>>("PackList");
    schemas.add::<shape::Budget>("Budget");
    schemas.add::<shape::Usage>("Usage");
    schemas.add::<shape::Entry>("Entry");
    schemas.add::<shape::Page<shape::Entry>>("EntryPage");
    schemas.add::<shape::Key>("Key");
    schemas.add::<shape::Page<shape::Key>>("KeyPage");
    schemas.add::<shape::CreateKey>("CreateKey");
    schemas.add::<shape::RotateKey>("RotateKey");
    schemas.add::<shape::NewKey>("NewKey");
    schemas.add::<shape::Tenant>("Tenant");
    schemas.add::<shape::Page<shape::Tenant>>("TenantPage");
    schemas.add::<shape::TenantBudget>("TenantBudget");
    schemas.add::<shape::CreateTenant>("CreateTenant");
    schemas.add::<shape::AssignPlan>("AssignPlan");
    schemas.add::<shape::CreateDeposit>("CreateDeposit");
    schemas.add::<shape::Deposit>("Deposit");
    schemas.add::<shape::Plan>("Plan");
    schemas.add::<shape::All<shape::Plan>>("PlanList");
    schemas.add::<shape::ProblemBody<'_>>("Problem");
    schemas.add::<shape::ProblemPage>("ProblemPage");
    schemas.add::<shape::All<shape::ProblemPage>>("ProblemList");
    schemas.add::<shape::Health>("Health");
    let document = json!({
        "type": "object",
        "description": "An OpenAPI 3.1 document.",
        "examples": [{ "openapi": "3.1.0", "info": { "title": TITLE, "version": VERSION }, "paths": {} }],
    });
    schemas.0.insert("Document".to_owned(), document);
    // A real one says most.
    schemas.0["Pack"]["examples"] = json!([shape::Pack::from(DecisionPack::new().terms())]);
    // What GET shows may be sent back, and its name is in the path already.
    let mut put_plan = schemas.0["Plan"].clone();
    put_plan["description"] = json!("A plan's limits, all of them; null for none.");
    put_plan["properties"]["plan"]["description"] = json!("The name in the path; may be left out.");
    put_plan["additionalProperties"] = json!(false);
    if let Some(required) = put_plan["required"].as_array_mut() {
        required.retain(|field| field != "plan");
    }
    schemas.0.insert("PutPlan".to_owned(), put_plan);
    schemas
}

const TITLE: &str = "Decision Pack Platform";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Every parameter, by the name that [`OPERATIONS`] or a path calls it.
fn parameters() -> Value {
    let uuid = json!({ "type": "string", "format": "uuid" });
    let time = json!({ "type": "string", "format": "date-time" });
    let day = json!({ "type": "string", "format": "date" });
    let text = json!({ "type": "string" });
    let mut parameters = json!({
        "run_id": { "in": "path", "schema": uuid, "example": "019abcde-1234-7000-8000-0123456789ab",
            "description": "A run." },
        "key_id": { "in": "path", "schema": uuid, "example": "019abcde-1234-7000-8000-0123456789ac",
            "description": "A key's id, not the key." },
        "tenant_id": { "in": "path", "schema": uuid, "example": "019abcde-1234-7000-8000-0123456789aa",
            "description": "A customer." },
        "plan": { "in": "path", "schema": text, "example": "growth", "description": "A plan's name." },
        "pack_type": { "in": "path", "schema": text, "example": "decision", "description": "A pack's name." },
        "slug": { "in": "path", "schema": text, "example": "budget-exceeded",
            "description": "The last part of a problem's type." },
        "asset": { "in": "path", "schema": text, "example": "docs.js", "description": "A file's name." },
        "Idempotency-Key": { "in": "header", "required": true, "example": "order-1234",
            "schema": { "type": "string", "pattern": r#"^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$"# },
            "description": "A name of your own for this purchase, new for each: 1 to 255 visible ASCII characters. A quoted string is the same as what it quotes." },
        "If-None-Match": { "in": "header", "schema": text, "example": "\"0123456789abcdef\"",
            "description": "An ETag that you have: answered 304 while it is still right." },
        "status": { "in": "query", "schema": { "type": "string", "enum": RunState::STATUSES }, "example": "COMPLETED",
            "description": "Only runs in this state." },
        "pack_type_filter": { "in": "query", "name": "pack_type", "example": "decision",
            "schema": { "type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[!-~]+$" },
            "description": "Only runs of this pack." },
        "created_after": { "in": "query", "schema": time, "example": "2028-02-01T00:00:00Z",
            "description": "Only runs from then on." },
        "created_before": { "in": "query", "schema": time, "example": "2028-03-01T00:00:00Z",
            "description": "Only runs before then." },
        "limit": { "in": "query", "schema": { "type": "integer", "minimum": 1, "maximum": 100, "default": 20 }, "example": 20,
            "description": "How many a page holds." },
        "cursor": { "in": "query", "schema": text,
            "description": "The next_cursor of the page before, with the same other fields." },
        "start_date": { "in": "query", "schema": day, "example": "2028-02-01",
            "description": "The first UTC day; the first of end_date's month when left out." },
        "end_date": { "in": "query", "schema": day, "example": "2028-02-29",
            "description": "The last UTC day, at most 366 after; today when left out." },
        "Prefer": { "in": "header", "schema": text, "example": "wait=30",
            "description": "`wait=N`: answers as soon as the run has ended, or after N seconds, 1 to 60 (RFC 7240). What cannot be followed is passed over." },
        "X-Request-ID": { "in": "header", "schema": text, "example": "my-request-1",
            "description": "A name of your own for this request." },
        "traceparent": { "in": "header", "schema": text, "description": "The trace that this request belongs to.",
            "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" },
    });
    for (name, parameter) in parameters.as_object_mut().into_iter().flatten() {
        if parameter.get("name").is_none() {
            parameter["name"] = json!(name);
        }
        if parameter["in"] == "path" {
            parameter["required"] = json!(true);
        }
    }
    parameters
}

/// Every header of an answer.
fn headers() -> Value {
    let text = json!({ "type": "string" });
    let usd = json!({ "$ref": "#/components/schemas/Usd" });
    let seconds = json!({ "type": "integer", "minimum": 0 });
    json!({
        "X-Request-ID": { "required": true, "schema": text, "example": "my-request-1",
            "description": "The request's name: yours, or one that it was given." },
        "traceparent": { "required": true, "schema": text, "description": "The trace that it belongs to.",
            "example": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" },
        "Cache-Control": { "required": true, "schema": text, "example": "no-store", "description": "What is a tenant's, and what went wrong, is never stored." },
        "ETag": { "required": true, "schema": text, "example": "\"0123456789abcdef\"", "description": "Names what it holds." },
        "Location": { "required": true, "schema": { "type": "string", "format": "uri-reference" },
            "example": "/v1/runs/019abcde-1234-7000-8000-0123456789ab", "description": "Where to look next." },
        "Link": { "schema": text, "description": "The next page, if there is one, as `rel=\"next\"`.",
            "example": "<https://api.example.com/v1/runs?limit=20&cursor=c0ffee>; rel=\"next\"" },
        "Retry-After": { "required": true, "schema": seconds, "example": 1, "description": "When to ask again, in seconds." },
        "RateLimit-Policy": { "schema": text, "example": "\"runs\";q=100;w=60",
            "description": "The limits that the request counts against, the plan's and the key's: at most `q` requests in any `w` seconds. Absent without a limit." },
        "RateLimit": { "schema": text, "example": "\"runs\";r=99;t=60",
            "description": "What is left of them: `r` more requests now, and more than that in `t` seconds. Absent where it was not counted." },
        "Preference-Applied": { "schema": text, "example": "wait=30", "description": "There when the answer was waited for." },
        "Idempotent-Replayed": { "schema": { "type": "string", "enum": ["true"] }, "example": "true",
            "description": "There when the run was accepted before, under the same key." },
        "X-DPP-Cost-Reserved": { "required": true, "schema": usd, "example": "1.0000", "description": "What is held for the run." },
        "X-DPP-Cost-Minimum-Fee": { "required": true, "schema": usd, "example": "0.0200",
            "description": "What it pays at least once it was worked on and did not complete." },
        "X-DPP-Cost-Actual": { "schema": usd, "example": "0.0120", "description": "What it cost; there once it has ended." },
        "WWW-Authenticate": { "schema": text, "example": "Bearer", "description": "Which proof is asked for." },
    })
}

fn assemble() -> Value {
    let mut components = Components { schemas: schemas(), examples: Map::new(), responses: Map::new() };
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = components.operation(operation);
    }
    let tag = |(_, name, description): &(_, &str, &str)| json!({ "name": name, "description": description });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "summary": "Paid units of work for AI agents, each with a hard price cap",
            "description": INTRODUCTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "Where this document comes from." }],
        "tags": TAGS.iter().map(tag).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "securitySchemes": {
                "api_key": { "type": "http", "scheme": "bearer", "bearerFormat": "dpp_live_<32 base62>_<8 hex>",
                    "description": "An API key. An operation's security names the scope that it must have." },
                "admin_token": { "type": "http", "scheme": "bearer",
                    "description": "The operator's token, DPP_ADMIN_TOKEN. Where there is none, these paths are not there." },
            },
            "parameters": parameters(),
            "headers": headers(),
            "examples": components.examples,
            "responses": components.responses,
            "schemas": components.schemas.0,
        },
    })
}

/// What paths begin with, the tag of their operations, and what they are about. The first that fits counts.
const TAGS: &[(&[&str], &str, &str)] = &[
    (&["/v1/runs"], "Runs", "Buy, watch and stop units of work."),
    (&["/v1/packs"], "Packs", "What is sold."),
    (&["/v1/keys"], "Keys", "Who may do what."),
    (&["/v1/admin/"], "Admin", "What operators' programs do: customers, deposits, keys and plans."),
    (&["/v1/"], "Account", "What the tenant has, and what it has spent."),
    (&["/health", "/readyz"], "Health", "Whether the service lives, and can work."),
    (&["/"], "Pages", "What the service says about itself."),
];

/// Where an answer of a shape leads: by this member to these operations.
const LINKS: &[(&str, &str, &[&str])] = &[
    ("Run", "run_id", &["get_run", "get_run_result", "cancel_run"]),
    ("NewKey", "key_id", &["rotate_key", "revoke_key"]),
];

fn tag(path: &str) -> Option<&'static str> {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| path.starts_with(beginning));
    TAGS.iter().find(|(beginnings, _, _)| begins(beginnings)).map(|(_, tag, _)| *tag)
}

/// What operations refer to; examples and responses come with whoever needs them.
struct Components {
    schemas: Schemas,
    examples: Map<String, Value>,
    responses: Map<String, Value>,
}

impl Components {
    fn operation(&mut self, operation: &Operation) -> Value {
        let of_path = operation.path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
        let takes = of_path.chain(operation.takes.iter().copied()).chain(["X-Request-ID", "traceparent"]);
        let mut object = json!({
            "operationId": operation.id,
            "summary": operation.summary,
            "tags": [tag(operation.path)],
            "parameters": takes.map(|name| refer("parameters", name)).collect::<Vec<_>>(),
            "responses": self.responses(operation),
            "security": [],
        });
        match operation.access {
            Access::Everybody => {}
            Access::Key(scope) => {
                object["security"] = json!([{ "api_key": Vec::from_iter(scope.map(Scope::name)) }]);
                object["description"] = json!(scope.map_or_else(
                    || "Any key will do.".to_owned(),
                    |scope| format!("Needs a key with the scope `{}`.", scope.name()),
                ));
            }
            Access::Admin => {
                object["security"] = json!([{ "admin_token": [] }]);
                object["description"] = json!("Needs the operator's token.");
            }
        }
        if let Some((shape, required)) = operation.body {
            object["requestBody"] =
                json!({ "required": required, "content": { "application/json": self.content(shape) } });
        }
        object
    }

    fn responses(&mut self, operation: &Operation) -> Value {
        let mut responses = Map::new();
        for answer in operation.answers {
            responses.insert(answer.status.to_string(), self.answer(operation, answer));
        }
        let mut problems = BTreeMap::<u16, Vec<Kind>>::new();
        for kind in operation.all_problems() {
            problems.entry(kind.status().as_u16()).or_default().push(kind);
        }
        for (status, kinds) in problems {
            let mut response = self.problem(status, &kinds);
            if let [kind] = kinds.as_slice() {
                self.responses.insert(kind.slug().to_owned(), response);
                response = refer("responses", kind.slug());
            }
            responses.insert(status.to_string(), response);
        }
        Value::Object(responses)
    }

    fn answer(&mut self, operation: &Operation, answer: &Answer) -> Value {
        let text = |name: &&str| ((*name).to_owned(), json!({ "schema": { "type": "string" } }));
        let mut content = Map::new();
        match answer.form {
            Form::Nothing => {}
            Form::Json(shape) => drop(content.insert("application/json".to_owned(), self.content(shape))),
            Form::Texts(types) => content.extend(types.iter().map(text)),
            Form::Page(shape) => {
                content.insert("application/json".to_owned(), self.content(shape));
                content.extend(["text/html", "text/markdown"].iter().map(text));
            }
        }
        let of_tenant: &[&str] = match operation.access {
            Access::Key(_) => &["Cache-Control", "RateLimit-Policy", "RateLimit"],
            Access::Admin => &["Cache-Control"],
            Access::Everybody => &[],
        };
        let headers = refer_headers(answer.headers.iter().chain(of_tenant).copied());
        let mut object = json!({ "description": answer.description, "headers": headers });
        if !content.is_empty() {
            object["content"] = Value::Object(content);
        }
        if let Form::Json(shape) = answer.form
            && let Some((_, member, ids)) = LINKS.iter().find(|(from, _, _)| *from == shape)
        {
            let parameters = json!({ *member: format!("$response.body#/{member}") });
            let link = |id: &&str| ((*id).to_owned(), json!({ "operationId": id, "parameters": parameters }));
            object["links"] = ids.iter().map(link).collect();
        }
        object
    }

    /// The answer of this status, which one of these problems has.
    fn problem(&mut self, status: u16, kinds: &[Kind]) -> Value {
        let more: &[&str] = match status {
            401 | 403 => &["WWW-Authenticate"],
            429 | 503 => &["Retry-After"],
            _ => &[],
        };
        let of_all = ["Cache-Control", "RateLimit-Policy", "RateLimit"];
        let mut examples = Map::new();
        let mut description = String::new();
        for kind in kinds {
            let (slug, title, advice) = (kind.slug(), kind.title(), kind.advice());
            description += &format!("- `{slug}`: {title}. {advice}\n");
            examples.insert(slug.to_owned(), refer("examples", slug));
            let body = example_of(*kind).body(EXAMPLE_URL, "/v1/runs", EXAMPLE_TRACE);
            self.examples.insert(slug.to_owned(), json!({ "summary": title, "value": body }));
        }
        json!({
            "description": description,
            "headers": refer_headers(more.iter().copied().chain(of_all)),
            "content": { "application/problem+json": { "schema": refer("schemas", "Problem"), "examples": examples } },
        })
    }

    /// A body of this shape.
    fn content(&mut self, shape: &str) -> Value {
        let schema = refer("schemas", shape);
        self.examples.insert(shape.to_owned(), json!({ "value": self.schemas.example(&schema) }));
        json!({ "schema": schema, "examples": { shape: refer("examples", shape) } })
    }
}

fn example_of(kind: Kind) -> Problem {
    let field = |pointer: &str, detail: &str| {
        Problem::fields(kind, vec![FieldError { pointer: pointer.to_owned(), detail: detail.to_owned() }])
    };
    match kind {
        Kind::InvalidRequest => field("/limit", "must be a whole number from 1 to 100"),
        Kind::InvalidAmount => field("/max_cost_usd", &BadAmount::Malformed.to_string()),
        Kind::InvalidInputs => {
            field("/inputs/options/0/name", "is missing; it must be a string of 1 to 200 characters")
        }
        Kind::BudgetExceeded => {
            let more = shape::More {
                available_usd: Some(UsdMicros::constant(250_000).into()),
                requested_usd: Some(UsdMicros::constant(1_000_000).into()),
                ..shape::More::default()
            };
            Problem {
                more: Box::new(more),
                ..Problem::new(kind, "$1.0000 was asked for and $0.2500 is available.")
            }
        }
        Kind::RateLimited => Problem::rate_limited(&Quota {
            of: Of::Tenant,
            counted: Counted::Runs,
            max: 100,
            left: 0,
            more_in: Duration::from_secs(12),
        }),
        Kind::TooManyRuns => Problem::too_many_runs(10),
        Kind::SpendLimit => Problem::spend_limit(&SpendLimit {
            of: Of::Key,
            max: UsdMicros::constant(2_000_000),
            spent: UsdMicros::constant(1_500_000),
            requested: UsdMicros::constant(1_000_000),
            retry_after_secs: 60,
        }),
        _ => Problem::new(kind, kind.advice()),
    }
}

fn refer(section: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{section}/{name}") })
}

fn refer_headers<'a>(names: impl Iterator<Item = &'a str>) -> Value {
    names
        .chain(["X-Request-ID", "traceparent"])
        .map(|name| (name.to_owned(), refer("headers", name)))
        .collect()
}

/// Schemas by name.
#[derive(Default)]
struct Schemas(Map<String, Value>);

impl Schemas {
    /// Adds a shape under this name, and those that it is made of under theirs.
    fn add<T: ToSchema>(&mut self, name: &str) {
        let mut parts = vec![(name.to_owned(), T::schema())];
        T::schemas(&mut parts);
        for (name, schema) in parts {
            self.0.entry(name).or_insert_with(|| json!(schema));
        }
    }

    /// An example of a schema: its own, or one of its parts'.
    fn example(&self, schema: &Value) -> Value {
        if let Some(example) = schema["examples"].get(0) {
            return example.clone();
        }
        if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
            return self.0.get(name).map_or(Value::Null, |schema| self.example(schema));
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let members = parts.iter().map(|part| self.example(part));
            return members.filter_map(|members| members.as_object().cloned()).flatten().collect();
        }
        if let Some(properties) = schema["properties"].as_object() {
            return properties.iter().map(|(name, schema)| (name.clone(), self.example(schema))).collect();
        }
        match schema["type"].as_str() {
            Some("array") => json!([self.example(&schema["items"])]),
            _ => Value::Null,
        }
    }
}
