//! The composition root's parts: configuration, logging, the control socket and the health check.
//!
//! [`raw_config`] is what the operator wrote, [`config`] is what it means; nothing outside this module reads
//! a configuration file or an environment variable. No AMQP rule, no storage and no cryptography lives here.

pub mod at_rest;
pub mod config;
pub mod control;
pub mod descriptor;
pub mod environment;
pub mod error;
pub mod hardening;
pub mod healthcheck;
mod key_command;
pub mod key_service;
mod key_source;
mod keyring;
pub mod keys;
pub mod listeners;
pub mod logging;
mod measure;
pub mod offline;
mod picture;
#[cfg(feature = "pkcs11")]
mod pkcs11;
pub mod progress_line;
pub mod prompt;
pub mod raw_config;
pub mod run;
pub mod secret;
pub mod settings;
pub mod users;
pub mod values;
#[cfg(feature = "vault")]
mod vault;

pub use config::Config;
pub use error::Error;
pub use healthcheck::healthcheck;

/// Product name told to clients in connection.start: kombu and others choose behaviour by it.
pub const PRODUCT_DEFAULT: &str = "RabbitMQ";

/// Product version told to clients in connection.start, the RabbitMQ release whose wire behaviour is followed.
pub const PRODUCT_VERSION_DEFAULT: &str = "4.0.5";

/// This program's own version.
pub const SEALMQ_VERSION: &str = env!("CARGO_PKG_VERSION");
