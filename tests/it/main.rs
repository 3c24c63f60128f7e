//! All tests, in one binary: every further one would link the whole stack again.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]
#![expect(clippy::disallowed_methods, reason = "tests own their tasks, clocks and environment")]

mod api;
mod budget;
mod chaos;
mod conformance;
mod domain;
mod flow;
mod harness;
mod pack;
mod role;
mod scale;
mod simulation;
mod tidy;
