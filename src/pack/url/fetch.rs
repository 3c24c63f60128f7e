//! Fetches one page: resolves, judges, connects, follows redirects, reads the body, within limits of
//! hops, time and bytes. What the bytes mean is [`super::extract`].

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Client, Response,
    dns::{Addrs, Name, Resolving},
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION},
    redirect::Policy,
};
use sha2::{Digest, Sha256};
use tokio::{sync::OnceCell, time};
use url::{Host, Url};

use super::{
    PAGE_UNIT, PAGE_UNIT_BYTES,
    guard::{Denial, Guard, URL_CHARS_MAX},
};
use crate::{domain::price::Meter, pack::Failure};

/// Longest chain of redirects.
pub(super) const REDIRECTS_MAX: usize = 5;
/// Longest body, after gzip is undone.
pub(super) const PAGE_BYTES_MAX: usize = 10 * 1024 * 1024;
/// Longest time from the first look-up to the last byte.
pub(super) const FETCH_SEC_MAX: u64 = 30;
const LOOKUP_SEC_MAX: u64 = 5;
const CONNECT_SEC_MAX: u64 = 10;
/// All addresses of a name are judged; this many are tried.
const ADDRESSES_TRIED_MAX: usize = 4;

/// Turns names into addresses.
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of `host`.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;
}

/// The resolver of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemDns;

impl Resolve for SystemDns {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
        Box::pin(async move {
            // The port is not part of the question; the call wants one.
            Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
        })
    }
}

/// A page as it came.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) final_url: Url,
    pub(super) status: u16,
    pub(super) kind: PageKind,
    /// The header as sent.
    pub(super) content_type: String,
    /// What the header says of the charset.
    pub(super) charset: Option<String>,
    pub(super) redirects: Vec<Redirect>,
    /// At most [`PAGE_BYTES_MAX`].
    pub(super) body: Vec<u8>,
    /// SHA-256 of `body`.
    pub(super) sha256: [u8; 32],
}

/// How a body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    Html,
    Text,
}

/// One redirect that was followed.
#[derive(Debug)]
pub(super) struct Redirect {
    pub(super) status: u16,
    pub(super) to: Url,
}

/// Fetches pages that a [`Guard`] lets through.
pub(super) struct Fetcher {
    guard: Guard,
    resolver: Arc<dyn Resolve>,
    /// Made at the first fetch, since reading the root certificates takes a while, and shared by all
    /// clients after it.
    tls: OnceCell<rustls::ClientConfig>,
}

impl Fetcher {
    pub(super) fn new(guard: Guard, resolver: Arc<dyn Resolve>) -> Self {
        Self { guard, resolver, tls: OnceCell::new() }
    }

    /// Fetches `url`, charging the meter for the body while it streams in. Ends by `deadline` and
    /// within [`FETCH_SEC_MAX`].
    pub(super) async fn fetch(
        &self,
        url: Url,
        meter: &Meter,
        deadline: time::Instant,
    ) -> Result<Page, Failure> {
        let limit = time::Instant::now() + Duration::from_secs(FETCH_SEC_MAX);
        // The future holds a whole connection set-up; boxed, it does not weigh on every caller.
        time::timeout_at(limit.min(deadline), Box::pin(self.follow(url, meter)))
            .await
            .unwrap_or_else(|_elapsed| Err(timed_out()))
    }

    async fn follow(&self, mut url: Url, meter: &Meter) -> Result<Page, Failure> {
        let mut redirects = Vec::new();
        loop {
            self.guard.check_url(&url).map_err(|denial| denied(denial, &redirects))?;
            let response = self.get(&url).await?;
            let status = response.status().as_u16();
            let Some(to) = redirect_target(&url, &response)? else {
                return read_page(url, redirects, response, meter).await;
            };
            if redirects.len() == REDIRECTS_MAX {
                return Err(Failure {
                    reason_code: "too_many_redirects",
                    detail: format!("the page redirects more than {REDIRECTS_MAX} times"),
                });
            }
            redirects.push(Redirect { status, to: to.clone() });
            url = to;
        }
    }

