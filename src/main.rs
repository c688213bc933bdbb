//! The `mosaic` program: parses the command line and hands over.

use clap::Parser;
use mosaic::cli::{self, Cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = mosaic::askpass::answer_git() {
        return code;
    }
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: failed to start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
