//! An SQS server in memory that speaks the AWS JSON 1.0 protocol of the current SDKs.
//!
//! It promises what a standard queue promises: at least one delivery, visibility timeouts, delays,
//! long polls that wake at once, redrive to a dead-letter queue, the error codes of AWS. It is
//! stricter than AWS in one point, to bring mistakes to light: a stale receipt handle never deletes
//! and never hides a message that was received again since, where AWS only says that it "might not".
//!
//! It deliberately lacks:
//! - durability: a restart loses every message (the reaper's work, so development exercises it);
//! - authentication: whoever reaches the port may do anything;
//! - FIFO queues, message attributes, tags, permissions, message move tasks: all refused;
//! - retention: no message expires, whatever `MessageRetentionPeriod` says;
//! - the pause of 60 s between two purges, and the 12 h limit on how long one receive may be extended.

mod error;
mod queue;
mod settings;
mod wire;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use self::error::{Code, Error};
use self::queue::{Handle, Message, Queue};
use self::settings::{Settings, arn};
use self::wire::{
    Batch, CreateQueue, GetQueueAttributes, GetQueueUrl, Hide, ListQueues, OneOf, OnlyQueue, Outgoing,
    ReceiveMessage, Received, SetQueueAttributes, parse, seconds, within,
};
use super::http::Server;

/// The limits of AWS.
const VISIBILITY_SEC_MAX: u32 = 43_200;
const DELAY_SEC_MAX: u32 = 900;
const WAIT_SEC_MAX: u32 = 20;
const MESSAGE_BYTES_MAX: u32 = 1_048_576;
const BATCH_BYTES_MAX: usize = 1_048_576;
const NAME_BYTES_MAX: usize = 80;

/// JSON escapes can make a message of 1 MiB three times as long (`\u` and four digits for a
/// character of two bytes).
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Far above what tests and development need; a full page of `ListQueues`.
const QUEUES_MAX: usize = 1_000;

const ACCOUNT: &str = "000000000000";
const TARGET_PREFIX: &str = "AmazonSQS.";
const CONTENT_TYPE: &str = "application/x-amz-json-1.0";

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct LocalSqs {
    server: Server,
}

impl LocalSqs {
    /// Serves on `listener`, with no queues yet.
    pub async fn start(listener: TcpListener) -> io::Result<LocalSqs> {
        let endpoint = format!("http://{}", listener.local_addr()?);
        let queues = Arc::new(Queues { endpoint, by_name: RwLock::default() });
        let service = service_fn(move |request| {
            let queues = Arc::clone(&queues);
            async move { Ok::<_, Infallible>(answer(&queues, request).await) }
        });
        Ok(LocalSqs { server: Server::start(listener, service)? })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Stops, and returns once no connection and no task is left.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

async fn answer(queues: &Queues, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, query_error, body) = match call(queues, request).await {
        Ok(body) => (StatusCode::OK, None, body),
        Err(Error { code, message }) => {
            let (name, query_name, status) = code.names();
            let fault = if status.is_server_error() { "Receiver" } else { "Sender" };
            let body = json!({ "__type": format!("com.amazonaws.sqs#{name}"), "message": message });
            (status, Some(format!("{query_name};{fault}")), body)
        }
    };
    let mut response = Response::builder().status(status).header("content-type", CONTENT_TYPE);
    if let Some(query_error) = query_error {
        response = response.header("x-amzn-query-error", query_error);
    }
    response
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("header values made of constants are valid")
}

async fn call(queues: &Queues, request: Request<Incoming>) -> Result<Value, Error> {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.strip_prefix(TARGET_PREFIX)).map(str::to_owned);
    let (&Method::POST, Some(operation)) = (request.method(), operation) else {
        let message =
            "Expected a POST with `X-Amz-Target: AmazonSQS.*`: this server speaks AWS JSON 1.0 only.";
        return Err(Error::new(Code::UnknownOperation, message));
    };
    let body = match Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Err(Error::new(Code::RequestTooLarge, error.to_string())),
    };
    queues.call(&operation, &body).await
}

#[derive(Debug)]
struct Queues {
    endpoint: String,
    by_name: RwLock<HashMap<String, Arc<Queue>>>,
}

