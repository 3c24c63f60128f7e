//! Pages about the service itself: health, and what each problem means.

use actix_web::{
    HttpResponse,
    web::{self, Data},
};
use serde_json::json;

use super::{
    App,
    problem::{Kind, Problem},
};
use crate::telemetry::metrics;

/// `GET /health`: 200 as long as the process answers.
pub async fn health(app: Data<App>) -> HttpResponse {
    HttpResponse::Ok().json(report(&app).await.1)
}

/// `GET /readyz`: 200 when everything that the role needs answers, else 503.
pub async fn readyz(app: Data<App>) -> HttpResponse {
    let (ready, report) = report(&app).await;
    if ready { HttpResponse::Ok().json(report) } else { HttpResponse::ServiceUnavailable().json(report) }
}

async fn report(app: &App) -> (bool, serde_json::Value) {
    let probe = app.probe().await;
    let word =
        |answer: Result<(), &str>| answer.map_or_else(|why| format!("down: {why}"), |()| "up".to_owned());
    let ready = probe.all_up();
    let report = json!({
        "status": if ready { "ok" } else { "degraded" },
        "version": env!("CARGO_PKG_VERSION"),
        "services": {
            "api": "up",
            "database": word(probe.database),
            "redis": word(probe.redis),
            "s3": word(probe.s3),
            "sqs": word(probe.sqs),
        },
    });
    (ready, report)
}

/// `GET /metrics`
pub async fn metrics() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(metrics::render())
}

/// `GET /errors/{slug}`
pub async fn error(slug: web::Path<String>) -> Result<HttpResponse, Problem> {
    let kind = Kind::ALL
        .iter()
        .find(|kind| kind.slug() == *slug)
        .ok_or_else(|| Problem::new(Kind::NotFound, "There is no such problem."))?;
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <body><h1>{title}</h1><p>HTTP status {status}, problem <code>{slug}</code>.</p><p>{advice}</p></body></html>",
        title = kind.title(),
        status = kind.status().as_u16(),
        slug = kind.slug(),
        advice = kind.advice(),
    );
    Ok(HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page))
}
