//! A queue's attributes: which exist, what they may hold, and how they read back.
//!
//! `MessageRetentionPeriod` is kept but nothing expires by it; those in [`INERT`] are kept and have
//! no effect at all.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::error::{Code, Error};

/// Name, default, least, most. The order is that of the indices below.
const NUMBERS: [(&str, u32, u32, u32); 5] = [
    ("VisibilityTimeout", 30, 0, super::VISIBILITY_SEC_MAX),
    ("DelaySeconds", 0, 0, super::DELAY_SEC_MAX),
    ("ReceiveMessageWaitTimeSeconds", 0, 0, super::WAIT_SEC_MAX),
    ("MaximumMessageSize", super::MESSAGE_BYTES_MAX, 1_024, super::MESSAGE_BYTES_MAX),
    ("MessageRetentionPeriod", 345_600, 60, 1_209_600),
];
const VISIBILITY: usize = 0;
const DELAY: usize = 1;
const WAIT: usize = 2;
const MESSAGE_SIZE: usize = 3;

/// Attributes about access and encryption, of which a server on loopback has neither.
const INERT: [&str; 5] = [
    "Policy",
    "RedriveAllowPolicy",
    "KmsMasterKeyId",
    "KmsDataKeyReusePeriodSeconds",
    "SqsManagedSseEnabled",
];

const REDRIVE: &str = "RedrivePolicy";
const ARN_PREFIX: &str = "arn:aws:sqs:us-east-1:000000000000:";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    numbers: [u32; NUMBERS.len()],
    pub(super) redrive: Option<Redrive>,
    inert: BTreeMap<String, String>,
}

/// Where a message goes that was received too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redrive {
    pub(super) target: String,
    pub(super) receives_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { numbers: NUMBERS.map(|(_, default, ..)| default), redrive: None, inert: BTreeMap::new() }
    }
}

impl Settings {
    /// These settings with `changes` made to them, or the first change that may not be.
    pub(super) fn with(&self, changes: &BTreeMap<String, String>) -> Result<Settings, Error> {
        let mut next = self.clone();
        for (name, value) in changes {
            if let Some(index) = NUMBERS.iter().position(|(number, ..)| number == name) {
                let (.., least, most) = NUMBERS[index];
                match value.parse() {
                    Ok(number) if least <= number && number <= most => next.numbers[index] = number,
                    Ok(_) | Err(_) => return Err(invalid(name)),
                }
            } else if name == REDRIVE {
                next.redrive = if value.is_empty() { None } else { Some(Redrive::parse(value)?) };
            } else if INERT.contains(&name.as_str()) {
                next.inert.insert(name.clone(), value.clone());
            } else {
                let message = format!("Unknown Attribute {name}.");
                return Err(Error::new(Code::InvalidAttributeName, message));
            }
        }
        Ok(next)
    }

    /// What `GetQueueAttributes` shows of them.
    pub(super) fn describe(&self) -> Vec<(String, String)> {
        let numbers = NUMBERS
            .iter()
            .zip(self.numbers)
            .map(|((name, ..), value)| ((*name).to_owned(), value.to_string()));
        let redrive = self.redrive.as_ref().map(|redrive| (REDRIVE.to_owned(), redrive.describe()));
        let inert = self.inert.iter().map(|(name, value)| (name.clone(), value.clone()));
        numbers.chain(redrive).chain(inert).collect()
    }

    pub(super) fn visibility(&self) -> Duration {
        Duration::from_secs(self.numbers[VISIBILITY].into())
    }

    pub(super) fn delay(&self) -> Duration {
        Duration::from_secs(self.numbers[DELAY].into())
    }

    pub(super) fn wait(&self) -> Duration {
        Duration::from_secs(self.numbers[WAIT].into())
    }

    pub(super) fn message_bytes_max(&self) -> u32 {
        self.numbers[MESSAGE_SIZE]
    }
}

impl Redrive {
    /// `{"deadLetterTargetArn": ARN, "maxReceiveCount": N}`; SDKs write N as a number or as a string.
    fn parse(policy: &str) -> Result<Redrive, Error> {
        let refused = || Error::invalid_value(REDRIVE, policy, "Redrive policy is not valid.");
        let policy_json: Value = serde_json::from_str(policy).or(Err(refused()))?;
        let target = policy_json["deadLetterTargetArn"].as_str().and_then(|arn| arn.strip_prefix(ARN_PREFIX));
        let receives_max = match &policy_json["maxReceiveCount"] {
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        };
        match (target, receives_max.and_then(|count| u32::try_from(count).ok())) {
            (Some(target), Some(receives_max @ 1..=1_000)) => {
                Ok(Redrive { target: target.to_owned(), receives_max })
            }
            (_, _) => Err(refused()),
        }
    }

    fn describe(&self) -> String {
        json!({ "deadLetterTargetArn": arn(&self.target), "maxReceiveCount": self.receives_max }).to_string()
    }
}

pub(super) fn arn(queue: &str) -> String {
    format!("{ARN_PREFIX}{queue}")
}

fn invalid(attribute: &str) -> Error {
    Error::new(Code::InvalidAttributeValue, format!("Invalid value for the parameter {attribute}."))
}
