//! Placeholder header, replaced when the module is written.

pub mod ctl;
