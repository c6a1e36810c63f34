//! The `sealmqctl` program: parses its arguments, calls the library, maps the result to an exit code.

use std::io::{BufWriter, Write, stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    // A new passphrase may pass through it. What is refused leaves it as any other program is.
    let _ = sealmq::server::hardening::apply();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error:\ncannot start: {error}");
            return ExitCode::from(sealmq::tools::ctl::exit::SOFTWARE);
        }
    };
    let mut out = BufWriter::new(stdout().lock());
    let command_line = std::env::args_os().collect();
    let code = runtime.block_on(sealmq::tools::ctl::run(command_line, &mut out, &mut stderr().lock()));
    // A failure to write has already decided the code.
    let _ = out.flush();
    ExitCode::from(code)
}
