//! What words mean: no I/O, no async, no clock, no framework.

pub mod money;
pub mod price;
