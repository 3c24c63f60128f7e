//! Faults at the wire: an HTTP proxy between DPP and S3 or SQS that loses, refuses, delays and cuts what
//! passes through it, as told.
//!
//! It forwards a request's bytes as they came, so that the signature over host, path and headers still
//! holds, and asks the server to close after its answer, so that an answer's end needs no parsing. A caller
//! that hangs up takes its request's connection to the server with it, as it would without a proxy: a long
//! poll of a dead worker must receive nothing.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinSet,
};

use super::services::Place;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed without an answer; the server never hears of the request.
    Refuse,
    /// The server does what it is asked, and the connection is closed without its answer.
    LoseAnswer,
    /// The caller is answered with this status and AWS error code; the server never hears of it.
    Status(u16, &'static str),
    /// Nothing happens until the caller gives up or the fault is cleared, which closes the connection; the
    /// server never hears of it.
    Hang,
    /// The caller's connection is closed, and the request reaches the server when the test says so: see
    /// [`FaultProxy::release`].
    Late,
    /// The server gets the whole head and half of the body, and then the connection is cut.
    Truncate,
    /// Answered with 404, whatever lies there: a read of one object that has not caught up with a write. Let
    /// it not match `ListObjectsV2`: S3 has promised strong listings since 2020, and a 404 *and* an empty
    /// listing are what DPP takes for proof.
    Stale,
}

/// Which requests a fault meets: those of an operation (`PutObject`, `SendMessageBatch`) whose path holds
/// a text. Each left out matches every request.
#[derive(Clone, Debug, Default)]
pub struct Which {
    operation: Option<&'static str>,
    path: Option<String>,
}

impl Which {
    pub fn any() -> Self {
        Self::default()
    }

    pub fn operation(name: &'static str) -> Self {
        Self { operation: Some(name), path: None }
    }

    pub fn at(self, path: impl ToString) -> Self {
        Self { path: Some(path.to_string()), ..self }
    }

    fn matches(&self, seen: &Seen) -> bool {
        self.operation.is_none_or(|operation| operation == seen.operation)
            && self.path.as_ref().is_none_or(|path| seen.path.contains(path))
    }
}

/// A request that passed, or was to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `PutObject`, `HeadObject`, `SendMessageBatch` …
    pub operation: String,
    pub path: String,
    pub fault: Option<Fault>,
    /// What the server answered, if it was asked and did.
    pub status: Option<u16>,
}

struct Rule {
    which: Which,
    fault: Fault,
    /// `None`: until cleared.
    left: Option<usize>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// Requests that are held back.
    late: Vec<(usize, Vec<u8>)>,
}

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    /// Raised when faults are cleared: what hangs is let go.
    cleared: watch::Sender<u64>,
    /// Raised when all connections are to be closed.
    cut: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The proxy, on a port and a thread of its own. Both end when it is dropped.