impl Queues {
    /// Every operation there is.
    async fn call(&self, operation: &str, body: &[u8]) -> Result<Value, Error> {
        match operation {
            "CreateQueue" => self.create_queue(parse(body)?),
            "GetQueueUrl" => self.get_queue_url(&parse(body)?),
            "GetQueueAttributes" => self.get_queue_attributes(&parse(body)?),
            "SetQueueAttributes" => self.set_queue_attributes(&parse(body)?),
            "ListQueues" => self.list_queues(&parse(body)?),
            "PurgeQueue" => self.purge_queue(&parse(body)?),
            "DeleteQueue" => self.delete_queue(&parse(body)?),
            "SendMessage" => self.send_message(&parse(body)?),
            "SendMessageBatch" => self.send_message_batch(&parse(body)?),
            "ReceiveMessage" => self.receive_message(&parse(body)?).await,
            "DeleteMessage" => self.delete_message(&parse(body)?),
            "DeleteMessageBatch" => self.delete_message_batch(&parse(body)?),
            "ChangeMessageVisibility" => self.change_message_visibility(&parse(body)?),
            "ChangeMessageVisibilityBatch" => self.change_message_visibility_batch(&parse(body)?),
            other => {
                let message = format!("{other} is not among the operations of this local server.");
                Err(Error::new(Code::UnsupportedOperation, message))
            }
        }
    }

    fn create_queue(&self, request: CreateQueue) -> Result<Value, Error> {
        let name = request.queue_name;
        if name.ends_with(".fifo") || request.attributes.contains_key("FifoQueue") {
            let message = "This local server has no FIFO queues.";
            return Err(Error::new(Code::UnsupportedOperation, message));
        }
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || NAME_BYTES_MAX < name.len() || !name.bytes().all(valid) {
            let message =
                "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length";
            return Err(Error::new(Code::InvalidParameterValue, message));
        }
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = by_name.get(&name) {
            let same =
                queue.change(|state, _| Ok(state.settings.with(&request.attributes)? == state.settings))?;
            if !same {
                let message =
                    "A queue already exists with the same name and a different value for an attribute.";
                return Err(Error::new(Code::QueueNameExists, message));
            }
        } else if QUEUES_MAX <= by_name.len() {
            return Err(Error::new(
                Code::OverLimit,
                format!("This local server has {QUEUES_MAX} queues at most."),
            ));
        } else {
            let settings = Settings::default().with(&request.attributes)?;
            require_target(&settings, |target| by_name.contains_key(target))?;
            by_name.insert(name.clone(), Arc::new(Queue::new(&name, settings, epoch_ms())));
        }
        Ok(json!({ "QueueUrl": self.url(&name) }))
    }

    fn get_queue_url(&self, request: &GetQueueUrl) -> Result<Value, Error> {
        let queue = self.find(&request.queue_name).ok_or_else(no_queue)?;
        Ok(json!({ "QueueUrl": self.url(&queue.name) }))
    }

