//! The `dpp` binary: parses the command line, builds the one runtime, and exits with the command's
//! code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // Several TLS users share the process; they all use this one provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = dpp::cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            dpp::role::admin::eprint_line(&format!("dpp: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli.run());
    // A task that did not obey must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}