pub struct FaultProxy {
    url: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// A proxy to the server at `upstream_url`, without faults.
    pub fn start(upstream_url: &str) -> Self {
        let upstream = upstream_url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
        let listener = StdListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            upstream,
            state: Mutex::default(),
            cleared: watch::Sender::new(0),
            cut: watch::Sender::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(TcpListener::from_std(listener).unwrap(), serving) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { url, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next `times` requests that match meet this fault; without a number, all until [`Self::clear`].
    /// Of several faults that match, the first that was set.
    pub fn set(&self, fault: Fault, which: Which, times: impl Into<Option<usize>>) {
        self.shared.state().rules.push(Rule { which, fault, left: times.into() });
    }

    /// No faults any more. What hangs is closed; what is late stays late.
    pub fn clear(&self) {
        self.shared.state().rules.clear();
        self.shared.cleared.send_modify(|count| *count += 1);
    }

    /// From now on the server cannot be reached, and what is under way gets no answer, until
    /// [`Self::clear`].
    pub fn cut(&self) {
        self.shared.state().rules.insert(0, Rule { which: Which::any(), fault: Fault::Refuse, left: None });
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// How many requests have met a fault.
    pub fn met(&self) -> usize {
        self.shared.state().seen.iter().filter(|seen| seen.fault.is_some()).count()
    }

    /// Lets every late request reach the server now, in the order in which they came; the server's answers,
    /// which nobody waits for any more.
    pub async fn release(&self) -> Vec<u16> {
        let late = std::mem::take(&mut self.shared.state().late);
        let mut answers = Vec::new();
        for (index, request) in late {
            let answer = ask(self.shared.upstream, &request, false).await.unwrap();
            self.shared.state().seen[index].status = Some(answer.status);
            answers.push(answer.status);
        }
        answers
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the proxy panicked");
    }
}

/// The proxies of one place.
pub struct Wire {
    pub s3: FaultProxy,
    pub sqs: FaultProxy,
}

impl Wire {
    /// Puts both between a place and its services; whoever uses the place from now on, apps and processes
    /// alike, goes through them.
    pub fn between(place: &mut Place) -> Self {
        let wire = Self {
            s3: FaultProxy::start(&place.environment["S3_ENDPOINT_URL"]),
            sqs: FaultProxy::start(&place.environment["SQS_ENDPOINT_URL"]),
        };
        for environment in [&mut place.environment, &mut place.process_environment] {
            environment.insert("S3_ENDPOINT_URL".to_owned(), wire.s3.url().to_owned());
            environment.insert("SQS_ENDPOINT_URL".to_owned(), wire.sqs.url().to_owned());
        }
        wire
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            Ok((stream, _)) = listener.accept() => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let mut cut = shared.cut.subscribe();
                    tokio::select! {
                        // A caller that hangs up or sends half a request is no failure of the test.
                        _ = serve(stream, &shared) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        }
    }
}

/// Serves one connection's requests, one after the other.
async fn serve(mut caller: TcpStream, shared: &Shared) -> io::Result<()> {
    caller.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(request) = Request::read(&mut caller, &mut buffer).await? {
        let (index, fault) = shared.meet(&request);
        let Some(answer) = pass(&mut caller, shared, index, fault, &request).await? else { break };
        caller.write_all(&answer.bytes).await?;
        if !answer.framed {
            break;
        }
    }
    Ok(())
}

/// What the caller is answered; `None` closes its connection.
async fn pass(
    caller: &mut TcpStream,
    shared: &Shared,
    index: usize,
    fault: Option<Fault>,
    request: &Request,
) -> io::Result<Option<Answer>> {
    let mut cleared = shared.cleared.subscribe();
    match fault {
        Some(Fault::Refuse) => Ok(None),
        Some(Fault::Status(status, code)) => Ok(Some(request.refusal(status, code))),
        Some(Fault::Stale) => Ok(Some(request.refusal(404, "NoSuchKey"))),
        Some(Fault::Hang) => {
            tokio::select! {
                _ = cleared.changed() => {}
                () = hung_up(caller) => {}
            }
            Ok(None)
        }
        Some(Fault::Late) => {
            shared.state().late.push((index, request.closing()));
            Ok(None)
        }
        Some(Fault::Truncate) => {
            let mut bytes = request.closing();
            bytes.truncate(bytes.len() - request.body.len().div_ceil(2));
            let answer = ask(shared.upstream, &bytes, true).await;
            shared.state().seen[index].status = answer.ok().map(|answer| answer.status);
            Ok(None)
        }
        None | Some(Fault::LoseAnswer) => {
            let bytes = request.closing();
            let answer = tokio::select! {
                answer = ask(shared.upstream, &bytes, false) => answer?,
                () = hung_up(caller) => return Ok(None),
            };
            shared.state().seen[index].status = Some(answer.status);
            Ok((fault.is_none()).then_some(answer))
        }
    }
}

/// Returns when the caller has closed. It sends nothing while it waits for an answer.
async fn hung_up(caller: &TcpStream) {
    let mut byte = [0];
    let _ = caller.peek(&mut byte).await;
}

/// One exchange on a connection of its own. One that is not cut stays open until it is answered: a server
/// may stop working for a caller that has closed.
async fn ask(upstream: SocketAddr, request: &[u8], cut: bool) -> io::Result<Answer> {
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    server.write_all(request).await?;
    if cut {
        server.shutdown().await?;
    }
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes).await?;
    Answer::read(bytes).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    head: String,
    body: Vec<u8>,
}

impl Request {
    /// Reads one; `None` when the caller is done.
    async fn read(caller: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Self>> {
        let end = loop {
            if let Some(end) = find(buffer, b"\r\n\r\n") {
                break end + 4;
            }
            if caller.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        let headers = headers(&head);
        assert!(!headers.contains_key("transfer-encoding"), "the proxy reads bodies with a length: {head}");
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        if headers.contains_key("expect") {
            caller.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        while buffer.len() < length {
            if caller.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        Ok(Some(Self { method, target, headers, head, body: buffer.drain(..length).collect() }))
    }

    /// The name of what it asks for, in AWS' words.
    fn operation(&self) -> String {
        if let Some(target) = self.headers.get("x-amz-target") {
            return target.rsplit('.').next().unwrap().to_owned();
        }
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let object = path.trim_matches('/').contains('/');
        let name = match (self.method.as_str(), object) {
            ("PUT", true) => "PutObject",
            ("GET", true) => "GetObject",
            ("HEAD", true) => "HeadObject",
            ("DELETE", true) => "DeleteObject",
            ("HEAD", false) => "HeadBucket",
            ("GET", false) if query.contains("list-type=2") => "ListObjectsV2",
            ("POST", false) if query.contains("delete") => "DeleteObjects",
            _ => "Other",
        };
        name.to_owned()
    }

    /// The same request, after whose answer the server closes. No signature covers `Connection`.
    fn closing(&self) -> Vec<u8> {
        let mut bytes = without_connection(&self.head, "Connection: close\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// A refusal in the form of the service that was asked.
    fn refusal(&self, status: u16, code: &str) -> Answer {
        let (kind, body) = if self.headers.contains_key("x-amz-target") {
            let body = format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"refused at the wire"}}"#);
            ("application/x-amz-json-1.0", body)
        } else {
            let xml = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
            let body =
                format!("{xml}<Error><Code>{code}</Code><Message>refused at the wire</Message></Error>");
            ("application/xml", body)
        };
        // An answer to HEAD has no body, whatever length it names.
        let shown = if self.method == "HEAD" { "" } else { &body };
        let head = format!("HTTP/1.1 {status} Refused\r\nContent-Type: {kind}\r\nContent-Length: ");
        let bytes = format!("{head}{}\r\n\r\n{shown}", body.len()).into_bytes();
        Answer { status, bytes, framed: true }
    }
}

impl Shared {
    /// Notes a request, and says which fault it meets.
    fn meet(&self, request: &Request) -> (usize, Option<Fault>) {
        let mut state = self.state();
        let mut seen =
            Seen { operation: request.operation(), path: request.target.clone(), fault: None, status: None };
        if let Some(at) = state.rules.iter().position(|rule| rule.which.matches(&seen)) {
            let rule = &mut state.rules[at];
            seen.fault = Some(rule.fault);
            if let Some(left) = &mut rule.left {
                *left -= 1;
                if *left == 0 {
                    state.rules.remove(at);
                }
            }
        }
        let fault = seen.fault;
        state.seen.push(seen);
        (state.seen.len() - 1, fault)
    }
}

struct Answer {
    status: u16,
    bytes: Vec<u8>,
    /// Whether its end can be told without closing the connection.
    framed: bool,
}

impl Answer {
    /// Reads what a server sent until it closed; `None` when that is no answer.
    fn read(mut bytes: Vec<u8>) -> Option<Self> {
        loop {
            let end = find(&bytes, b"\r\n\r\n")? + 4;
            let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
            let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
            if status < 200 {
                bytes.drain(..end);
                continue;
            }
            let headers = headers(&head);
            let framed = headers.contains_key("content-length") || headers.contains_key("transfer-encoding");
            let mut answer = without_connection(&head, "").into_bytes();
            answer.extend_from_slice(&bytes[end..]);
            return Some(Self { status, bytes: answer, framed });
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn headers(head: &str) -> BTreeMap<String, String> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect()
}

/// A head with this in the place of what it says of its connection.
fn without_connection(head: &str, instead: &str) -> String {
    let mut lines = head.trim_end().lines();
    let mut new = format!("{}\r\n{instead}", lines.next().unwrap_or_default());
    for line in lines.filter(|line| !line.to_lowercase().starts_with("connection:")) {
        write!(new, "{line}\r\n").unwrap();
    }
    new + "\r\n"
}
