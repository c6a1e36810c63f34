//! The `sealmq-bench` program: hands its arguments to the library and the result to the system.

use std::io::{BufWriter, stderr, stdout};
use std::process::ExitCode;

use sealmq::tools::bench::{exit, run};

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sealmq-bench: cannot start: {error}");
            return ExitCode::from(exit::FAILED);
        }
    };
    let command_line = std::env::args_os().collect();
    let mut out = BufWriter::new(stdout());
    ExitCode::from(runtime.block_on(run(command_line, &mut out, &mut stderr())))
}
