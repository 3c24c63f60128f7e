//! JSON that outlives a process: the queue's message, the result's envelope, and how JSON from
//! outside is read.

pub mod envelope;
pub mod json;
pub mod message;
