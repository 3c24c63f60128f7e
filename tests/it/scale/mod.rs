//! What must hold at the size of a product that sells: correctness is asserted, times are only printed, for
//! a machine at other work would fail them. `make scale` runs these.

mod audit;
mod recovery;
mod waits;

use std::io::Write as _;

/// Tells whoever runs this what was measured.
fn print(text: &str) {
    // There is nobody to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