    fn get_queue_attributes(&self, request: &GetQueueAttributes) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        let (counts, settings) = queue.change(|state, _| (state.counts(), state.settings.clone()));
        let created_sec = (queue.created_ms / 1_000).to_string();
        let figures = [
            ("QueueArn", arn(&queue.name)),
            ("ApproximateNumberOfMessages", counts.ready.to_string()),
            ("ApproximateNumberOfMessagesNotVisible", counts.in_flight.to_string()),
            ("ApproximateNumberOfMessagesDelayed", counts.delayed.to_string()),
            ("CreatedTimestamp", created_sec.clone()),
            ("LastModifiedTimestamp", created_sec),
        ];
        let attributes: Map<String, Value> = figures
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .chain(settings.describe())
            .filter(|(name, _)| wanted(&request.attribute_names, name))
            .map(|(name, value)| (name, Value::String(value)))
            .collect();
        Ok(json!({ "Attributes": attributes }))
    }

    fn set_queue_attributes(&self, request: &SetQueueAttributes) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        // Judged first without the queue's lock: `create_queue` takes the two locks the other way round.
        let settings = queue.change(|state, _| state.settings.with(&request.attributes))?;
        require_target(&settings, |target| self.find(target).is_some())?;
        queue.change(|state, _| {
            state.settings = state.settings.with(&request.attributes)?;
            Ok(json!({}))
        })
    }

    fn list_queues(&self, request: &ListQueues) -> Result<Value, Error> {
        let most = within("MaxResults", request.max_results, 1, 1_000)?.unwrap_or(1_000);
        let after = request.next_token.as_deref().unwrap_or_default();
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<&str> = by_name.keys().map(String::as_str).collect();
        names.retain(|name| after < *name && name.starts_with(&request.queue_name_prefix));
        names.sort_unstable();
        let page = most as usize;
        let next = (page < names.len()).then(|| names[page - 1]);
        names.truncate(page);
        let urls: Vec<String> = names.iter().map(|name| self.url(name)).collect();
        Ok(match next {
            Some(next) => json!({ "QueueUrls": urls, "NextToken": next }),
            None => json!({ "QueueUrls": urls }),
        })
    }

    fn purge_queue(&self, request: &OnlyQueue) -> Result<Value, Error> {
        self.at(&request.queue_url)?.change(|state, _| state.purge());
        Ok(json!({}))
    }

    fn delete_queue(&self, request: &OnlyQueue) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(&*queue.name);
        Ok(json!({}))
    }

    fn send_message(&self, request: &OneOf<Outgoing>) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        send(&queue, &request.item)
    }

    fn send_message_batch(&self, request: &Batch<Outgoing>) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        let bytes = request.entries.iter().map(|entry| entry.item.message_body.len()).sum::<usize>();
        if BATCH_BYTES_MAX < bytes {
            let message = format!("Batch requests cannot be longer than {BATCH_BYTES_MAX} bytes.");
            return Err(Error::new(Code::BatchRequestTooLong, message));
        }
        request.each(|outgoing| send(&queue, outgoing))
    }

    async fn receive_message(&self, request: &ReceiveMessage) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        let settings = queue.change(|state, _| state.settings.clone());
        let max = within("MaxNumberOfMessages", request.max_number_of_messages, 1, 10)?.unwrap_or(1);
        let visibility = seconds("VisibilityTimeout", request.visibility_timeout, VISIBILITY_SEC_MAX)?
            .unwrap_or(settings.visibility());
        let wait =
            seconds("WaitTimeSeconds", request.wait_time_seconds, WAIT_SEC_MAX)?.unwrap_or(settings.wait());
        let received = queue.wait(wait, || self.receive(&queue, max as usize, visibility)).await;
        let messages: Vec<Value> =
            received.iter().flatten().map(|(id, message)| request.show(&queue.name, *id, message)).collect();
        Ok(if messages.is_empty() { json!({}) } else { json!({ "Messages": messages }) })
    }

    fn receive(&self, queue: &Queue, max: usize, visibility: Duration) -> Option<Vec<(Uuid, Message)>> {
        // A message whose dead-letter queue is gone stays where it is.
        let redrive = queue.change(|state, _| state.settings.redrive.clone());
        let target =
            redrive.and_then(|redrive| self.find(&redrive.target).map(|queue| (queue, redrive.receives_max)));
        let receives_max = target.as_ref().map(|(_, receives_max)| *receives_max);
        let mut dead = Vec::new();
        let received = queue
            .change(|state, now| state.receive(max, now + visibility, epoch_ms(), receives_max, &mut dead));
        if let Some((target, _)) = target {
            for (id, mut message) in dead {
                message.given_up_by = Some(Arc::clone(&queue.name));
                target.change(|state, _| state.accept(id, message, None));
            }
        }
        (!received.is_empty()).then_some(received)
    }

    fn delete_message(&self, request: &OneOf<Received>) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        delete(&queue, &request.item)
    }

    fn delete_message_batch(&self, request: &Batch<Received>) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        request.each(|received| delete(&queue, received))
    }

    fn change_message_visibility(&self, request: &OneOf<Hide>) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        hide(&queue, &request.item)
    }

    fn change_message_visibility_batch(&self, request: &Batch<Hide>) -> Result<Value, Error> {
        let queue = self.at(&request.queue_url)?;
        request.each(|item| hide(&queue, item))
    }

    fn find(&self, name: &str) -> Option<Arc<Queue>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone)
    }

    /// The host in a queue URL does not matter, as with an SDK whose endpoint is overridden.
    fn at(&self, url: &str) -> Result<Arc<Queue>, Error> {
        if url.is_empty() {
            return Err(Error::missing("QueueUrl"));
        }
        let name = url.rsplit_once('/').map_or(url, |(_, name)| name);
        self.find(name).ok_or_else(no_queue)
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{ACCOUNT}/{name}", self.endpoint)
    }
}

