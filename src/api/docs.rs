//! `/openapi.json`, and `/docs` and `/redoc`, which show it to people.
//!
//! All that the pages are made of is in the binary (`assets/`), and their policy keeps them from asking for
//! anything elsewhere.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    sync::LazyLock,
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderName},
    web,
};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use sha2::{Digest as _, Sha256};

use super::{
    openapi,
    problem::{Kind, Problem},
};
use crate::domain::api_key::hex;

/// What the pages' parts are, by name.
const ASSETS: [(&str, &str, Source); 6] = [
    ("docs.js", JAVASCRIPT, Source::Plain(include_str!("assets/docs.js"))),
    ("redoc.css", CSS, Source::Plain(include_str!("assets/redoc.css"))),
    ("redoc.js", JAVASCRIPT, Source::Plain(include_str!("assets/redoc.js"))),
    ("redoc.standalone.js", JAVASCRIPT, Source::Gzip(include_bytes!("assets/redoc.standalone.js.gz"))),
    ("swagger-ui-bundle.js", JAVASCRIPT, Source::Gzip(include_bytes!("assets/swagger-ui-bundle.js.gz"))),
    ("swagger-ui.css", CSS, Source::Gzip(include_bytes!("assets/swagger-ui.css.gz"))),
];
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// What a page may do: run our scripts, and ask us. Both libraries write styles into the page, and Redoc
/// searches in a worker that it makes of itself.
const POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     connect-src 'self'; img-src 'self' data:; script-src 'self'; style-src 'self' 'unsafe-inline'; worker-src blob:";

/// Where a document comes from.
enum Source {
    Plain(&'static str),
    Gzip(&'static [u8]),
}

/// A document that never changes while the process lives.
struct Document {
    media_type: &'static str,
    plain: web::Bytes,
    gzip: web::Bytes,
    etag: String,
}

/// `GET /openapi.json`
pub async fn openapi(request: HttpRequest) -> HttpResponse {
    static DOCUMENT: LazyLock<Document> =
        LazyLock::new(|| Document::of("application/json", &Source::Plain(openapi::text())));
    DOCUMENT.answer(&request)
}

/// `GET /docs`
pub async fn docs(request: HttpRequest) -> HttpResponse {
    static PAGE: LazyLock<Document> =
        LazyLock::new(|| Document::of(HTML, &Source::Plain(include_str!("assets/docs.html"))));
    page(PAGE.answer(&request))
}

/// `GET /redoc`
pub async fn redoc(request: HttpRequest) -> HttpResponse {
    static PAGE: LazyLock<Document> =
        LazyLock::new(|| Document::of(HTML, &Source::Plain(include_str!("assets/redoc.html"))));
    page(PAGE.answer(&request))
}

/// `GET /assets/{asset}`
pub async fn asset(request: HttpRequest, name: web::Path<String>) -> Result<HttpResponse, Problem> {
    static DOCUMENTS: LazyLock<BTreeMap<&str, Document>> = LazyLock::new(|| {
        ASSETS.iter().map(|(name, media_type, source)| (*name, Document::of(media_type, source))).collect()
    });
    match DOCUMENTS.get(name.as_str()) {
        Some(document) => Ok(document.answer(&request)),
        None => Err(Problem::new(Kind::NotFound, "There is no such asset.")),
    }
}

fn page(mut response: HttpResponse) -> HttpResponse {
    let policy = header::HeaderValue::from_static(POLICY);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

impl Document {
    fn of(media_type: &'static str, source: &Source) -> Self {
        let (plain, gzip) = match source {
            Source::Plain(text) => (web::Bytes::from_static(text.as_bytes()), compressed(text.as_bytes())),
            Source::Gzip(bytes) => (decompressed(bytes), web::Bytes::from_static(bytes)),
        };
        // Weak: one for both codings.
        let etag = format!("W/\"{}\"", &hex(&Sha256::digest(&plain))[..32]);
        Self { media_type, plain, gzip, etag }
    }

    /// May be kept, and is asked for again each time: a deployment may have changed it.
    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let (known, ours) = (all(request, header::IF_NONE_MATCH), &self.etag["W/".len()..]);
        let mut known = known.split(',').map(str::trim);
        let known = known.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == ours);
        let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .insert_header((header::ETAG, self.etag.as_str()))
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            .append_header((header::VARY, "Accept-Encoding"));
        if known {
            return response.finish();
        }
        response.content_type(self.media_type);
        if takes_gzip(&all(request, header::ACCEPT_ENCODING)) {
            response.insert_header((header::CONTENT_ENCODING, "gzip")).body(self.gzip.clone())
        } else {
            response.body(self.plain.clone())
        }
    }
}

/// A header's values as one list.
fn all(request: &HttpRequest, name: HeaderName) -> String {
    let values: Vec<_> = request.headers().get_all(name).filter_map(|value| value.to_str().ok()).collect();
    values.join(",")
}

/// Whether a header Accept-Encoding names gzip, and not to refuse it.
fn takes_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        named && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

fn compressed(plain: &[u8]) -> web::Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let gzip = encoder.write_all(plain).and_then(|()| encoder.finish());
    gzip.expect("memory takes what is written to it").into()
}

fn decompressed(gzip: &[u8]) -> web::Bytes {
    let mut plain = Vec::new();
    GzDecoder::new(gzip).read_to_end(&mut plain).expect("a test reads every asset");
    plain.into()
}
