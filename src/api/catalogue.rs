//! `/v1/packs`: what can be bought.

use actix_web::{
    HttpResponse,
    web::{self, Data},
};
use serde_json::json;

use super::{
    App,
    extract::{AnyKey, Caller},
    problem::{Kind, Problem},
};

/// `GET /v1/packs`
pub async fn packs(app: Data<App>, _: Caller<AnyKey>) -> HttpResponse {
    let terms: Vec<_> = app.cx.packs.iter().map(|pack| pack.terms().clone()).collect();
    HttpResponse::Ok().json(json!({ "data": terms }))
}

/// `GET /v1/packs/{pack_type}`
pub async fn pack(
    app: Data<App>,
    _: Caller<AnyKey>,
    pack_type: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    match app.cx.packs.find(&pack_type) {
        Some(pack) => Ok(HttpResponse::Ok().json(pack.terms())),
        None => Err(Problem::new(Kind::NotFound, "There is no such pack.")),
    }
}
