//! The `dpp` binary.
fn main() {}