    /// Sends one request, to addresses that have passed the guard and to none else.
    async fn get(&self, url: &Url) -> Result<Response, Failure> {
        let addresses = self.addresses(url).await?;
        let client = self.client(addresses.clone()).await?;
        let response = client.get(url.clone()).send().await.map_err(|error| request_failed(&error))?;
        // Holds by construction. Should a release of the client ever break it, nothing is read.
        match response.remote_addr() {
            Some(peer) if addresses.contains(&peer) => Ok(response),
            _ => Err(fetch_failed("the connection could not be verified")),
        }
    }

    /// The addresses behind `url`, all of which the guard allows.
    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, Failure> {
        let port = url.port_or_known_default().ok_or_else(|| fetch_failed("the URL names no port"))?;
        let addresses = match url.host() {
            // These have passed the guard with the URL.
            Some(Host::Ipv4(address)) => vec![IpAddr::V4(address)],
            Some(Host::Ipv6(address)) => vec![IpAddr::V6(address)],
            Some(Host::Domain(name)) => self.look_up(name).await?,
            None => Vec::new(),
        };
        for address in &addresses {
            // Not a word on which address it was: that is for whoever runs the name server to know.
            self.guard.check_address(*address, port).map_err(|_private| Failure {
                reason_code: "address_not_allowed",
                detail:
                    "the host does not resolve to public addresses alone, or its port is not open to packs"
                        .to_owned(),
            })?;
        }
        if addresses.is_empty() {
            return Err(fetch_failed("the host name could not be resolved"));
        }
        let tried = addresses.into_iter().take(ADDRESSES_TRIED_MAX);
        Ok(tried.map(|address| SocketAddr::new(address, port)).collect())
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let limit = Duration::from_secs(LOOKUP_SEC_MAX);
        let addresses = time::timeout(limit, self.resolver.resolve(name)).await;
        match addresses {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => {
                tracing::debug!(%error, "A host name could not be resolved.");
                Err(fetch_failed("the host name could not be resolved"))
            }
            Err(_elapsed) => Err(fetch_failed("the host name could not be resolved in time")),
        }
    }

    /// A client that connects to `addresses` whatever a name means by now. One for each hop: the
    /// addresses are the client's whole idea of the network.
    async fn client(&self, addresses: Vec<SocketAddr>) -> Result<Client, Failure> {
        let tls = self.tls.get_or_try_init(tls_config).await?;
        let accept = HeaderValue::from_static("text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1");
        Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .dns_resolver(Pinned { addresses })
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(Duration::from_secs(CONNECT_SEC_MAX))
            .pool_max_idle_per_host(0)
            .user_agent(concat!("dpp/", env!("CARGO_PKG_VERSION"), " (url pack)"))
            .default_headers(HeaderMap::from_iter([(ACCEPT, accept)]))
            .build()
            .map_err(|error| {
                tracing::error!(%error, "The HTTP client could not be set up.");
                fetch_failed("the request could not be made")
            })
    }
}

/// Answers every question with the addresses that were judged.
struct Pinned {
    addresses: Vec<SocketAddr>,
}

impl reqwest::dns::Resolve for Pinned {
    fn resolve(&self, _name: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.addresses.clone().into_iter());
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

/// TLS with the root certificates of the operating system.
async fn tls_config() -> Result<rustls::ClientConfig, Failure> {
    let failed = || fetch_failed("the request could not be made");
    let loaded =
        tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await.map_err(|error| {
            tracing::error!(%error, "Reading the root certificates broke off.");
            failed()
        })?;
    let mut roots = rustls::RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        tracing::warn!(ignored, errors = ?loaded.errors, "No root certificates: https pages cannot be fetched.");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            tracing::error!(%error, "TLS could not be set up.");
            failed()
        })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Where a redirect leads, or `None` for any other answer.
fn redirect_target(url: &Url, response: &Response) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(LOCATION) else {
        return Ok(None);
    };
    // Header values may hold any byte; browsers read them as UTF-8.
    let location =
        str::from_utf8(location.as_bytes()).ok().filter(|location| location.len() <= URL_CHARS_MAX);
    match location.and_then(|location| url.join(location).ok()) {
        Some(target) => Ok(Some(target)),
        None => Err(redirect_not_allowed("the page redirects to something that is not a URL")),
    }
}

