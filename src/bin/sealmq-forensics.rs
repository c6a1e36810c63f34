//! The `sealmq-forensics` program: parses its arguments, calls the library, maps the result to an exit code.

fn main() {}
