//! `/v1/packs`: what can be bought.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{self, Data},
};

use super::{
    App,
    extract::{AnyKey, Caller},
    problem::{Kind, Problem},
    query::Query,
    shape,
};

/// `GET /v1/packs`
pub async fn packs(app: Data<App>, request: HttpRequest, _: Caller<AnyKey>) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let data: Vec<shape::Pack<'_>> = app.cx.packs.iter().map(|pack| pack.terms().into()).collect();
    Ok(HttpResponse::Ok().json(shape::All { data }))
}

/// `GET /v1/packs/{pack_type}`
pub async fn pack(
    app: Data<App>,
    request: HttpRequest,
    _: Caller<AnyKey>,
    pack_type: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    match app.cx.packs.find(&pack_type) {
        Some(pack) => Ok(HttpResponse::Ok().json(shape::Pack::from(pack.terms()))),
        None => Err(Problem::new(Kind::NotFound, "There is no such pack.")),
    }
}
