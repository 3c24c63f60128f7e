//! DPP, the Decision Pack Platform: paid units of work for programs, each with a hard price cap.

pub mod api;
pub mod budget;
pub mod cli;
pub mod config;
pub mod domain;
pub mod flow;
#[cfg(feature = "dev")]
pub mod local;
pub mod pack;
pub mod queue;
pub mod reaper;
pub mod results;
pub mod role;
pub mod store;
pub mod telemetry;
pub mod wire;
pub mod worker;