async fn read_page(
    final_url: Url,
    redirects: Vec<Redirect>,
    response: Response,
    meter: &Meter,
) -> Result<Page, Failure> {
    let status = response.status();
    if !status.is_success() {
        return Err(Failure {
            reason_code: "http_status",
            detail: format!("the page answered with status {}", status.as_u16()),
        });
    }
    // Gone once the client has undone it.
    let encoding = header(response.headers(), CONTENT_ENCODING);
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(Failure {
            reason_code: "unsupported_content_encoding",
            detail: "the page is encoded in a way that was not asked for; gzip is understood".to_owned(),
        });
    }
    let content_type = header(response.headers(), CONTENT_TYPE);
    let (kind, charset) = read_content_type(&content_type)?;
    let (body, sha256) = read_body(response, meter).await?;
    let status = status.as_u16();
    Ok(Page { final_url, status, kind, content_type, charset, redirects, body, sha256 })
}

/// What a `Content-Type` says: how to read the body, and its charset.
fn read_content_type(content_type: &str) -> Result<(PageKind, Option<String>), Failure> {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let kind = match essence.as_str() {
        "text/html" | "application/xhtml+xml" => PageKind::Html,
        "text/plain" => PageKind::Text,
        _ => {
            return Err(Failure {
                reason_code: "unsupported_content_type",
                detail: "the page is neither text/html, application/xhtml+xml nor text/plain".to_owned(),
            });
        }
    };
    let charset = parts
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .map(|(_, value)| value.trim().trim_matches('"').to_owned());
    Ok((kind, charset))
}

/// Reads the body, paying for each unit as it begins.
async fn read_body(mut response: Response, meter: &Meter) -> Result<(Vec<u8>, [u8; 32]), Failure> {
    // An empty page costs one unit too.
    meter.charge(PAGE_UNIT.price, 1)?;
    let mut units: usize = 1;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| request_failed(&error))? {
        let bytes = body.len().saturating_add(chunk.len());
        if PAGE_BYTES_MAX < bytes {
            return Err(Failure {
                reason_code: "page_too_large",
                detail: format!("the page is longer than {PAGE_BYTES_MAX} bytes"),
            });
        }
        while units.saturating_mul(PAGE_UNIT_BYTES) < bytes {
            meter.charge(PAGE_UNIT.price, 1)?;
            units = units.saturating_add(1);
        }
        body.extend_from_slice(&chunk);
    }
    let sha256 = Sha256::digest(&body).into();
    Ok((body, sha256))
}

/// The header as text, empty where it is missing or is none.
fn header(headers: &HeaderMap, name: HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn denied(denial: Denial, redirects: &[Redirect]) -> Failure {
    let subject = if redirects.is_empty() { "the URL" } else { "the target of a redirect" };
    let detail = format!("{subject} {}", denial.detail());
    match denial {
        Denial::Address(_) | Denial::Port(_) => Failure { reason_code: "address_not_allowed", detail },
        Denial::Scheme | Denial::UserInfo | Denial::Host => redirect_not_allowed(&detail),
    }
}

/// Says what went wrong in words of ours: the client's own may hold addresses and library names.
fn request_failed(error: &reqwest::Error) -> Failure {
    tracing::debug!(%error, "A page could not be fetched.");
    if error.is_timeout() {
        timed_out()
    } else if error.is_connect() {
        fetch_failed("the host could not be connected to, or its certificate is not valid")
    } else if error.is_body() || error.is_decode() {
        fetch_failed("the page broke off or is not encoded as it says")
    } else {
        fetch_failed("the host did not answer as a web server does")
    }
}

fn fetch_failed(detail: &str) -> Failure {
    Failure { reason_code: "fetch_failed", detail: detail.to_owned() }
}

fn redirect_not_allowed(detail: &str) -> Failure {
    Failure { reason_code: "redirect_not_allowed", detail: detail.to_owned() }
}

fn timed_out() -> Failure {
    Failure { reason_code: "timed_out", detail: "the page did not arrive in time".to_owned() }
}
