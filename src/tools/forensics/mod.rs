//! `sealmq-forensics`: looks at a data directory the way a thief would, as bytes without any key, and says
//! whether texts that were sent through the broker stand in it. It knows nothing of the store's format on
//! purpose: what it proves does not depend on the code that it checks.

mod compare;
mod error;
mod hexdump;
mod needle;
mod render;
mod scan;
mod stream;
#[cfg(test)]
mod tests;

pub use compare::{CompareReport, Excerpt, compare};
pub use error::Error;
pub use needle::{Form, Needles};
pub use render::{render_compare, render_scan};
pub use scan::{FileReport, Hit, NeedleReport, Outcome, Place, ScanReport, scan};