fn send(queue: &Queue, outgoing: &Outgoing) -> Result<Value, Error> {
    if !outgoing.message_attributes.is_empty() || !outgoing.message_system_attributes.is_empty() {
        let message = "This local server keeps no message attributes.";
        return Err(Error::new(Code::UnsupportedOperation, message));
    }
    if outgoing.message_body.is_empty() {
        return Err(Error::missing("MessageBody"));
    }
    let forbidden = |c: char| (c < ' ' && !"\t\n\r".contains(c)) || c == '\u{fffe}' || c == '\u{ffff}';
    if outgoing.message_body.contains(forbidden) {
        let message = "Invalid characters found. Valid unicode characters are #x9 | #xA | #xD | #x20 to \
                       #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF";
        return Err(Error::new(Code::InvalidMessageContents, message));
    }
    let delay = seconds("DelaySeconds", outgoing.delay_seconds, DELAY_SEC_MAX)?;
    let (id, message) = (Uuid::new_v4(), Message::new(&outgoing.message_body, epoch_ms()));
    let md5 = Arc::clone(&message.body_md5);
    queue.change(|state, now| {
        let most = state.settings.message_bytes_max();
        if (most as usize) < outgoing.message_body.len() {
            let message = format!(
                "One or more parameters are invalid. Reason: Message must be shorter than {most} bytes."
            );
            return Err(Error::new(Code::InvalidParameterValue, message));
        }
        let delay = delay.unwrap_or(state.settings.delay());
        state.send(id, message, (!delay.is_zero()).then(|| now + delay))
    })?;
    Ok(json!({ "MessageId": id, "MD5OfMessageBody": &*md5 }))
}

fn delete(queue: &Queue, received: &Received) -> Result<Value, Error> {
    let handle = parse_handle(queue, &received.receipt_handle)?;
    queue.change(|state, _| state.delete(handle));
    Ok(json!({}))
}

fn hide(queue: &Queue, item: &Hide) -> Result<Value, Error> {
    let handle = parse_handle(queue, &item.receipt_handle)?;
    let timeout = seconds("VisibilityTimeout", item.visibility_timeout, VISIBILITY_SEC_MAX)?
        .ok_or_else(|| Error::missing("VisibilityTimeout"))?;
    queue.change(|state, now| state.hide(handle, now + timeout))?;
    Ok(json!({}))
}

/// A receipt handle names the queue, the message and which of its receives this was. Ids never come
/// back, so that a handle from before a restart or a purge means nothing rather than another message.
fn show_handle(queue: &str, handle: Handle) -> String {
    format!("{queue}/{}/{}", handle.id, handle.receives)
}

fn parse_handle(queue: &Queue, text: &str) -> Result<Handle, Error> {
    let parse = || {
        let (id, receives) = text.strip_prefix(&*queue.name)?.strip_prefix('/')?.split_once('/')?;
        Some(Handle { id: id.parse().ok()?, receives: receives.parse().ok()? })
    };
    parse().ok_or_else(|| {
        Error::new(Code::ReceiptHandleIsInvalid, format!("The input receipt handle {text:?} is invalid."))
    })
}

impl ReceiveMessage {
    fn show(&self, queue: &str, id: Uuid, message: &Message) -> Value {
        let mut attributes = Map::new();
        let mut show = |name: &str, value: Option<String>| {
            if wanted(&self.attribute_names, name) || wanted(&self.message_system_attribute_names, name) {
                attributes.extend(value.map(|value| (name.to_owned(), Value::String(value))));
            }
        };
        show("SenderId", Some(ACCOUNT.to_owned()));
        show("SentTimestamp", Some(message.sent_ms.to_string()));
        show("ApproximateReceiveCount", Some(message.receives.to_string()));
        show("ApproximateFirstReceiveTimestamp", message.first_received_ms.map(|at| at.to_string()));
        show("DeadLetterQueueSourceArn", message.given_up_by.as_deref().map(arn));
        let mut shown = json!({
            "MessageId": id,
            "ReceiptHandle": show_handle(queue, Handle { id, receives: message.receives }),
            "MD5OfBody": &*message.body_md5,
            "Body": &*message.body,
        });
        if !attributes.is_empty() {
            shown["Attributes"] = Value::Object(attributes);
        }
        shown
    }
}

/// The target of a redrive policy must exist, as on AWS, or messages would have nowhere to go.
fn require_target(settings: &Settings, exists: impl FnOnce(&str) -> bool) -> Result<(), Error> {
    match &settings.redrive {
        Some(redrive) if !exists(&redrive.target) => {
            let reason = "Dead letter target does not exist.";
            Err(Error::invalid_value("RedrivePolicy", arn(&redrive.target), reason))
        }
        Some(_) | None => Ok(()),
    }
}

fn wanted(names: &[String], name: &str) -> bool {
    names.iter().any(|wanted| wanted == "All" || wanted == name)
}

fn no_queue() -> Error {
    Error::new(Code::QueueDoesNotExist, "The specified queue does not exist.")
}

/// For the timestamps that messages and queues show; no decision hangs on it.
#[expect(clippy::disallowed_methods, reason = "a server's own clock; nothing of DPP is judged by it")]
fn epoch_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
