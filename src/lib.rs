//! DPP, the Decision Pack Platform: paid units of work for programs, each with a hard price cap.

pub mod config;
pub mod domain;
pub mod api;
pub mod budget;
pub mod flow;
pub mod pack;
pub mod queue;
pub mod results;
pub mod store;
pub mod telemetry;
pub mod wire;
