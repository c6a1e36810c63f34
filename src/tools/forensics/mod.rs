//! `sealmq-forensics`. [`scan`] and [`compare`] look at a data directory the way a thief would, as bytes without any
//! key: they know nothing of the store's format on purpose, so what they prove does not depend on the code that they
//! check. [`verify()`] and [`inspect()`] are the owner's: they know the format, take the key, and change nothing.

mod compare;
mod error;
mod figures;
mod hexdump;
mod html;
mod inspect;
mod needle;
mod output;
mod png;
mod portrait;
mod properties;
mod render;
mod scan;
mod sources;
mod stream;
#[cfg(test)]
mod tests;
mod verify;

pub use compare::{CompareReport, Excerpt, compare};
pub use error::Error;
pub use inspect::{InspectArguments, Inspected, inspect};
pub use needle::{Form, Needles};
pub use output::write_html;
pub use render::{render_compare, render_scan};
pub use scan::{FileReport, Hit, NeedleReport, Outcome, Place, ScanReport, scan};
pub use verify::{VerifyArguments, VerifyReport, render_verify, verify};
