//! What words mean: no I/O, no async, no clock, no framework.
//!
//! Reading order: [`money`] and [`price`] (amounts), [`id`], [`run`] (the states of a run and the
//! proofs that let effects happen), [`receipt`] and [`reconcile`] (how a half-finished run is
//! judged), [`plan`], [`limit`], [`api_key`], [`idempotency`].
//!
//! Glossary: a *hold* is money set aside for one run; its end is a *charge* (posted) and a *release*
//! (returned). A worker *takes* a run and gets a *lease*; whoever wins the *claim* may upload and
//! finish it. The *gate* is Redis, the *ledger* is PostgreSQL and always right.

pub mod admin_token;
pub mod api_key;
pub mod cursor;
pub mod id;
pub mod idempotency;
pub mod limit;
pub mod money;
pub mod plan;
pub mod price;
pub mod receipt;
pub mod reconcile;
pub mod run;
pub mod scope;
