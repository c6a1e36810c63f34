//! The rules against plain models: random sequences of operations on a queue and on a topology, and what a
//! few lines that are obviously right say about them.

mod headers_model;
mod queue_model;
mod topology_model;
