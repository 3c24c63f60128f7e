//! Fetches a public web page and says what it holds: title, main text, headings, links.
//!
//! The URL comes from a stranger, and so does the page. [`guard`] keeps the former off private
//! networks, [`fetch`] bounds the transfer, and [`parse`] and [`extract`] take any page apart in
//! bounded time and memory.

mod extract;
mod fetch;
mod guard;
mod parse;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use serde_json::{Value, json};
use url::Url;

use self::{
    fetch::Fetcher,
    guard::{Guard, URL_CHARS_MAX},
};
pub use self::{
    fetch::{Resolve, SystemDns},
    guard::Access,
};
use super::{Failure, Job, Pack, Product, Quote, Refusal, Terms, fields::Findings};
use crate::domain::{
    money::UsdMicros,
    price::{PriceList, UnitPrice},
};

const BASE: UsdMicros = UsdMicros::constant(5_000);
const PAGE_UNIT: UnitPrice = UnitPrice { unit: "started_100_kib", price: UsdMicros::constant(1_000) };
const PAGE_UNIT_BYTES: usize = 100 * 1024;

const MAX_CHARS_DEFAULT: usize = 20_000;
const MAX_CHARS_MOST: usize = 200_000;

/// The pack `url`.
pub struct UrlPack {
    terms: Terms,
    guard: Guard,
    fetcher: Fetcher,
}

impl fmt::Debug for UrlPack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlPack").field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// What to fetch, and how much of it to tell.
struct Request {
    url: Url,
    max_chars: usize,
}

impl UrlPack {
    /// The pack, with what it may reach and how it resolves names: [`SystemDns`], outside tests.
    pub fn new(access: Access, resolver: Arc<dyn Resolve>) -> Self {
        let terms = Terms {
            pack_type: "url",
            version: "1.0.0",
            summary: "Fetches a public web page and extracts its title, main text, headings and links.",
            input_schema: input_schema(),
            output_schema: extract::schema(),
            prices: PriceList { base: BASE, units: const { &[PAGE_UNIT] } },
            limits: json!({
                "page_bytes_max": fetch::PAGE_BYTES_MAX,
                "fetch_sec_max": fetch::FETCH_SEC_MAX,
                "redirects_max": fetch::REDIRECTS_MAX,
                "url_chars_max": URL_CHARS_MAX,
                "text_chars_max": MAX_CHARS_MOST,
                "links_max": extract::LINKS_MAX,
                "headings_max": extract::HEADINGS_MAX,
            }),
        };
        let guard = Guard::new(access);
        Self { terms, fetcher: Fetcher::new(guard.clone(), resolver), guard }
    }

    /// Reads `inputs`, with no network: what a name resolves to is judged when it is fetched.
    fn read(&self, inputs: &Value) -> Result<Request, Refusal> {
        let mut findings = Findings::default();
        let Some(object) = findings.object(inputs, "", &["url", "max_chars"]) else {
            return findings.or_value(None);
        };
        let url = findings.required_text(object, "", "url", URL_CHARS_MAX).and_then(|text| {
            let url = Url::parse(text).map_err(|error| format!("is not an absolute URL ({error})"));
            let allowed = url.and_then(|url| match self.guard.check_url(&url) {
                Ok(()) => Ok(url),
                Err(denial) => Err(denial.detail()),
            });
            allowed.map_err(|detail| findings.add("/url", detail)).ok()
        });
        let max_chars = match object.get("max_chars") {
            None => MAX_CHARS_DEFAULT,
            Some(value) => {
                // 60.0 is whole too, to JSON and so to the schema.
                let written = value.to_string();
                let count = written.strip_suffix(".0").unwrap_or(&written).parse::<usize>().ok();
                count.filter(|count| (1..=MAX_CHARS_MOST).contains(count)).unwrap_or_else(|| {
                    findings.add("/max_chars", format!("must be a whole number from 1 to {MAX_CHARS_MOST}"));
                    MAX_CHARS_DEFAULT
                })
            }
        };
        findings.or_value(url.map(|url| Request { url, max_chars }))
    }

    async fn work(&self, job: Job) -> Result<Product, Failure> {
        // Accepted at submit; settings may have become stricter since.
        let request = self.read(&job.inputs).map_err(|_refused_since_submit| Failure {
            reason_code: "invalid_inputs",
            detail: "the URL may not be fetched by this deployment".to_owned(),
        })?;
        job.meter.charge(BASE, 1)?;
        let requested = request.url.to_string();
        let page = self.fetcher.fetch(request.url, &job.meter, job.deadline).await?;
        let log =
            format!("Fetched {} bytes in {} hops.", page.body.len(), page.redirects.len().saturating_add(1));
        // Cannot be cancelled once it runs, hence the bounds inside.
        let data =
            tokio::task::spawn_blocking(move || extract::extract(&page, &requested, request.max_chars))
                .await
                .map_err(|error| {
                    tracing::error!(%error, "Taking a page apart broke off.");
                    Failure {
                        reason_code: "page_not_readable",
                        detail: "the page could not be taken apart".to_owned(),
                    }
                })?;
        Ok(Product { data, logs: vec![log] })
    }
}

impl Pack for UrlPack {
    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn check(&self, inputs: &Value) -> Result<Quote, Refusal> {
        self.read(inputs)?;
        // The base and the first unit are constants of a few cents' parts.
        Ok(Quote { at_least: BASE.checked_add(PAGE_UNIT.price).unwrap_or(UsdMicros::MAX) })
    }

    fn run(&self, job: Job) -> Pin<Box<dyn Future<Output = Result<Product, Failure>> + Send + '_>> {
        Box::pin(self.work(job))
    }
}

fn input_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "required": ["url"],
        "properties": {
            "url": {
                "type": "string", "format": "uri", "minLength": 1, "maxLength": URL_CHARS_MAX,
                "description": "An http or https page on the public internet, on port 80 or 443.",
            },
            "max_chars": {
                "type": "integer", "minimum": 1, "maximum": MAX_CHARS_MOST, "default": MAX_CHARS_DEFAULT,
                "description": "Most characters of main text to return.",
            },
        },
    })
}
