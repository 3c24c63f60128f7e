//! DPP, the Decision Pack Platform: paid units of work for programs, each with a hard price cap.

pub mod domain;
#[cfg(feature = "dev")]
pub mod local;
pub mod pack;
