//! `/v1/packs` and `/v1/budget`: what can be bought, and with what.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header,
    web::{self, Data},
};
use serde_json::json;

use super::{
    App,
    context::ids,
    extract::Caller,
    problem::{Kind, Problem},
};
use crate::flow;

/// `GET /v1/packs`
pub async fn packs(app: Data<App>, _: Caller) -> HttpResponse {
    let terms: Vec<_> = app.cx.packs.iter().map(|pack| pack.terms().clone()).collect();
    HttpResponse::Ok().json(json!({ "data": terms }))
}

/// `GET /v1/packs/{pack_type}`
pub async fn pack(app: Data<App>, _: Caller, pack_type: web::Path<String>) -> Result<HttpResponse, Problem> {
    match app.cx.packs.find(&pack_type) {
        Some(pack) => Ok(HttpResponse::Ok().json(pack.terms())),
        None => Err(Problem::new(Kind::NotFound, "There is no such pack.")),
    }
}

/// `GET /v1/budget`
pub async fn budget(app: Data<App>, request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    let trace_id = ids(&request).trace_id;
    let (cx, tenant_id) = (app.cx.clone(), caller.0.tenant_id);
    let balance = app.detached.run(async move { Ok(cx.store.balance(tenant_id).await?) }).await;
    let balance =
        balance.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(json!({
        "tenant_id": tenant_id,
        "deposited_usd": balance.deposited,
        "available_usd": balance.available,
        "held_usd": balance.held,
        "charged_usd": balance.charged,
        "plan": caller.0.plan,
    })))
}
