//! Web sites on loopback, and name servers that say what a test wants.

use std::{
    collections::VecDeque,
    future::Future,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
};

use dpp::pack::url::Resolve;
use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What a site sends for one path.
pub(super) struct Reply {
    bytes: Vec<u8>,
    /// Whether the connection stays open behind the bytes, as if there were more to come.
    stalls: bool,
}

impl Reply {
    /// An answer of `status` with `headers`, one to a line, and a body that ends with the connection.
    pub(super) fn new(status: u16, headers: &[&str], body: impl AsRef<[u8]>) -> Self {
        let mut bytes = format!("HTTP/1.1 {status} Any\r\nconnection: close\r\n").into_bytes();
        for header in headers {
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body.as_ref());
        Self { bytes, stalls: false }
    }

    pub(super) fn html(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, &["content-type: text/html; charset=utf-8"], body)
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::new(302, &[&format!("location: {to}")], "")
    }

    pub(super) fn raw(bytes: impl AsRef<[u8]>) -> Self {
        Self { bytes: bytes.as_ref().to_vec(), stalls: false }
    }

    pub(super) fn and_stall(self) -> Self {
        Self { stalls: true, ..self }
    }
}

/// `size` zero bytes, compressed.
pub(super) fn gzip_of_zeros(size: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let block = vec![0; 64 * 1024];
    let mut left = size;
    while 0 < left {
        let count = left.min(block.len());
        encoder.write_all(&block[..count]).unwrap();
        left -= count;
    }
    encoder.finish().unwrap()
}

/// A web server on a free loopback port, until it is dropped.
pub(super) struct Site {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Site {
    /// Serves what `answer` says for each path.
    pub(super) async fn start(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&requests));
        let server = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                tokio::spawn(async move {
                    // A client that hangs up early is part of the game.
                    let _ = serve(connection, &*answer, &seen).await;
                });
            }
        });
        Self { address, requests, server }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The heads of all requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    mut connection: TcpStream,
    answer: &(impl Fn(&str) -> Reply + Send + Sync),
    seen: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut head = String::new();
    let mut lines = BufReader::new(&mut connection);
    while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).await? != 0 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(head);
    let reply = answer(&path);
    connection.write_all(&reply.bytes).await?;
    if reply.stalls {
        std::future::pending::<()>().await;
    }
    connection.shutdown().await
}

/// A name server that gives the same answers in turn to whatever it is asked, the last one for ever.
pub(super) struct Names {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Names {
    pub(super) fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        Arc::new(Self { answers: Mutex::new(answers.iter().map(parse).collect()), asked: Mutex::default() })
    }

    /// The names asked for so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Resolve for Names {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
        self.asked.lock().unwrap().push(host.to_owned());
        let mut answers = self.answers.lock().unwrap();
        let answer = if 1 < answers.len() { answers.pop_front() } else { answers.front().cloned() };
        Box::pin(std::future::ready(answer.ok_or_else(|| io::Error::other("server 10.9.8.7 refused"))))
    }
}
