//! One integration binary.

mod conformance;
