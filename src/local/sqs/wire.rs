//! The requests as they come over the wire, and what can be said against them without a queue.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::error::{Code, Error};

/// The limits of AWS.
const BATCH_ENTRIES_MAX: usize = 10;
const BATCH_ID_BYTES_MAX: usize = 80;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateQueue {
    pub(super) queue_name: String,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GetQueueUrl {
    pub(super) queue_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GetQueueAttributes {
    pub(super) queue_url: String,
    #[serde(default)]
    pub(super) attribute_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SetQueueAttributes {
    pub(super) queue_url: String,
    pub(super) attributes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListQueues {
    #[serde(default)]
    pub(super) queue_name_prefix: String,
    pub(super) max_results: Option<i64>,
    pub(super) next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OnlyQueue {
    pub(super) queue_url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReceiveMessage {
    pub(super) queue_url: String,
    pub(super) max_number_of_messages: Option<i64>,
    pub(super) visibility_timeout: Option<i64>,
    pub(super) wait_time_seconds: Option<i64>,
    #[serde(default)]
    pub(super) attribute_names: Vec<String>,
    #[serde(default)]
    pub(super) message_system_attribute_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OneOf<T> {
    pub(super) queue_url: String,
    #[serde(flatten)]
    pub(super) item: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Batch<T> {
    pub(super) queue_url: String,
    pub(super) entries: Vec<Entry<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry<T> {
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) item: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Outgoing {
    pub(super) message_body: String,
    pub(super) delay_seconds: Option<i64>,
    #[serde(default)]
    pub(super) message_attributes: Map<String, Value>,
    #[serde(default)]
    pub(super) message_system_attributes: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Received {
    pub(super) receipt_handle: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Hide {
    pub(super) receipt_handle: String,
    pub(super) visibility_timeout: Option<i64>,
}

impl<T> Batch<T> {
    /// Runs `one` on each entry by itself: what fails, fails alone.
    pub(super) fn each(&self, mut one: impl FnMut(&T) -> Result<Value, Error>) -> Result<Value, Error> {
        if self.entries.is_empty() {
            let message = "There should be at least one entry in the request.";
            return Err(Error::new(Code::EmptyBatchRequest, message));
        }
        if BATCH_ENTRIES_MAX < self.entries.len() {
            let message = format!("Maximum number of entries per request are {BATCH_ENTRIES_MAX}.");
            return Err(Error::new(Code::TooManyEntriesInBatchRequest, message));
        }
        let mut ids = HashSet::new();
        for Entry { id, .. } in &self.entries {
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if id.is_empty() || BATCH_ID_BYTES_MAX < id.len() || !id.bytes().all(valid) {
                let message = "A batch entry id can only contain alphanumeric characters, hyphens and \
                               underscores. It can be at most 80 letters long.";
                return Err(Error::new(Code::InvalidBatchEntryId, message));
            }
            if !ids.insert(id) {
                return Err(Error::new(Code::BatchEntryIdsNotDistinct, format!("Id {id} repeated.")));
            }
        }
        let (mut successful, mut failed) = (Vec::new(), Vec::new());
        for Entry { id, item } in &self.entries {
            match one(item) {
                Ok(mut done) => {
                    done["Id"] = json!(id);
                    successful.push(done);
                }
                Err(Error { code, message }) => {
                    let (code, ..) = code.names();
                    failed.push(json!({ "Id": id, "SenderFault": true, "Code": code, "Message": message }));
                }
            }
        }
        Ok(json!({ "Successful": successful, "Failed": failed }))
    }
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::new(Code::Serialization, error.to_string()))
}

pub(super) fn within(
    parameter: &str,
    value: Option<i64>,
    least: u32,
    most: u32,
) -> Result<Option<u32>, Error> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(valid) if least <= valid && valid <= most => Ok(Some(valid)),
        Ok(_) | Err(_) => {
            let reason = format!("Must be >= {least} and <= {most}, if provided.");
            Err(Error::invalid_value(parameter, value, &reason))
        }
    }
}

pub(super) fn seconds(parameter: &str, value: Option<i64>, most: u32) -> Result<Option<Duration>, Error> {
    Ok(within(parameter, value, 0, most)?.map(|seconds| Duration::from_secs(seconds.into())))
}
