//! Pages about the service itself: health, what each problem means, and what an agent should know.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header,
    web::{self, Data},
};

use super::{
    App,
    problem::{Kind, Problem},
    shape,
};
use crate::{
    flow::{self, probe::Probe},
    telemetry::metrics,
};

/// What an agent should know, but for where the API is and what its problems are.
const LLMS: &str = include_str!("llms.txt");
/// How long a health check waits for what dependencies answer now.
const HEALTH_PATIENCE: Duration = Duration::from_millis(200);

/// When a service that is not ready may be asked again.
const READY_RETRY_SECS: &str = "1";

/// `GET /health`: 200 as long as the process answers, and soon: whoever is not answered within a second may
/// restart it, and that mends no dependency.
pub async fn health(app: Data<App>) -> HttpResponse {
    HttpResponse::Ok().json(report(app.probe(HEALTH_PATIENCE).await).1)
}

/// `GET /readyz`: 200 when everything that the role needs answers, else 503.
pub async fn readyz(app: Data<App>) -> HttpResponse {
    let (ready, report) = report(app.probe(flow::ANSWER_MAX).await);
    if ready {
        return HttpResponse::Ok().json(report);
    }
    HttpResponse::ServiceUnavailable().insert_header((header::RETRY_AFTER, READY_RETRY_SECS)).json(report)
}

fn report(probe: Probe) -> (bool, shape::Health) {
    let word =
        |answer: Result<(), &str>| answer.map_or_else(|why| format!("down: {why}"), |()| "up".to_owned());
    let ready = probe.all_up();
    let report = shape::Health {
        status: if ready { "ok" } else { "degraded" },
        version: env!("CARGO_PKG_VERSION"),
        services: shape::Services {
            api: "up".to_owned(),
            database: word(probe.database),
            redis: word(probe.redis),
            s3: word(probe.s3),
            sqs: word(probe.sqs),
        },
    };
    (ready, report)
}

/// `GET /metrics`
pub async fn metrics() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(metrics::render())
}

/// `GET /llms.txt`
pub async fn llms(app: Data<App>) -> HttpResponse {
    let problems: String = Kind::ALL
        .iter()
        .map(|kind| {
            format!("- `{}` ({}): {}. {}\n", kind.slug(), kind.status().as_u16(), kind.title(), kind.advice())
        })
        .collect();
    let text = LLMS.replace("{url}", &app.public_url).replace("{problems}\n", &problems);
    HttpResponse::Ok().content_type("text/markdown; charset=utf-8").body(text)
}

/// `GET /errors`
pub async fn errors(app: Data<App>, request: HttpRequest) -> HttpResponse {
    let url = &app.public_url;
    match form(&request) {
        Form::Html => {
            let link = |kind: &Kind| {
                format!(
                    "<li><a href=\"{url}/errors/{slug}\">{slug}</a>: {}</li>",
                    kind.title(),
                    slug = kind.slug()
                )
            };
            html("Problems", &format!("<ul>{}</ul>", Kind::ALL.iter().map(link).collect::<String>()))
        }
        Form::Markdown => {
            let link = |kind: &Kind| {
                format!("- [{slug}]({url}/errors/{slug}): {}\n", kind.title(), slug = kind.slug())
            };
            markdown("Problems", &Kind::ALL.iter().map(link).collect::<String>())
        }
        Form::Json => {
            let data: Vec<_> = Kind::ALL.iter().map(|kind| problem_page(*kind, url)).collect();
            page(HttpResponse::Ok()).json(shape::All { data })
        }
    }
}

/// `GET /errors/{slug}`
pub async fn error(
    app: Data<App>,
    request: HttpRequest,
    slug: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let kind = *Kind::ALL
        .iter()
        .find(|kind| kind.slug() == *slug)
        .ok_or_else(|| Problem::new(Kind::NotFound, "There is no such problem."))?;
    let (title, status, slug, advice) = (kind.title(), kind.status().as_u16(), kind.slug(), kind.advice());
    Ok(match form(&request) {
        Form::Html => {
            let text = format!(
                "<p>HTTP status {status}, problem <code>{slug}</code>.</p><h2>What to do</h2><p>{}</p>",
                escape(advice)
            );
            html(title, &text)
        }
        Form::Markdown => markdown(
            title,
            &format!("HTTP status {status}, problem `{slug}`.\n\n## What to do\n\n{advice}\n"),
        ),
        Form::Json => page(HttpResponse::Ok()).json(problem_page(kind, &app.public_url)),
    })
}

fn problem_page(kind: Kind, url: &str) -> shape::ProblemPage {
    shape::ProblemPage {
        type_uri: format!("{url}/errors/{}", kind.slug()),
        slug: kind.slug(),
        title: kind.title(),
        status: kind.status().as_u16(),
        what_to_do: kind.advice(),
    }
}

fn html(title: &str, text: &str) -> HttpResponse {
    let title = escape(title);
    page(HttpResponse::Ok()).content_type("text/html; charset=utf-8").body(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{title}</title></head><body><h1>{title}</h1>{text}</body></html>"
    ))
}

fn markdown(title: &str, text: &str) -> HttpResponse {
    page(HttpResponse::Ok()).content_type("text/markdown; charset=utf-8").body(format!("# {title}\n\n{text}"))
}

/// Which form it has depends on who asks.
fn page(mut response: actix_web::HttpResponseBuilder) -> actix_web::HttpResponseBuilder {
    response.append_header((header::VARY, "Accept"));
    response
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// In which form a page is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Html,
    Markdown,
    Json,
}

/// The form that the request likes best (RFC 9110 §12.5.1); of those that it likes as well the first of
/// these, and the first too where it likes none.
fn form(request: &HttpRequest) -> Form {
    const FORMS: [(&str, Form); 4] = [
        ("text/html", Form::Html),
        ("text/markdown", Form::Markdown),
        ("application/json", Form::Json),
        ("application/problem+json", Form::Json),
    ];
    let accept: Vec<_> =
        request.headers().get_all(header::ACCEPT).filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(",");
    let mut best = (0, Form::Html);
    for (name, form) in FORMS {
        let liking = liking(&accept, name);
        if liking > best.0 {
            best = (liking, form);
        }
    }
    best.1
}

/// How much a header Accept likes a media type, in thousandths: by the range that names it most closely.
fn liking(accept: &str, name: &str) -> u16 {
    let kind = name.split('/').next().unwrap_or_default();
    let mut closest = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let closeness = match range.split_once('/') {
            Some(_) if range == name => 3,
            Some((first, "*")) if first == kind => 2,
            Some(("*", "*")) => 1,
            _ => continue,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        if closeness > closest.0 {
            closest = (closeness, quality.map_or(1_000, thousandths));
        }
    }
    closest.1
}

/// Reads `1`, `0.8` … `0.001` as thousandths; what is no quality is none.
fn thousandths(quality: &str) -> u16 {
    let (whole, rest) = quality.split_once('.').unwrap_or((quality, ""));
    let sound = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    match whole {
        "1" => 1_000,
        "0" if sound => format!("{rest:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}
