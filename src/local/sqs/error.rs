//! What the server refuses, and under which names the SDKs know it.

use hyper::StatusCode;

/// A refusal, as a caller of AWS would see it.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Error {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Error {
        Error { code, message: message.into() }
    }

    /// A value out of its range, in the words of AWS.
    pub(super) fn invalid_value(parameter: &str, value: impl std::fmt::Display, reason: &str) -> Error {
        let message = format!("Value {value} for parameter {parameter} is invalid. Reason: {reason}");
        Error::new(Code::InvalidParameterValue, message)
    }

    pub(super) fn missing(parameter: &str) -> Error {
        Error::new(Code::MissingParameter, format!("The request must contain the parameter {parameter}."))
    }
}

/// Every code that the server answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BatchEntryIdsNotDistinct,
    BatchRequestTooLong,
    EmptyBatchRequest,
    InvalidAttributeName,
    InvalidAttributeValue,
    InvalidBatchEntryId,
    InvalidMessageContents,
    InvalidParameterValue,
    MessageNotInflight,
    MissingParameter,
    OverLimit,
    QueueDoesNotExist,
    QueueNameExists,
    ReceiptHandleIsInvalid,
    RequestTooLarge,
    Serialization,
    TooManyEntriesInBatchRequest,
    UnknownOperation,
    UnsupportedOperation,
}

impl Code {
    /// The name in `__type`, the older name in `x-amzn-query-error`, and the HTTP status.
    pub(super) fn names(self) -> (&'static str, &'static str, StatusCode) {
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        match self {
            Code::BatchEntryIdsNotDistinct => {
                ("BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct", BAD)
            }
            Code::BatchRequestTooLong => {
                ("BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong", BAD)
            }
            Code::EmptyBatchRequest => ("EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest", BAD),
            Code::InvalidAttributeName => ("InvalidAttributeName", "InvalidAttributeName", BAD),
            Code::InvalidAttributeValue => ("InvalidAttributeValue", "InvalidAttributeValue", BAD),
            Code::InvalidBatchEntryId => {
                ("InvalidBatchEntryId", "AWS.SimpleQueueService.InvalidBatchEntryId", BAD)
            }
            Code::InvalidMessageContents => ("InvalidMessageContents", "InvalidMessageContents", BAD),
            Code::InvalidParameterValue => ("InvalidParameterValue", "InvalidParameterValue", BAD),
            Code::MessageNotInflight => {
                ("MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", BAD)
            }
            Code::MissingParameter => ("MissingParameter", "MissingParameter", BAD),
            Code::OverLimit => ("OverLimit", "OverLimit", StatusCode::FORBIDDEN),
            Code::QueueDoesNotExist => ("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", BAD),
            Code::QueueNameExists => ("QueueNameExists", "QueueAlreadyExists", BAD),
            Code::ReceiptHandleIsInvalid => {
                ("ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", StatusCode::NOT_FOUND)
            }
            Code::RequestTooLarge => {
                ("RequestEntityTooLarge", "RequestEntityTooLarge", StatusCode::PAYLOAD_TOO_LARGE)
            }
            Code::Serialization => ("SerializationException", "SerializationException", BAD),
            Code::TooManyEntriesInBatchRequest => {
                ("TooManyEntriesInBatchRequest", "AWS.SimpleQueueService.TooManyEntriesInBatchRequest", BAD)
            }
            Code::UnknownOperation => {
                ("UnknownOperationException", "UnknownOperationException", StatusCode::NOT_FOUND)
            }
            Code::UnsupportedOperation => {
                ("UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation", BAD)
            }
        }
    }
}
