//! The other programs, as libraries: each binary in `src/bin` parses its arguments, calls in here and
//! maps the result to an exit code. Nothing here is part of the broker, and the broker uses none of it.

pub mod bench;
pub mod ctl;
pub mod forensics;
pub mod init;
